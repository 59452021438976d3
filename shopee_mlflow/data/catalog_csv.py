"""Find the table of a catalogue and the folder of its photos, and read the table as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pandas as pd

from ..errors import CatalogError
from ..options import expand_path, nearest
from .columns import KNOWN, REQUIRED, ColumnChoice, find_columns, wanted
from .csv_rows import Row
from .tables import TABLE_NAME, open_table

CSV_NAME = "train.csv"
IMAGES_NAME = "train_images"
# Tables of any kind, also those that cannot be read before they are converted.
ANY_TABLE = re.compile(r"\.(csv|tsv|xlsx?|ods|parquet|pq|jsonl?|ndjson)(\.\w+)?$", re.IGNORECASE)

_PART_ROWS = 50_000
_UNDECODABLE = "\ufffd"
# The C0 and C1 control characters except the tab, and DEL. They break rows of tables and control
# terminals.
CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_FORMS = (
    f"Name a folder with {CSV_NAME} and {IMAGES_NAME}/, a folder with a folder of photos for each "
    "label, or a table (CSV, Parquet, JSON lines)."
)
# Common names of a folder of photos beside a table.
_IMAGE_FOLDERS = ("images", "photos", "imgs", "img", "pictures")


@dataclass(frozen=True)
class CatalogTable:
    """A table, read as text.

    :ivar rows: the columns of :data:`COLUMNS` and :data:`OPTIONAL` that the table has, with these
        names.
    :ivar guessed: column -> its name in the table, for columns with another name.
    :ivar unused: names of the columns that are not read.
    """

    rows: pd.DataFrame
    guessed: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def find_table(data: str, option: str = "data") -> Path:
    """Find the table that ``data`` names: a file, or the table in a folder.

    In a folder, train.csv is preferred, then train with another suffix, then the only table.

    :param option: name of the option, for messages.
    :raises CatalogError: when there is no table, or several.
    """
    path = existing_path(data, option)
    with looking_for(data, option):
        if not path.is_dir():
            return path
        found = tables_in(path)
        if len(found) == 1:
            return found[0]
        others = sorted(file.name for file in path.iterdir() if ANY_TABLE.search(file.name))[:5]
        raise CatalogError(
            f"{option}={data}: the folder holds no {CSV_NAME}"
            + (f", but {', '.join(others)}" if others else "")
            + ". If the catalogue has another name, name the table itself in data and the folder "
            "of its photos in images. If it has a folder of photos for each label, name the folder "
            "that holds these folders."
        )


def existing_path(data: str, option: str = "data") -> Path:
    """The file or folder that an option names.

    :raises CatalogError: when it does not exist.
    """
    with looking_for(data, option):
        path = expand_path(data)
        if not path.exists():
            beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
            close = " or ".join(str(path.with_name(name)) for name in nearest(path.name, beside))
            hint = f"Did you mean {close}?" if close else _FORMS
            where = f"no such file or folder, relative to {Path.cwd()}"
            raise CatalogError(f"{option}={data}: {where}. {hint}")
    return path


def tables_in(folder: Path) -> list[Path]:
    """The tables in a folder: only train.csv if it exists, else only train with another suffix."""
    if (folder / CSV_NAME).is_file():
        return [folder / CSV_NAME]
    found = sorted(
        file for file in folder.iterdir() if TABLE_NAME.search(file.name) and file.is_file()
    )
    train = [file for file in found if file.name.lower().startswith("train.")]
    return train if len(train) == 1 else found


def find_images(table: Path, images: str | None = None, names: Sequence[str] = ()) -> Path:
    """Find the folder of a table's photos.

    :param images: the folder. With None, the first that exists: the folder named after the table,
        such as ``test_images`` for test.csv; ``train_images``; the only folder with a common name;
        the folder of the table, if it holds photos.
    :param names: some file names of the table.
    :raises CatalogError: when there is no such folder.
    """
    with looking_for(images or str(table.parent), "images"):
        folder = expand_path(images) if images else _images_beside(table, names)
        if not folder.is_dir():
            raise CatalogError(
                f"images={folder}: no such folder of photos, relative to {Path.cwd()}. Name "
                "it with the option images."
            )
    return folder


def _images_beside(table: Path, names: Sequence[str]) -> Path:
    # Kaggle's layout: test_images belongs to test.csv, train_images to any other.
    usual = table.with_name(IMAGES_NAME)
    own = table.with_name(f"{table.name.partition('.')[0]}_images")
    others = [table.with_name(name) for name in _IMAGE_FOLDERS]
    for folder in (own, usual):
        if folder.is_dir():
            return folder
    there = [folder for folder in others if folder.is_dir()]
    if len(there) == 1:
        return there[0]
    here = any((table.parent / name).is_file() for name in names)
    return table.parent if here else usual


@contextmanager
def looking_for(data: str, option: str = "data") -> Iterator[None]:
    """Raise errors of the file system as CatalogError, such as a missing permission."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CatalogError(f"{option}={data}: cannot be accessed ({error}).") from error


