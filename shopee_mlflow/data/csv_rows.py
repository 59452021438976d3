"""Read the rows of a CSV file with their line numbers, and refuse quotes that merge rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import CatalogError

# In characters. Real titles and descriptions are shorter.
_LONGEST_VALUE = 2**20
# Separators of fields, and their names in messages. The comma is the first.
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# A field that ends like a file name, such as 15_red.jpg.
_FILE_NAME = r"\.[A-Za-z]\w{{1,4}}[\"']?\s*(?:{separator}|$)"


class Row(NamedTuple):
    """The values of a row, as text, and the number of its first line, from 1."""

    line: int
    values: list[str]


def read_rows(
    file: Iterable[str], path: Path, separator: str = ",", skip: int = 0
) -> Iterator[Row]:
    """Read a CSV file row by row, including the header; skip blank lines.

    A quoted value may hold line breaks. If several lines of such a row look like rows of their own,
    the row is refused: the quote was probably not meant to start a value, and rows would be lost.

    :param file: the text of the file, opened with ``newline=""``.
    :param path: its path, for messages.
    :param separator: one of :data:`SEPARATORS`.
    :param skip: number of lines before the header.
    :raises CatalogError: when quotes are invalid, or a row has more fields than the header; the
        message has the line number.
    """
    # The limit applies to the whole process, so it is never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_VALUE))
    lines = _Lines(file)
    for _ in range(skip):
        next(lines, None)
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    width = 0
    while True:
        lines.taken.clear()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            values = _read_leniently(path, lines, width, separator, str(error))
        if len(values) <= 1 and not "".join(values).strip():
            continue
        width = width or len(values)
        if len(values) > width or len(lines.taken) > 1:
            _check_row(path, lines, values, width, separator)
        yield Row(lines.first, values)


class _Lines:
    """Iterates over the lines of a file; ``taken`` holds those of the current row."""

    def __init__(self, file: Iterable[str]) -> None:
        self._file = iter(file)
        self.number = 0
        self.taken: list[str] = []
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._file, None)
        if line is None:
            self.ended = True
            raise StopIteration
        self.number += 1
        self.taken.append(line)
        return line

    @property
    def first(self) -> int:
        return self.number - len(self.taken) + 1


def _read_leniently(
    path: Path, lines: _Lines, width: int, separator: str, problem: str
) -> list[str]:
    """Read a row with misplaced quotes, if it is a single line with as many fields as the header.

    :raises CatalogError: for any other row.
    """
    if len(lines.taken) == 1 and not lines.ended:
        values = next(csv.reader(lines.taken, delimiter=separator, skipinitialspace=True))
        if len(values) == width or not width:
            return values
    if "field limit" in problem:
        problem = f"a value is longer than {_LONGEST_VALUE:,} characters"
    elif lines.ended:
        problem = "a quote opens a value and never closes"
    elif len(lines.taken) > 1:
        problem = f"a quote opens a value and does not close before line {lines.number}"
    else:
        problem = "text follows a quoted value"
    raise _invalid(path, lines.first, problem + _QUOTES)


def _check_row(path: Path, lines: _Lines, values: list[str], width: int, separator: str) -> None:
    if len(values) > width:
        surplus = any(value.strip() for value in values[width:])
        raise _invalid(
            path,
            lines.first,
            f"{len(values)} fields, but the header has {width}; "
            + (
                f"put quotes around values with {SEPARATORS[separator]}"
                if surplus
                else f"remove the last {SEPARATORS[separator][:-1]}, or end the header with one"
            ),
        )
    if len(lines.taken) > 1 and _merges_rows(lines.taken, width, separator):
        raise _invalid(
            path,
            lines.first,
            f"a quote opens a value that ends in line {lines.number}, and these lines look like "
            f"rows of their own{_QUOTES}",
        )


def _merges_rows(lines: list[str], width: int, separator: str) -> bool:
    """Whether several lines of a row look like rows: enough fields, and a file name."""
    enough = [line.count(separator) >= width - 1 for line in lines]
    file_name = _FILE_NAME.format(separator=re.escape(separator))
    named = [bool(re.search(file_name, line)) for line in lines]
    if any(named):
        return sum(named) > 1 and any(enough[1:])
    return sum(enough) > 1


_QUOTES = "; put the value in quotes and double each quote in it"


def _invalid(path: Path, line: int, problem: str) -> CatalogError:
    return CatalogError(f"{path}: is not valid CSV (line {line}: {problem}).")
