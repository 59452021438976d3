"""Recognize files that are not CSV, and suggest a command that converts them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_TO_CSV = 'python -c "import pandas; pandas.read_{kind}({file!r}).to_csv({csv!r}, index=False)"'

_CATALOG = (
    "Name a table of photos with their labels, or a folder that holds a folder of photos for each "
    "label."
)
_WEIGHTS = f"Weights belong to the option weights. {_CATALOG}"
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
    *(
        (start, "a photo", _CATALOG)
        for start in (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
    ),
    *(
        (b"\x80" + bytes([n]), "a Python pickle, perhaps with weights", _WEIGHTS)
        for n in range(2, 6)
    ),
    (b"\x93NUMPY", "a NumPy array", _CATALOG),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself",
        "Fetch it with: git lfs pull",
    ),
    (b"<", "an HTML or XML page", "The download failed or needs a login; fetch the CSV again."),
)
# Contents of a zip archive that distinguish it from a zipped CSV.
_ARCHIVES = (
    (b"data.pkl", "a PyTorch file: weights or a model", _WEIGHTS),
    (b".npy", "an archive of NumPy arrays", _CATALOG),
    (b"xl/", "an Excel workbook", "Save it as 'CSV UTF-8' in Excel."),
    (b"opendocument.spreadsheet", "an OpenDocument spreadsheet", "Save it as CSV (UTF-8)."),
    (b"[Content_Types].xml", "an Office document", "Save it as CSV (UTF-8)."),
)


# Kinds of text files, which hold no table.
_OPTIONS_FILE = ("a YAML file", f"A file of options belongs to the option config. {_CATALOG}")
_OTHER_SUFFIXES = {
    ".yaml": _OPTIONS_FILE,
    ".yml": _OPTIONS_FILE,
    ".ipynb": ("a Jupyter notebook", _CATALOG),
    ".py": ("a Python program", _CATALOG),
}
_CONTROLS = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f]")
_MOST_CONTROLS = 0.05


def not_csv(path: Path, start: bytes) -> str:
    """What a file is, if it is not a CSV, and what to do; empty if it may be a CSV.

    :param start: the first bytes of the file, a few thousand.
    """
    if start.startswith(b"PK\x03\x04"):
        kind, advice = next(
            ((kind, advice) for mark, kind, advice in _ARCHIVES if mark in start),
            ("a zip archive", "Unpack it with: python -m zipfile -e {file} {folder}"),
        )
        return _sentence(path, kind, advice)
    if found := _without_start(path, start):
        return _sentence(path, *found)
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    for mark, kind, advice in _KINDS:
        if text.startswith(mark):
            return _sentence(path, kind, advice)
    # UTF-16 has zeros, and a title may hold a control character.
    controls = len(_CONTROLS.findall(start)) / max(len(start), 1)
    return _sentence(path, "a binary file", _CATALOG) if controls > _MOST_CONTROLS else ""


def _without_start(path: Path, start: bytes) -> tuple[str, str] | None:
    """What a file is whose kind does not show in its first bytes, and what to do."""
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") < 1 << 28:
        return "a safetensors file with weights", _WEIGHTS
    if start[4:8] == b"ftyp":
        photo = start[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
        return "a photo" if photo else "a video", _CATALOG
    if start[:4] == b"RIFF":
        return "a photo" if start[8:12] == b"WEBP" else "a sound or a video", _CATALOG
    if start[:2] == b"BM" and start[6:10] == bytes(4):
        return "a photo", _CATALOG
    if path.suffix.lower() == ".onnx":
        return "an ONNX model, which cannot be trained", _CATALOG
    return _OTHER_SUFFIXES.get(path.suffix.lower())


def _sentence(path: Path, kind: str, advice: str) -> str:
    if advice in ("parquet", "feather"):
        new = path.with_suffix(".csv")
        if new == path:
            new = path.with_name(f"{path.stem}-converted.csv")
        advice = "Convert it with: " + _TO_CSV.format(kind=advice, file=str(path), csv=str(new))
    file, folder = shlex.quote(str(path)), shlex.quote(str(path.parent))
    return f"is {kind}. {advice.format(file=file, folder=folder) if '{' in advice else advice}"
