"""The catalogue's file: found, and read as text whatever wrote it, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from ..errors import CatalogError

REQUIRED = ("image", "label_group")
COLUMNS = ("posting_id", "image", "image_phash", "title", "label_group")
CSV_NAME = "train.csv"
IMAGES_NAME = "train_images"

# In bytes; titles of a few hundred letters are long.
_LONGEST_LINE = 2**20
_MOST_FIELDS = 1000
_PART_ROWS = 50_000
_UNDECODABLE = "\ufffd"
# Half of the bytes of a UTF-16 file, such as spreadsheets save, are zeros.
_NOT_UTF8 = (_UNDECODABLE, "\0")


def find_catalog(data: str, images: str | None = None) -> tuple[Path, Path]:
    """The CSV file and the folder of photos that ``data`` and ``images`` name.

    :param data: a folder with train.csv and train_images/, or a CSV file.
    :param images: the folder of photos; None: train_images beside the CSV.
    :raises CatalogError: when one of them is not there.
    """
    csv = find_csv(data)
    with _looking_for(data):
        folder = Path(images).expanduser() if images else csv.parent / IMAGES_NAME
        if not folder.is_dir():
            raise CatalogError(
                f"images={folder}: no such folder of photos, looked for from {Path.cwd()}. Name "
                "it with the option images."
            )
        return csv, folder


def find_csv(data: str) -> Path:
    """The CSV file that ``data`` names; a CatalogError where it is not there."""
    with _looking_for(data):
        place = Path(data).expanduser()
        csv = place / CSV_NAME if place.is_dir() else place
        if not place.exists():
            raise CatalogError(
                f"data={data}: no such file or folder, looked for from {Path.cwd()}. Name a folder "
                f"with {CSV_NAME} and {IMAGES_NAME}/, or a CSV file."
            )
        if not csv.is_file():
            raise CatalogError(
                f"data={data}: the folder holds no {CSV_NAME}. If the catalogue has another name, "
                "name the CSV file itself in data and its photos in images."
            )
        return csv


@contextmanager
def _looking_for(data: str) -> Iterator[None]:
    """No permission, a name that is too long, or the home of a user who is not there."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CatalogError(f"data={data}: cannot be looked for ({error}).") from error


def read_catalog(csv: Path | str, required: Sequence[str] = REQUIRED) -> pd.DataFrame:
    """Read a catalogue as text: a frame with the columns of :data:`COLUMNS` that are there.

    A byte-order mark, any line ends and quoted commas are understood. Values are stripped;
    labels stay text, so ``007`` and ``7`` are two groups.

    :raises CatalogError: when it cannot be read, is empty or lacks a required column.
    """
    path = Path(csv)
    try:
        _check_lines(path)
        parts = list(_read_parts(path, required))
    except OSError as error:
        raise CatalogError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except pd.errors.EmptyDataError as error:
        raise CatalogError(f"{path}: the file is empty; {_wanted()}") from error
    except (pd.errors.ParserError, ValueError) as error:
        raise CatalogError(f"{path}: is no valid CSV ({str(error).strip()}).") from error
    return pd.concat(parts, ignore_index=True)


def _read_parts(path: Path, required: Sequence[str]) -> Iterator[pd.DataFrame]:
    """The rows in parts, so that no more than one part is in memory with the columns that nobody
    needs, and as the reader has it."""
    with pd.read_csv(
        path,
        dtype=str,
        keep_default_na=False,
        skipinitialspace=True,
        encoding="utf-8-sig",
        encoding_errors="replace",
        compression=None,
        chunksize=_PART_ROWS,
    ) as reader:
        for part in reader:
            part = part.rename(columns=lambda name: str(name).strip())
            part = part.loc[:, ~part.columns.duplicated()]
            _check_columns(path, part, required)
            present = [name for name in COLUMNS if name in part]
            part = part[present].fillna("").apply(lambda column: column.str.strip())
            for name in required:
                if part[name].str.contains(_UNDECODABLE, regex=False).any():
                    raise CatalogError(
                        f"{path}: column {name} is not UTF-8; save the file as UTF-8."
                    )
            yield part


def _check_fields(path: Path, header: bytes) -> None:
    """Refuse a header of very many fields: each short row would be filled up to as many."""
    fields = header.count(b",") + 1
    if fields > _MOST_FIELDS:
        raise CatalogError(f"{path}: has {fields:,} columns; this is no catalogue. {_wanted()}")


def _check_lines(path: Path) -> None:
    """Refuse a line without end before a reader takes it into memory whole.

    :raises CatalogError: naming the line.
    """
    lines, length = 1, 0
    with path.open("rb") as file:
        while block := file.read(_LONGEST_LINE):
            # Any line end will do; what counts is where the last one is.
            first = re.search(rb"[\r\n]", block)
            if lines == 1 and not length:
                _check_fields(path, block[: first.start()] if first else block)
            if length + (first.start() if first else len(block)) > _LONGEST_LINE:
                raise CatalogError(
                    f"{path}: line {lines} is longer than {_LONGEST_LINE:,} bytes; this is no "
                    "catalogue."
                )
            lines += block.count(b"\n")
            last = max(block.rfind(b"\n"), block.rfind(b"\r"))
            length = len(block) - 1 - last if last >= 0 else length + len(block)


def _check_columns(path: Path, frame: pd.DataFrame, required: Sequence[str]) -> None:
    if not isinstance(frame.index, pd.RangeIndex):
        # pandas takes the surplus for row names and would shift every column.
        raise CatalogError(f"{path}: is no valid CSV (rows have more fields than the header).")
    missing = [name for name in required if name not in frame]
    if missing and any(mark in name for name in frame.columns for mark in _NOT_UTF8):
        raise CatalogError(f"{path}: the header is not UTF-8; save the file as UTF-8.")
    if missing:
        found = ", ".join(repr(name) for name in list(frame.columns)[:10]) or "none"
        raise CatalogError(
            f"{path}: column {' and '.join(missing)} is missing; found: {found}. {_wanted()}"
        )
    if frame.empty:
        raise CatalogError(f"{path}: has a header and no row; {_wanted()}")


def _wanted() -> str:
    return (
        f"a catalogue is a comma-separated file with the columns {', '.join(COLUMNS)}, "
        f"of which {' and '.join(REQUIRED)} are required."
    )
