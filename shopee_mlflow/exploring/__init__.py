"""The report on a catalogue, as one HTML page: what is in it, and what to know before training."""

from .explored import TABLES, Explored
from .page import explore_page

__all__ = ["TABLES", "Explored", "explore_page"]
