"""Find the CSV file of a catalogue and read it as text, or say why it cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pandas as pd

from ..errors import CatalogError
from .csv_rows import Row, read_rows
from .file_kinds import not_csv, other_separator

REQUIRED = ("image", "label_group")
COLUMNS = ("posting_id", "image", "image_phash", "title", "label_group")
CSV_NAME = "train.csv"
IMAGES_NAME = "train_images"

_START_BYTES = 4096
# In bytes. Titles rarely have more than a few hundred characters.
_LONGEST_LINE = 2**20
_MOST_FIELDS = 1000
_PART_ROWS = 50_000
_UNDECODABLE = "\ufffd"
# Spreadsheets may save UTF-16, in which every other byte is usually zero.
_NOT_UTF8 = (_UNDECODABLE, "\0")
# C0 except the tab, DEL, and C1. They would break rows of tables or control a terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_TABLE = re.compile(r"\.(csv|tsv|xlsx?|ods|parquet|json)(\.\w+)?$", re.IGNORECASE)
_FILE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)


def find_catalog(data: str, images: str | None = None) -> tuple[Path, Path]:
    """The CSV file and the folder of photos that ``data`` and ``images`` name.

    :param data: a folder with train.csv and train_images/, or a CSV file.
    :param images: the folder of photos; None: train_images beside the CSV.
    :raises CatalogError: when one of them does not exist.
    """
    csv = find_csv(data)
    with _looking_for(data):
        folder = Path(images).expanduser() if images else csv.parent / IMAGES_NAME
        if not folder.is_dir():
            raise CatalogError(
                f"images={folder}: no such folder of photos, relative to {Path.cwd()}. Name "
                "it with the option images."
            )
        return csv, folder


def find_csv(data: str) -> Path:
    """The CSV file that ``data`` names.

    :raises CatalogError: when it does not exist.
    """
    with _looking_for(data):
        path = Path(data).expanduser()
        csv = path / CSV_NAME if path.is_dir() else path
        if not path.exists():
            raise CatalogError(
                f"data={data}: no such file or folder, relative to {Path.cwd()}. Name a folder "
                f"with {CSV_NAME} and {IMAGES_NAME}/, or a CSV file."
            )
        if not csv.is_file():
            tables = sorted(file.name for file in path.iterdir() if _TABLE.search(file.name))[:5]
            raise CatalogError(
                f"data={data}: the folder holds no {CSV_NAME}"
                + (f", but {', '.join(tables)}" if tables else "")
                + ". If the catalogue has another name, name the CSV file itself in data and its "
                "photos in images."
            )
        return csv


@contextmanager
def _looking_for(data: str) -> Iterator[None]:
    """Report a missing permission, a name that is too long, or the home of an unknown user."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CatalogError(f"data={data}: cannot be accessed ({error}).") from error


def read_catalog(csv: Path | str, required: Sequence[str] = REQUIRED) -> pd.DataFrame:
    """Read a catalogue as text: a frame with those of :data:`COLUMNS` that it has.

    A byte-order mark, all kinds of line ends and quoted commas are supported. Values are stripped;
    labels stay text, so ``007`` and ``7`` are two groups. Titles may hold line breaks, which
    become ``\\n``; their other control characters become U+FFFD. In all other values, control
    characters except tabs are refused, since manifests, tables and logs must read back equal.

    :raises CatalogError: when it cannot be read, is empty, lacks a required column, or has
        ambiguous rows, with their line numbers.
    """
    path = Path(csv)
    try:
        _check_start(path)
        _check_lines(path)
        rows = read_rows(path)
        header = next(rows, None)
        if header is None:
            raise CatalogError(f"{path}: the file is empty; {_wanted()}")
        names = [name.strip() for name in header.values]
        _check_columns(path, names, required)
        positions = {name: names.index(name) for name in COLUMNS if name in names}
        parts = [_as_frame(path, part, positions, required) for part in _in_parts(rows)]
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not parts:
        raise CatalogError(f"{path}: has a header and no row; {_wanted()}")
    return pd.concat(parts, ignore_index=True)


def unused_columns(csv: Path | str) -> list[str]:
    """Names of a catalogue's columns that :func:`read_catalog` does not return, in their order."""
    header = next(read_rows(Path(csv)), None)
    names = [name.strip() for name in header.values] if header else []
    return [name for name in dict.fromkeys(names) if name and name not in COLUMNS]


