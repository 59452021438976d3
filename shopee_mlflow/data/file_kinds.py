"""Recognize files that are not CSV, and suggest a command that converts them."""

from __future__ import annotations

import shlex
from pathlib import Path

_TO_CSV = (
    'python -c "import pandas; pandas.read_{kind}({file!r}{more}).to_csv({csv!r}, index=False)"'
)

# First bytes, what the file is, and what to do; {file} is its name, quoted for a shell.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "a gzip file", "Unpack it with: python -m gzip -d {file}"),
    (b"BZh", "a bzip2 file", "Unpack it with: bunzip2 -k {file}"),
    (b"\xfd7zXZ\0", "an xz file", "Unpack it with: unxz -k {file}"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "Unpack it with: unzstd {file}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it with: 7z x {file}"),
    (b"Rar!", "a RAR archive", "Unpack it with: unrar x {file}"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls)", "Save it as 'CSV UTF-8' in Excel."),
    (b"PAR1", "a Parquet file", "parquet"),
    (b"ARROW1", "a Feather (Arrow) file", "feather"),
    (b"SQLite format 3", "an SQLite database", "Export the table as CSV."),
    (b"\x89HDF", "an HDF5 file", "Export the table as CSV."),
    (b"%PDF", "a PDF document", "Export the table as CSV."),
    (b"\xff\xd8\xff", "a JPEG photo", "Name a CSV file, or a folder with train.csv."),
    (b"\x89PNG", "a PNG picture", "Name a CSV file, or a folder with train.csv."),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "Fetch it with: git lfs pull",
    ),
    (b"<", "an HTML or XML page", "The download failed or needs a login; fetch the CSV again."),
    (b"{", "a JSON file", "json"),
    (b"[", "a JSON file", "json"),
)
# Contents of a zip archive that distinguish a workbook from a zipped CSV.
_WORKBOOKS = (
    (b"xl/", "an Excel workbook", "Save it as 'CSV UTF-8' in Excel."),
    (b"opendocument.spreadsheet", "an OpenDocument spreadsheet", "Save it as CSV (UTF-8)."),
    (b"[Content_Types].xml", "an Office document", "Save it as CSV (UTF-8)."),
)


def not_csv(path: Path, start: bytes) -> str:
    """What a file is, if it is not a CSV, and what to do; empty if it may be a CSV.

    :param start: the first bytes of the file, a few thousand.
    """
    if start.startswith(b"PK\x03\x04"):
        kind, advice = next(
            ((kind, advice) for mark, kind, advice in _WORKBOOKS if mark in start),
            ("a zip archive", "Unpack it with: python -m zipfile -e {file} {folder}"),
        )
        return _sentence(path, kind, advice)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, kind, advice in _KINDS:
        if text.startswith(mark):
            return _sentence(path, kind, advice, lines=mark == b"{")
    return ""


def _sentence(path: Path, kind: str, advice: str, lines: bool = False) -> str:
    if advice in ("parquet", "feather", "json"):
        new = path.with_suffix(".csv")
        if new == path:
            new = path.with_name(f"{path.stem}-converted.csv")
        # dtype=False keeps numbers as they are written; one object per line is JSON Lines.
        more = f", dtype=False, lines={lines}" if advice == "json" else ""
        advice = "Convert it with: " + _TO_CSV.format(
            kind=advice, file=str(path), more=more, csv=str(new)
        )
    file, folder = shlex.quote(str(path)), shlex.quote(str(path.parent))
    return f"is {kind}. {advice.format(file=file, folder=folder) if '{' in advice else advice}"


def other_separator(path: Path, header: str) -> str:
    """Advice for a table with another separator than commas; empty for any other table."""
    skip = ""
    if header.lower().startswith("sep="):
        separator, skip = header[4:5], ", skiprows=1"
    else:
        separator = max(_SEPARATORS, key=header.count)
    if separator not in _SEPARATORS or (not skip and separator not in header):
        return ""
    new = str(path.with_name(f"{path.stem}-commas.csv"))
    return (
        f"Its fields are separated by {_SEPARATORS[separator]}. Convert it with: "
        f'python -c "import pandas; pandas.read_csv({str(path)!r}, sep={separator!r}{skip}, '
        f'dtype=str, keep_default_na=False).to_csv({new!r}, index=False)"'
    )


_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
