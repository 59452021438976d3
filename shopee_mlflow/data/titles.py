r"""Garbled titles of shops: UTF-8 bytes written as text, such as ``\xe2``."""

from __future__ import annotations

import re

import pandas as pd

ESCAPE = r"\\[xX][0-9a-fA-F]{2}"
_RUN = re.compile(f"(?:{ESCAPE})+")
# A minus in front of a number is a sign, not a formula.
_FORMULA = re.compile(r"[=+@\t\r]|-(?!\d+([.,]\d+)?$)")
# The text that Python prints for bytes: b'...' or b"...".
_BYTES_LITERAL = r"b(?:'.*'|\".*\")"


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """A table in which no text is a formula for a spreadsheet program.

    A text that begins like a formula gets an apostrophe in front, which marks it as text.
    """

    def plain(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    return table.map(plain)


def decode_escapes(title: str) -> str:
    r"""A title with its byte escapes decoded: ``\xe2\x9d\xa4`` becomes a heart.

    Escapes that are not valid UTF-8 are kept. If the whole title is a bytes literal of Python, its
    quotes are removed, too.
    """
    if re.fullmatch(_BYTES_LITERAL, title):
        title = title[2:-1]
    return _RUN.sub(_decode_run, title)


def _decode_run(run: re.Match[str]) -> str:
    digits = re.sub(r"\\[xX]", "", run.group())
    try:
        return bytes.fromhex(digits).decode("utf-8")
    except UnicodeDecodeError:
        return run.group()


def escaped_titles(titles: pd.Series) -> pd.DataFrame:
    """Titles with byte escapes: columns title, decoded, rows; the most frequent first."""
    counts = titles[titles.str.contains(ESCAPE)].value_counts()
    counts = counts.sort_index().sort_values(ascending=False, kind="stable")
    names = [str(name) for name in counts.index]
    return pd.DataFrame(
        {
            "title": pd.Series(names, dtype="str"),
            "decoded": pd.Series([decode_escapes(name) for name in names], dtype="str"),
            "rows": counts.to_numpy(),
        }
    )


def count_bytes_literals(titles: pd.Series) -> int:
    """The number of titles that are bytes literals of Python, such as ``b'Rice 5 kg'``."""
    return int(titles.str.fullmatch(_BYTES_LITERAL).sum())
