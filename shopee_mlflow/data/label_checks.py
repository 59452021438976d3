"""Find labels that look the same to people but differ, and labels for missing values."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from decimal import Context, Decimal

# Spreadsheets write 249114794 as 249114794.0, 249,114,794, 249 114 794 and 2.49114794E+08.
_NUMBER = re.compile(r"[+-]?(?=\.?\d)(?:\d*|\d{1,3}(?:[,' _]\d{3})+)(?:\.\d*)?(?:e[+-]?\d{1,2})?")
_SEPARATORS = str.maketrans("", "", ",' _")
_ZEROS_FIRST = re.compile(r"[+-]?0\d")
# After case folding: typographic dashes, minus signs and quotation marks, and Cyrillic and Greek
# letters that look like Latin ones, small or capital.
_CONFUSABLE = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹘﹣－⁃", "-"),
        **dict.fromkeys("‘’‚‛′`´ʼ", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict(zip("аеорсухіјѕԁһԛԝοαν", "aeopcyxijsdhqwoav", strict=True)),
        **dict(zip("вкмнтβεζικρτυχ", "bkmhtbezikptyx", strict=True)),
        # Palochka, Latin alpha, script g, dotless i, Armenian o and u, the sign for "times".
        **dict(zip("\u04cf\u0251\u0261\u0131\u0585\u057d\u00d7", "lagioux", strict=True)),
        **dict.fromkeys("∕⁄", "/"),
    }
)
# Letters and symbols that fonts leave blank: Hangul fillers, the empty Braille pattern, and others.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\ufffc")
_MISSING = frozenset(
    {
        *("nan", "-nan", "na", "n/a", "n.a.", "n.a", "<na>", "nat", "1.#ind", "1.#qnan", "-1.#ind"),
        *("none", "null", "(null)", "nil", "undefined", "\\n", "-", "--", "---", "?", "."),
        *("#n/a", "#na", "#null!", "#div/0!", "#ref!", "#value!", "#name?", "#num!"),
        *("#n/d", "n/d", "[null]", "[none]", "{}", "[]"),
        *("#nv", "#n/a n/a", "-1.#qnan", "<null>", "<none>", "(none)", "(blank)", "(empty)"),
    }
)


def lookalike_labels(labels: Iterable[str]) -> list[list[str]]:
    """Sets of labels that differ only in ways that people overlook.

    These are: upper and lower case, spaces, Unicode forms, invisible characters, kinds of dashes
    and quotation marks, letters of other scripts that look the same, and ways to write a
    number (``249114794.0``, ``2.49114794E+08``). Leading zeros are significant: ``007`` and
    ``7`` are two labels.

    :returns: sets of two or more, each sorted, in the order of their first label.
    """
    sets: dict[str, list[str]] = {}
    for label in sorted(set(labels)):
        sets.setdefault(_as_seen(label), []).append(label)
    return [members for members in sets.values() if len(members) > 1]


def missing_value_labels(labels: Iterable[str]) -> list[str]:
    """Labels that programs write for a missing value, such as ``nan`` and ``#N/A``, sorted."""
    return sorted(label for label in set(labels) if _as_seen(label) in _MISSING)


def shown_label(label: str) -> str:
    """A label as a Python literal, with escapes for invisible characters."""
    visible = label == unicodedata.normalize("NFKC", label) and not _invisible(label)
    return repr(label) if visible else ascii(label)


def label_remarks(labels: Iterable[str]) -> list[str]:
    """Remarks about lookalike labels, and about labels that read like missing values."""
    labels = set(labels)
    lines = []
    if lookalikes := lookalike_labels(labels):
        few = "; ".join(" and ".join(map(shown_label, names[:4])) for names in lookalikes[:3])
        lines.append(
            f"{len(lookalikes):,} {'set' if len(lookalikes) == 1 else 'sets'} of label groups "
            "differ only in case, spaces, Unicode form, lookalike characters or how a number is "
            f"written, and are kept apart: {few}{'; ...' if len(lookalikes) > 3 else ''}"
        )
    if missing := missing_value_labels(labels):
        few = ", ".join(map(shown_label, missing[:5])) + (", ..." if len(missing) > 5 else "")
        verb = "label group reads" if len(missing) == 1 else "label groups read"
        lines.append(f"{len(missing):,} {verb} like a missing value and are kept as groups: {few}")
    return lines


def _as_seen(label: str) -> str:
    """A label as people see it. Labels with equal results are lookalikes."""
    text = unicodedata.normalize("NFKC", label).casefold()
    # The Turkish capital letter I with a dot becomes an i with a combining dot.
    text = unicodedata.normalize("NFKC", text).replace("i\u0307", "i").translate(_CONFUSABLE)
    text = " ".join("".join(char for char in text if not _invisible(char)).split())
    if _NUMBER.fullmatch(text) and not _ZEROS_FIRST.match(text):
        # Full precision: long identifiers must not be rounded to the same number.
        return f"{Decimal(text.translate(_SEPARATORS)).normalize(Context(prec=len(text))):f}"
    return text


def _invisible(text: str) -> bool:
    """Whether a text holds format characters, variation selectors or blank letters."""
    return not text.isascii() and any(
        unicodedata.category(char) == "Cf"
        or char in _BLANK
        or "\ufe00" <= char <= "\ufe0f"
        or "\U000e0100" <= char <= "\U000e01ef"
        for char in text
    )
