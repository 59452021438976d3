"""Figures and the names in them. Their font lacks Chinese, Japanese, Korean, Thai, emoji.

matplotlib is imported with the first figure, since it takes half a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from .pages import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure whose parts are arranged to fit; its size is in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def drawable(text: str) -> str:
    """A text without the characters that the figures' font would show as boxes."""
    return "".join(character for character in text if _has_glyph(character)).strip()


def group_names(names: Sequence[str], numbers: Iterable[int], length: int = 22) -> list[str]:
    """Names of label groups in a figure, each different.

    A name with characters that the font lacks, or that would be drawn like another one, gets its
    number in front, as in the table of label groups on the page: ``#3 shoes``.
    """
    drawn = [shortened(drawable(name), length) for name in names]
    counts = Counter(drawn)
    return [
        text
        if counts[text] == 1 and drawable(name) == name.strip()
        else shortened(f"#{number} {drawable(name)}".strip(), length)
        for name, number, text in zip(names, numbers, drawn, strict=True)
    ]


def measure_name(metric: str) -> str:
    """A validation metric in words: validation accuracy."""
    words = metric.removeprefix("val_").replace("_", " ")
    return "validation " + words.replace("f1", "F1").replace("top5", "top-5")


@cache
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return get_font(findfont(FontProperties())).get_char_index(ord(character)) != 0
