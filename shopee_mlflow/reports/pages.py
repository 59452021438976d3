"""Reports as HTML pages that hold all they show: pictures inside, no scripts, no network.

Titles and labels come from strangers. Every value is escaped by the templates; nothing here marks
text as safe but what this module has made itself.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure
from PIL import Image

_DPI = 110
_JPEG_QUALITY = 82
# The generator of a page is among its first bytes: "shopee_mlflow comparison".
_GENERATOR = "shopee_mlflow "
_HEAD_BYTES = 1024


@dataclass(frozen=True)
class Picture:
    """A picture inside a page.

    :ivar source: a data URI.
    :ivar alt: what is to be seen, for those who cannot see it.
    :ivar caption: what to conclude from it.
    """

    source: str
    alt: str
    caption: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Tile:
    """A photo of a gallery with lines of text below it."""

    picture: Picture
    lines: Sequence[str]


@dataclass(frozen=True)
class Gallery:
    """Photos side by side.

    :ivar more: how many there are beyond those shown.
    """

    title: str
    caption: str
    tiles: Sequence[Tile]
    more: int = 0


@dataclass(frozen=True)
class Table:
    """A table of a page.

    :ivar frame: its index is not shown.
    :ivar more: rows beyond those shown.
    """

    title: str
    caption: str
    frame: pd.DataFrame
    more: int = 0

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Names, and whether a column holds numbers, which are set to the right."""
        return [
            (str(name), bool(pd.api.types.is_numeric_dtype(self.frame[name])))
            for name in self.frame.columns
        ]

    @property
    def rows(self) -> list[list[str]]:
        """Cells as text; what is missing is left blank."""
        return [
            [_cell(value) for value in row] for row in self.frame.itertuples(index=False, name=None)
        ]


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder; every value in it is escaped.

    :param template: named for the command that writes the page: ``explore.html.j2``.
    :raises jinja2.UndefinedError: when a value is missing.
    """
    generator = f"{_GENERATOR}{template.split('.')[0]}"
    return _environment().get_template(template).render(generator=generator, **values)


def generator_of(page: Path) -> str:
    """The template that made a page, without its ending; empty for any other file, or none.

    :raises OSError: when the file cannot be read.
    """
    if not page.is_file():
        return ""
    with page.open("rb") as file:
        start = file.read(_HEAD_BYTES).decode("utf-8", "replace")
    found = re.search(f'<meta name="generator" content="{_GENERATOR}(\\w+)">', start)
    return found[1] if found else ""


def figure_picture(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A matplotlib figure as a PNG inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
    data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return Picture(_data_uri("image/png", data), alt, caption, width, height)


def photo_picture(pixels: np.ndarray, alt: str, caption: str = "") -> Picture:
    """A photo, (H, W, 3) uint8, as a JPEG inside the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    height, width = pixels.shape[:2]
    return Picture(_data_uri("image/jpeg", buffer.getvalue()), alt, caption, width, height)


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters; one that is cut ends in an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def squeezed(text: str, length: int) -> str:
    """A text of at most so many characters, beginning and end kept: names differ in either."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("shopee_mlflow.reports"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}"
    return str(value)
