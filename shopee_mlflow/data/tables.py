"""Open a table as rows of text: CSV with any usual separator, JSON lines or Parquet."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ..errors import CatalogError
from .csv_rows import SEPARATORS, Row, read_rows
from .file_kinds import not_csv
from .photo_files import SPECIAL_FILE, file_problem

# Endings of the names of tables that can be read.
TABLE_NAME = re.compile(r"\.(csv|tsv|jsonl?|ndjson)(\.gz)?$|\.(parquet|pq)$", re.IGNORECASE)

_GZIP, _PARQUET, _TAR = b"\x1f\x8b", b"PAR1", b"ustar"
_START_BYTES = 4096
# In bytes. Titles rarely have more than a few hundred characters.
_LONGEST_LINE = 2**20
# A few kilobytes of gzip can expand to gigabytes.
_MOST_UNPACKED = 2 * 2**30
# The keys of the first objects are the columns of a JSON file.
_FIRST_OBJECTS = 1000
_PARQUET_BATCH = 50_000


@dataclass(frozen=True)
class Table:
    """A table that is open for reading.

    :ivar names: its columns, stripped; empty for an empty file.
    :ivar read: positions of columns -> rows with the values of these columns, as text.
    :ivar unit: what :attr:`Row.line` counts, from 1: ``line`` or ``row``.
    """

    names: list[str]
    read: Callable[[Sequence[int]], Iterator[Row]]
    unit: str = "line"


def open_table(path: Path, known: Collection[str] = ()) -> Table:
    """Open a table; its kind is recognized by its content, whatever its name.

    :param known: names of columns in lower case, by which the separator of a CSV is chosen.
    :raises CatalogError: when it is another kind of file, or cannot be read as a table.
    :raises OSError: when it cannot be read at all.
    """
    start = check_table_kind(path)
    if start.startswith(_PARQUET):
        return _open_parquet(path)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    with _reading_gzip(path):
        if text.startswith(b"["):
            return _open_json_array(path)
        _check_lines(path)
        return _open_json_lines(path) if text.startswith(b"{") else _open_csv(path, known)


def check_table_kind(path: Path) -> bytes:
    """Check by its first bytes that a file may be a table.

    :returns: these bytes, unpacked if it is a gzip file.
    :raises CatalogError: when it is another kind of file.
    :raises OSError: when it cannot be read at all.
    """
    if file_problem(path) == SPECIAL_FILE:
        raise CatalogError(f"{path}: is {SPECIAL_FILE}; a table must be a file.")
    with path.open("rb") as file:
        if file.read(len(_PARQUET)) == _PARQUET:
            return _PARQUET
    with _reading_gzip(path):
        start = _start_of(path)
    if kind := not_csv(path, start):
        raise CatalogError(f"{path}: {kind}")
    if start[257:262] == _TAR:
        raise CatalogError(f"{path}: is a tar archive. Unpack it with: tar -xf {path.name}")
    return start


@contextmanager
def _reading_gzip(path: Path) -> Iterator[None]:
    """Raise errors of damaged gzip files as CatalogError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CatalogError(f"{path}: is a damaged gzip file ({error}).") from error


