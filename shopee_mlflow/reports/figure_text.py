"""Names in figures. Figures have one font, which lacks Chinese, Japanese, Korean, Thai, emoji."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font

from .pages import shortened


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
    return get_font(findfont(FontProperties())).get_char_index(ord(character)) != 0
