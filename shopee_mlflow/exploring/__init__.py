"""The report on a catalogue, as one HTML page: what is in it, and what to know before training."""

from .catalog_sections import explore_page
from .explored import TABLES, Explored

__all__ = ["TABLES", "Explored", "explore_page"]