def _open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked if it is a gzip file."""
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


@contextmanager
def _open_text(path: Path) -> Iterator[TextIO]:
    with (
        _open_bytes(path) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", errors="replace", newline="") as text,
    ):
        yield text


def _start_of(path: Path) -> bytes:
    with _open_bytes(path) as file:
        return file.read(_START_BYTES)


def _check_lines(path: Path) -> None:
    """Refuse a line that is too long before it is loaded into memory, and a gzip bomb.

    :raises CatalogError: naming the line.
    """
    lines, length, total = 1, 0, 0
    with _open_bytes(path) as file:
        limit = _MOST_UNPACKED if isinstance(file, gzip.GzipFile) else math.inf
        while block := file.read(_LONGEST_LINE):
            # Only the position of the last line end in the block matters, of whatever kind.
            first = re.search(rb"[\r\n]", block)
            if length + (first.start() if first else len(block)) > _LONGEST_LINE:
                raise CatalogError(
                    f"{path}: line {lines} is longer than {_LONGEST_LINE:,} bytes; this is not "
                    "a catalogue."
                )
            lines += block.count(b"\n")
            last = max(block.rfind(b"\n"), block.rfind(b"\r"))
            length = len(block) - 1 - last if last >= 0 else length + len(block)
            total += len(block)
            if total > limit:
                raise CatalogError(f"{path}: unpacks to more than {_MOST_UNPACKED:,} bytes.")


def _open_csv(path: Path, known: Collection[str]) -> Table:
    """A CSV; a first line such as ``sep=;``, as Excel writes it, names the separator."""
    separator, skip = _separator(path, known)
    with _open_text(path) as file:
        header = next(read_rows(file, path, separator, skip), None)
    names = [name.strip() for name in header.values] if header else []

    def read(positions: Sequence[int]) -> Iterator[Row]:
        with _open_text(path) as file:
            for row in islice(read_rows(file, path, separator, skip), 1, None):
                count = len(row.values)
                yield Row(row.line, [row.values[p] if p < count else "" for p in positions])

    return Table(names, read)


def _separator(path: Path, known: Collection[str]) -> tuple[str, int]:
    """The separator of a CSV, and the number of lines before its header.

    The separator is the one by which the header has the most known names, then the most fields.
    """
    lines = _start_of(path).decode("utf-8-sig", "replace").lstrip().splitlines()
    header = lines[0] if lines else ""
    named = re.fullmatch(r"\"?sep=([,;|\t])\"?", header.strip(" "), re.IGNORECASE)
    if named:
        return named[1], 1

    def fit(separator: str) -> tuple[int, int]:
        fields = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        return sum(field.strip().lower() in known for field in fields), len(fields)

    return max(SEPARATORS, key=fit), 0


def _open_json_lines(path: Path) -> Table:
    def objects() -> Iterator[tuple[int, dict[str, Any]]]:
        with _open_bytes(path) as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                yield number, _json_object(path, f"line {number}", line)

    return _table_of_objects(path, objects, "line")


def _open_json_array(path: Path) -> Table:
    with _open_bytes(path) as file:
        text = file.read(_MOST_UNPACKED)
    try:
        items = json.loads(text.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        raise CatalogError(f"{path}: is not valid JSON ({error}).") from error
    wrong = next((n for n, item in enumerate(items, 1) if not isinstance(item, dict)), None)
    if wrong:
        raise CatalogError(f"{path}: item {wrong} is no JSON object such as {_EXAMPLE}.")
    return _table_of_objects(path, lambda: iter(enumerate(items, 1)), "row")


_EXAMPLE = '{"image": "a.jpg", "label_group": "7"}'


def _json_object(path: Path, where: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        raise CatalogError(
            f"{path}: is not JSON lines ({where}: {error}). Each line must be an object such as "
            f"{_EXAMPLE}."
        ) from error
    if not isinstance(value, dict):
        raise CatalogError(f"{path}: {where} is no JSON object such as {_EXAMPLE}.")
    return value


def _table_of_objects(
    path: Path, objects: Callable[[], Iterator[tuple[int, dict[str, Any]]]], unit: str
) -> Table:
    first = islice(objects(), _FIRST_OBJECTS)
    keys = list(dict.fromkeys(key for _, item in first for key in item))

    def read(positions: Sequence[int]) -> Iterator[Row]:
        wanted = [keys[position] for position in positions]
        for number, item in objects():
            values = [_text(path, key, f"{unit} {number}", item.get(key)) for key in wanted]
            yield Row(number, values)

    return Table([key.strip() for key in keys], read, unit)


def _open_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise CatalogError(
            f"{path}: is a Parquet file, and reading it needs the package pyarrow. Install it "
            "with: pip install pyarrow"
        ) from error
    try:
        names = [str(name) for name in ParquetFile(path).schema_arrow.names]
    except ArrowException as error:
        raise CatalogError(f"{path}: is a damaged Parquet file ({error}).") from error

    def read(positions: Sequence[int]) -> Iterator[Row]:
        wanted = [names[position] for position in positions]
        number = 0
        try:
            for batch in ParquetFile(path).iter_batches(_PARQUET_BATCH, columns=wanted):
                columns = [batch.column(name).to_pylist() for name in wanted]
                for values in zip(*columns, strict=True):
                    number += 1
                    pairs = zip(wanted, values, strict=True)
                    where = f"row {number}"
                    yield Row(number, [_text(path, name, where, value) for name, value in pairs])
        except ArrowException as error:
            raise CatalogError(f"{path}: is a damaged Parquet file ({error}).") from error

    return Table([name.strip() for name in names], read, "row")


def _text(path: Path, column: str, where: str, value: object) -> str:
    """A value as text; missing values are empty.

    :raises CatalogError: for a list or a mapping, such as a photo stored in the table.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        # JSON may hold halves of surrogate pairs, which are no text and cannot be written.
        return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (bytes, dict, list, tuple)):
        raise CatalogError(
            f"{path}: column {column} holds a {type(value).__name__} in {where}, and must hold "
            "text or numbers; photos must be files."
        )
    return str(value)
