"""The built-in sample catalogue, drawn with Pillow: plan, designs, scenes, files."""

from .catalog import sample_catalog

__all__ = ["sample_catalog"]
