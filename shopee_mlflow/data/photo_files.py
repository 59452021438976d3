"""Map the names of photos in a catalogue to files in the folder of photos, never outside it.

Paths in the CSV must not leave the folder. Links in the folder are trusted: those of DVC, git-annex
and dataset hubs are followed wherever they point.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..console import printable
from .near_names import Reading, find_reading

NO_FILE = "no such file"
# Opening one may wait forever, and it cannot be read twice.
SPECIAL_FILE = "a pipe or a device"


@dataclass(frozen=True)
class PhotoFiles:
    """The files of a list of names, one for each name.

    :ivar files: paths; None if the name leaves the folder.
    :ivar problems: why there is no file to read; empty if there is one.
    :ivar note: how names that differ from file names were matched, or how a name differs from that
        of a file; empty if all names match exactly.
    """

    files: list[Path | None]
    problems: list[str]
    note: str

    def found(self) -> list[Path | None]:
        """The files that exist; None for all other names."""
        return [
            None if problem else file
            for file, problem in zip(self.files, self.problems, strict=True)
        ]


def find_photo_files(folder: Path, names: Sequence[str]) -> PhotoFiles:
    """Look up names exactly, and the missing ones by the one reading that matches them.

    A reading ignores, for instance, a missing suffix, a leading folder, backslashes or upper and
    lower case; see :mod:`~shopee_mlflow.data.near_names`.
    """
    root = folder.resolve()
    files = [inside_folder(root, name) for name in names]
    problems = [OUTSIDE if file is None else file_problem(file) for file in files]
    missing = dict.fromkeys(
        name for name, problem in zip(names, problems, strict=True) if problem in _MAY_BE_MISREAD
    )
    missing.pop("", None)
    if not missing:
        return PhotoFiles(files, problems, "")
    matched = {file for file, problem in zip(files, problems, strict=True) if not problem}
    unmatched = [file for file in list_files(root) if root / file not in matched]
    reading = find_reading(list(missing), unmatched, folder.name, alone=not matched)
    if reading is None:
        return PhotoFiles(files, problems, "")
    for row, name in enumerate(names):
        if reading.files.get(name):
            files[row] = root / reading.files[name]
            problems[row] = file_problem(root / reading.files[name])
    return PhotoFiles(files, problems, _note(reading))


def _note(reading: Reading) -> str:
    name, file = (printable(text) for text in reading.example)
    if not reading.words:
        return f"no name matches: the CSV names {name!r}, the folder holds {file!r}"
    if reading.files:
        count = f"{len(reading.files):,} file {'name' if len(reading.files) == 1 else 'names'}"
        return f"{count} read with {reading.words}: {name!r} is {file!r}"
    return f"{name!r} does not exist, but {file!r} does; they differ by {reading.words}"


OUTSIDE = "its path leaves the folder of photos"
_MAY_BE_MISREAD = (OUTSIDE, NO_FILE)


def inside_folder(root: Path, name: str) -> Path | None:
    """The path of a name in the folder; None when it is absolute or leaves the folder by ``..``.

    Symbolic links are not resolved.
    """
    if not name or "\0" in name:
        return None
    path = PurePath(os.path.normpath(name))
    if path.anchor or not path.parts or path.parts[0] == "..":
        return None
    return root / path


def file_problem(path: Path) -> str:
    """Why a path is not an accessible regular file; empty if it is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _dead_link(path) or NO_FILE
    except PermissionError:
        return "no permission"
    except (OSError, ValueError) as error:
        # A name that is too long, or a link to itself.
        return str(getattr(error, "strerror", None) or error).lower()
    if stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else SPECIAL_FILE


def _dead_link(path: Path) -> str:
    try:
        target = os.readlink(path)  # noqa: PTH115 - text, which need not be a path
    except OSError:
        return ""
    return f"a link to {printable(target)}, which does not exist"


def list_files(root: Path) -> Iterable[str]:
    """Paths of all files below a folder, relative to it; linked folders are visited once."""
    seen = set()
    for path, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        start = Path(path).relative_to(root)
        yield from ((start / file).as_posix() for file in sorted(files))
