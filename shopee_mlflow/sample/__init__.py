"""The built-in sample catalogue, drawn with Pillow."""

from .catalog import sample_catalog

__all__ = ["sample_catalog"]