def _in_parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield lists of rows, so that only one list at a time is in memory as Python objects."""
    while part := list(islice(rows, _PART_ROWS)):
        yield part


def _as_frame(
    path: Path, rows: list[Row], positions: dict[str, int], required: Sequence[str]
) -> pd.DataFrame:
    columns = {}
    for name, position in positions.items():
        values = [
            row.values[position].strip() if position < len(row.values) else "" for row in rows
        ]
        if name == "title" and _CONTROLS.search("".join(values)):
            values = [_plain_title(value) for value in values]
        columns[name] = pd.Series(values, dtype=str)
        if name in required and columns[name].str.contains(_UNDECODABLE, regex=False).any():
            raise CatalogError(f"{path}: column {name} is not UTF-8; save the file as UTF-8.")
        if name != "title":
            _check_controls(path, name, rows, values)
    return pd.DataFrame(columns)


def _plain_title(title: str) -> str:
    """A title with one kind of line break and no other control characters except tabs."""
    lines = title.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(_CONTROLS.sub(_UNDECODABLE, line) for line in lines)


def _check_controls(path: Path, name: str, rows: list[Row], values: list[str]) -> None:
    """Refuse control characters except tabs, naming their lines."""
    if not _CONTROLS.search("".join(values)):
        return
    lines = [row.line for row, value in zip(rows, values, strict=True) if _CONTROLS.search(value)]
    few = ", ".join(f"{line:,}" for line in lines[:10]) + (", ..." if len(lines) > 10 else "")
    broken = any("\n" in value or "\r" in value for value in values)
    what = "a line break or another control character" if broken else "a control character"
    hint = " Perhaps a quote opens in one row and closes in a later one."
    raise CatalogError(
        f"{path}: column {name} holds {what} in the {'row' if len(lines) == 1 else 'rows'} of "
        f"line {few}; remove it.{hint if broken else ''}"
    )


def _check_start(path: Path) -> None:
    """Refuse a file whose first bytes show that it is not a CSV."""
    with path.open("rb") as file:
        kind = not_csv(path, file.read(_START_BYTES))
    if kind:
        raise CatalogError(f"{path}: {kind}")


def _check_fields(path: Path, header: bytes) -> None:
    """Refuse a header with very many fields, to whose length each short row is padded."""
    fields = header.count(b",") + 1
    if fields > _MOST_FIELDS:
        raise CatalogError(f"{path}: has {fields:,} columns; this is not a catalogue. {_wanted()}")


def _check_lines(path: Path) -> None:
    """Refuse a line that is too long before the CSV reader loads it into memory.

    :raises CatalogError: naming the line.
    """
    lines, length = 1, 0
    with path.open("rb") as file:
        while block := file.read(_LONGEST_LINE):
            # Only the position of the last line end in the block matters, of whatever kind.
            first = re.search(rb"[\r\n]", block)
            if lines == 1 and not length:
                _check_fields(path, block[: first.start()] if first else block)
            if length + (first.start() if first else len(block)) > _LONGEST_LINE:
                raise CatalogError(
                    f"{path}: line {lines} is longer than {_LONGEST_LINE:,} bytes; this is not "
                    "a catalogue."
                )
            lines += block.count(b"\n")
            last = max(block.rfind(b"\n"), block.rfind(b"\r"))
            length = len(block) - 1 - last if last >= 0 else length + len(block)


def _check_columns(path: Path, names: list[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing and any(mark in name for name in names for mark in _NOT_UTF8):
        raise CatalogError(f"{path}: the header is not UTF-8; save the file as UTF-8.")
    if missing:
        found = ", ".join(repr(name) for name in names[:10]) or "none"
        advice = _header_advice(path, names, missing)
        raise CatalogError(
            f"{path}: column {' and '.join(missing)} is missing; found: {found}. {advice}"
        )
    twice = [name for name in COLUMNS if names.count(name) > 1]
    if twice:
        raise CatalogError(
            f"{path}: the header names {' and '.join(twice)} more than once; rename or remove all "
            "but one."
        )


def _header_advice(path: Path, names: list[str], missing: Sequence[str]) -> str:
    """Advice for a header that lacks required columns."""
    if separator := other_separator(path, names[0]):
        return separator
    plain = {name.strip("'\"` ").lower(): name for name in names}
    if all(name in plain for name in missing):
        if any(name.startswith("'") for name in names):
            return "Its values are in single quotes; a CSV has double quotes or none."
        renamed = ", ".join(f"{plain[name]!r} to {name}" for name in missing)
        return f"Rename {renamed} in the header."
    if names[0].startswith("#"):
        return "Remove the comment: the first line must name the columns."
    if any(_FILE_NAME.search(name) for name in names):
        return f"The header is missing: the first line must name the columns; {_wanted()}"
    return f"Rename columns that have other names in the header; {_wanted()}"


def _wanted() -> str:
    return (
        f"a catalogue is a comma-separated file with the columns {', '.join(COLUMNS)}, "
        f"of which {' and '.join(REQUIRED)} are required."
    )