def read_catalog(
    path: Path | str, required: Sequence[str] = REQUIRED, choice: ColumnChoice | None = None
) -> pd.DataFrame:
    """Read a catalogue as text: the rows of :func:`read_table`."""
    return read_table(path, required, choice).rows


def read_table(
    path: Path | str, required: Sequence[str] = REQUIRED, choice: ColumnChoice | None = None
) -> CatalogTable:
    """Read a catalogue's table as text.

    The table may be CSV with commas, semicolons, tabs or vertical bars, JSON lines, or Parquet; CSV
    and JSON lines may be gzipped. In a CSV, a byte-order mark, all kinds of line ends and quoted
    separators are supported. Values are stripped. Labels stay text, so ``007`` and ``7`` are two
    groups. Titles may hold line breaks, which become ``\\n``; their other control characters become
    U+FFFD. In all other values, control characters except tabs are refused, so that manifests,
    tables and logs are read back unchanged.

    :param choice: names of columns; by default the common ones, see :func:`find_columns`.
    :raises CatalogError: when the table cannot be read, is empty, lacks a required column, or has
        ambiguous rows, with their line numbers.
    """
    path, choice = Path(path), choice or ColumnChoice()
    try:
        table = open_table(path, KNOWN | choice.names())
        if not table.names:
            raise CatalogError(f"{path}: the file is empty; {wanted()}")
        found = find_columns(path, table.names, choice, required)
        columns = list(found.positions)
        rows = table.read(list(found.positions.values()))
        parts = [_as_frame(path, part, columns, required, table.unit) for part in _in_parts(rows)]
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not parts:
        raise CatalogError(f"{path}: has a header but no rows; {wanted()}")
    return CatalogTable(pd.concat(parts, ignore_index=True), found.guessed, found.unused)


def _in_parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yield lists of rows, so that only one list at a time is in memory as Python objects."""
    while part := list(islice(rows, _PART_ROWS)):
        yield part


def _as_frame(
    path: Path, rows: list[Row], names: Sequence[str], required: Sequence[str], unit: str
) -> pd.DataFrame:
    columns = {}
    for position, name in enumerate(names):
        values = [row.values[position].strip() for row in rows]
        if name == "title" and CONTROLS.search("".join(values)):
            values = [_plain_title(value) for value in values]
        columns[name] = pd.Series(values, dtype=str)
        if name in required and columns[name].str.contains(_UNDECODABLE, regex=False).any():
            raise CatalogError(f"{path}: column {name} is not UTF-8; save the file as UTF-8.")
        if name != "title":
            _check_controls(path, name, rows, values, unit)
    return pd.DataFrame(columns)


def _plain_title(title: str) -> str:
    """A title with one kind of line break and no other control characters except tabs."""
    lines = title.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(CONTROLS.sub(_UNDECODABLE, line) for line in lines)


def _check_controls(path: Path, name: str, rows: list[Row], values: list[str], unit: str) -> None:
    """Refuse control characters except tabs, naming their lines."""
    if not CONTROLS.search("".join(values)):
        return
    lines = [row.line for row, value in zip(rows, values, strict=True) if CONTROLS.search(value)]
    few = ", ".join(f"{line:,}" for line in lines[:10]) + (", ..." if len(lines) > 10 else "")
    plural = "row" if len(lines) == 1 else "rows"
    where = f"the {plural} of line {few}" if unit == "line" else f"{plural} {few}"
    broken = any("\n" in value or "\r" in value for value in values)
    what = "a line break or another control character" if broken else "a control character"
    hint = " Perhaps a quote opens in one row and closes in a later one."
    raise CatalogError(
        f"{path}: column {name} holds {what} in {where}; remove it.{hint if broken else ''}"
    )
