"""Sphinx: the documentation as HTML pages. Build with ``sphinx-build -W docs OUT``."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(Path(__file__).parents[1])]

from shopee_mlflow import __version__  # noqa: E402

project = "shopee_mlflow"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "option_reference", "repository_files"]
exclude_patterns = ["_build", "_ext"]
html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = html_show_sourcelink = html_copy_source = False

# Headings of other pages are linked to as in page.md#heading.
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
