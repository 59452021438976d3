"""Names in figures. Figures have one font, which lacks Chinese, Japanese, Korean, Thai, emoji."""

from __future__ import annotations

from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font

from .pages import shortened


def drawable(text: str) -> str:
    """A text without the characters that the figures' font would show as boxes."""
    return "".join(character for character in text if _has_glyph(character)).strip()


def group_name(label: str, number: int, length: int = 14) -> str:
    """A label group's name in a figure.

    A label with characters that the font lacks gets its number in front, as in the table of label
    groups on the page: ``#3 shoes``.
    """
    text = drawable(label)
    return shortened(text if text == label.strip() else f"#{number} {text}".strip(), length)


def measure_name(metric: str) -> str:
    """A validation metric in words: validation accuracy."""
    known = {"val_accuracy": "validation accuracy", "val_macro_f1": "validation macro F1"}
    return known.get(metric, metric)


@cache
def _has_glyph(character: str) -> bool:
    return get_font(findfont(FontProperties())).get_char_index(ord(character)) != 0
