"""The report on a catalogue as one HTML page: its contents, and problems to fix before training."""

from .catalog_sections import explore_page
from .explored import TABLES, Explored

__all__ = ["TABLES", "Explored", "explore_page"]
