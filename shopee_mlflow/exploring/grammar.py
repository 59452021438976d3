"""Numbers in sentences."""

from __future__ import annotations

from collections.abc import Sequence

SINGULAR = {"files": "file", "phashes": "phash", "titles": "title"}


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 photo, 2,000 photos, no photo."""
    if number == 0:
        return f"no {noun}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def part_of(part: int, whole: int, nouns: str) -> str:
    """A part of a whole: 30 of 81 label groups (37.0%)."""
    return f"{part:,} of {whole:,} {nouns} ({share(part, whole)})"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent."""
    return f"{part / whole:.1%}" if whole else "0.0%"


def listing(words: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def verb(number: int, one: str, more: str) -> str:
    """The form that fits: 1 file is, 2 files are."""
    return one if number == 1 else more
