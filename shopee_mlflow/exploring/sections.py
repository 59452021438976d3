"""What the page is made of, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..reports.pages import Gallery, Picture, Table

_MOST_ROWS = 12


@dataclass(frozen=True)
class Section:
    """A part of the page: numbers, sentences, points, figures, tables, photos, in this order.

    :ivar small: tables that stand beside each other where there is room.
    """

    anchor: str
    title: str
    words: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    points: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    small: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()


def first_rows(title: str, caption: str, frame: pd.DataFrame, few: int = _MOST_ROWS) -> Table:
    """The first rows of a table; the others are in the file beside the page."""
    return Table(title, caption, frame.head(few), max(0, len(frame) - few))
