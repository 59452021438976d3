"""Find photos to classify in a file, a folder, a pattern or a table, in a fixed order."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import escape, glob, has_magic
from itertools import islice
from pathlib import Path

import numpy as np

from ..data_config import AUTO
from ..errors import CatalogError, ImageError
from ..options import expand_path
from .catalog_csv import find_images, read_catalog
from .columns import ColumnChoice
from .images import SUFFIXES, open_photo, read_pixels
from .photo_files import find_photo_files
from .tables import TABLE_NAME

# Files with these suffixes are photos; if one does not decode, its row has an error. Any other file
# is a photo if it can be opened as one.
_PHOTO_SUFFIXES = {*SUFFIXES, ".jfif", ".jpe", ".apng", ".mpo", ".avif", ".heic", ".heif"}
# macOS writes the metadata of photo.jpg into ._photo.jpg on file systems that cannot store it.
_METADATA_PREFIX = "._"
_KINDS_NAMED = 8
# A folder was named by mistake if fewer than one of so many files is a photo. It is judged with at
# least MANY_FILES files; no more than MOST_FILES are looked at.
FILES_PER_PHOTO, MANY_FILES, MOST_FILES = 50, 20_000, 200_000
# How many file names of a table are tried to find the folder of its photos.
_NAMES_TRIED = 50


@dataclass(frozen=True)
class Photo:
    """A photo to classify.

    :ivar name: its name in the output.
    :ivar file: its path; None if the path in a table leads out of the folder of photos.
    """

    name: str
    file: Path | None

    def read(self, size: int, resize: str) -> np.ndarray:
        """Read the pixels, see :func:`~shopee_mlflow.data.images.read_pixels`.

        :raises ImageError: when the photo cannot be read.
        """
        if self.file is None:
            raise ImageError("its path leaves the folder of photos")
        if _is_special(self.file):
            raise ImageError("not a regular file")
        return read_pixels(self.file, size, resize)

    def state(self) -> str:
        """A string that changes when the file is modified or replaced; empty without a file."""
        if self.file is None:
            return ""
        try:
            status = self.file.stat()
        except OSError:
            return ""
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


@dataclass(frozen=True)
class PhotoSource:
    """The photos of a source.

    :ivar photos: the photos, in a fixed order.
    :ivar key: name of the first column of the output.
    :ivar place: the folder that was searched for photos.
    :ivar passed_over: kind of skipped file -> number of such files.
    :ivar note: how names in the table were matched, if they differ from file names.
    """

    photos: list[Photo]
    key: str
    place: Path
    passed_over: Counter[str] = field(default_factory=Counter)
    note: str = ""

    def passed_over_in_words(self) -> str:
        """A sentence with the numbers of skipped files by kind; empty if there are none."""
        count = self.passed_over.total()
        if not count:
            return ""
        kinds = [f"{number:,} {kind}" for kind, number in self.passed_over.most_common()]
        more = [f"{len(kinds) - _KINDS_NAMED} more kinds"] if len(kinds) > _KINDS_NAMED else []
        words = "1 file was" if count == 1 else f"{count:,} files were"
        return f"{words} skipped as not photos: {', '.join(kinds[:_KINDS_NAMED] + more)}"


def find_photos(source: str, images: str | None = None, image_column: str = AUTO) -> PhotoSource:
    """Find the photos that ``source`` names.

    :param source: a photo, a folder of photos, a pattern such as ``shop/*.jpg``, or a table (CSV,
        Parquet, JSON lines) with a column of file names.
    :param images: the folder of a table's photos; None: see
        :func:`~shopee_mlflow.data.catalog_csv.find_images`.
    :param image_column: the column of file names; auto: ``image`` or another common name.
    :raises CatalogError: when there are no photos.
    """
    place = expand_path(source)
    if not source:
        raise CatalogError("source: is empty. Name a photo, a folder of photos or a table.")
    if _is_special(place):
        raise CatalogError(f"{source}: is not a regular file.")
    if place.is_dir():
        found = photos_below(place)
    elif TABLE_NAME.search(place.name):
        found = _from_table(place, images, ColumnChoice(image=image_column))
    elif place.is_file():
        found = PhotoSource([Photo(_text(source), place)], "image", place.parent)
    elif has_magic(source):
        found = _from_pattern(place)
    else:
        raise CatalogError(f"{source}: no such photo, folder or table, relative to {Path.cwd()}.")
    if not found.photos:
        words = found.passed_over_in_words()
        raise CatalogError(f"{source}: holds no photo" + (f" ({words})." if words else "."))
    return found


def photos_below(folder: Path) -> PhotoSource:
    """All photos in a folder and its subfolders, named and sorted by their relative paths."""
    passed_over: Counter[str] = Counter()
    named = ((_text(f.relative_to(folder).as_posix()), f) for f in files_below(folder, passed_over))
    photos = _only_photos(named, passed_over)
    return PhotoSource(
        sorted(photos, key=lambda photo: photo.name.split("/")), "image", folder, passed_over
    )


def check_photo_folder(folder: Path, source: str) -> None:
    """Check by names alone that a folder may be one of photos: a home folder or a disk is none.

    A file may be a photo if its suffix is that of one, or if it has none. Hidden folders do not
    count. Names are looked at up to a limit, so the check takes seconds.

    :param source: how the folder was named, for the error.
    :raises CatalogError: when there are many files, and hardly any of them may be a photo.
    """
    count = likely = 0
    for file in islice(files_below(folder), MOST_FILES):
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        count += 1
        likely += not file.suffix or has_photo_name(file)
    if count > MANY_FILES and likely * FILES_PER_PHOTO < count:
        raise CatalogError(
            f"{source}: is no folder of photos: of the first {count:,} files in it and below, only "
            f"{likely:,} may be photos. Name the folder with the table or the class folders."
        )


def _from_pattern(place: Path) -> PhotoSource:
    passed_over: Counter[str] = Counter()
    names = sorted(set(_matches(str(place))))
    named = ((_text(name), Path(name)) for name in names if not Path(name).is_dir())
    return PhotoSource(_only_photos(named, passed_over), "image", Path.cwd(), passed_over)


_ANY_FOLDERS = re.compile(r"(?:(?<=/)|^)\*\*(?=/|$)")


def _matches(pattern: str) -> Iterator[str]:
    """Paths that match a pattern; ``**`` is any folder below, each once, linked ones as well.

    ``glob`` itself would follow a link to a parent folder again and again.
    """
    found = _ANY_FOLDERS.search(pattern)
    if found is None:
        yield from glob(pattern)  # noqa: PTH207 - relative to any folder
        return
    start, rest = pattern[: found.start()], pattern[found.end() :]
    for top in glob(start) if start else ["."]:  # noqa: PTH207
        for folder in _folders_below(Path(top)):
            name = "" if folder == Path() else f"{escape(str(folder))}/"
            yield from _matches(name + (rest.lstrip("/") or "*"))


def _folders_below(top: Path) -> Iterator[Path]:
    """A folder and all below it, except hidden ones; linked folders are followed, each once."""
    yield top
    root = os.path.realpath(top)
    seen = {root}
    for path, folders, _ in os.walk(top, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            real = os.path.realpath(Path(path, name))
            # A linked folder that is itself below the top has its own name there.
            below = Path(path, name).is_symlink() and Path(real).is_relative_to(root)
            if below or real in seen:
                folders.remove(name)
            else:
                seen.add(real)
                yield Path(path, name)


def _from_table(path: Path, images: str | None, choice: ColumnChoice) -> PhotoSource:
    frame = read_catalog(path, ("image",), choice)
    folder = find_images(path, images, list(frame["image"].head(_NAMES_TRIED)))
    key = "posting_id" if "posting_id" in frame else "image"
    found = find_photo_files(folder, list(frame["image"]))
    photos = [Photo(name, file) for name, file in zip(frame[key], found.files, strict=True)]
    return PhotoSource(photos, key, folder, note=found.note)


def _only_photos(named: Iterable[tuple[str, Path]], passed_over: Counter[str]) -> list[Photo]:
    photos = []
    for name, file in named:
        kind = _kind_of_other(file)
        if kind is None:
            photos.append(Photo(name, file))
        else:
            passed_over[kind] += 1
    return photos


def files_below(folder: Path, passed_over: Counter[str] | None = None) -> Iterator[Path]:
    """All files in a folder and its subfolders; linked folders are followed, each once.

    :param passed_over: counts the folders that cannot be opened.
    """
    seen: set[tuple[int, int]] = set()
    unopened = Counter[str]() if passed_over is None else passed_over
    pending = [folder]

    def note(error: OSError) -> None:
        unopened[f"folder that cannot be opened ({error.strerror})"] += 1

    while pending:
        # Linked folders are visited last, so that photos are named by their real folders.
        links: list[Path] = []
        for start in pending:
            for path, folders, files in os.walk(start, onerror=note):
                status = Path(path).stat()
                if (status.st_dev, status.st_ino) in seen:
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                links += [Path(path, name) for name in sorted(folders) if _is_link(path, name)]
                yield from (Path(path, name) for name in files)
        pending = links


def _is_link(folder: str, name: str) -> bool:
    return Path(folder, name).is_symlink()


def has_photo_name(file: Path) -> bool:
    """Whether a file has the suffix of a photo."""
    return file.suffix.lower() in _PHOTO_SUFFIXES


def _kind_of_other(file: Path) -> str | None:
    """None for a photo, otherwise a description of the kind of file."""
    suffix = file.suffix.lower()
    if file.name.startswith(_METADATA_PREFIX):
        return "macOS metadata"
    if _is_special(file):
        return "pipe, device or socket"
    if has_photo_name(file) or _begins_as_photo(file):
        return None
    return _text(suffix) if suffix else "without suffix"


def _begins_as_photo(file: Path) -> bool:
    try:
        with open_photo(file):
            return True
    except ImageError:
        return False


def _is_special(path: Path) -> bool:
    """Whether a path is a pipe, a device or a socket, which may block forever when opened."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _text(name: str) -> str:
    """A file name as valid UTF-8 for the output, with other bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
