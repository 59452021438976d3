"""Decode photos once: uint8 pixels in the cache folder, mapped into memory.

The array's name is a digest of the photos' contents and of everything that affects the pixels, so
a stale array is never used. Photos are decoded from exactly the bytes that have this digest.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import imagehash
import numpy as np
from PIL import Image
from PIL import __version__ as pillow_version

from ..errors import ImageError
from .array_cache import RETRY, load_or_build
from .images import RECIPE, open_photo, read_pixels

_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_Out = TypeVar("_Out")

_MOST_A_TASK = 16
# The most photos named in a warning.
_NAMED = 5
# Number of items that are submitted at once, since queued tasks take memory.
_ROUND = 16_384


@dataclass(frozen=True)
class Pixels:
    """Decoded photos, in the order of the files.

    :ivar values: (N, size, size, 3) uint8, RGB; zeros where a photo does not decode.
    :ivar bad: position of a photo without pixels -> the reason.
    """

    values: np.ndarray
    bad: dict[int, str]


def load_pixels(
    files: Sequence[Path],
    contents: Sequence[str],
    size: int,
    *,
    resize: str = "stretch",
    cache: bool = True,
    workers: int = 0,
    progress: Progress | None = None,
) -> Pixels:
    """Map the photos' pixels from the cache; decode them first, in threads, if they are missing.

    The cache also records photos that do not decode. After transient errors (a file that cannot be
    read or has changed since ``contents`` was computed, not enough memory), a photo is in ``bad``
    too, but is decoded again next time.

    :param contents: digest of each file's bytes, from :func:`hash_files`.
    :param size: side in pixels.
    :param resize: ``stretch``, ``pad`` or ``crop``, see
        :func:`~shopee_mlflow.data.images.read_pixels`.
    :raises CatalogError: when the disk of the cache folder is too small.
    """
    if not cache:
        values = np.zeros((len(files), size, size, 3), np.uint8)
        return Pixels(
            values, _reasons(_decode_into(values, files, contents, resize, workers, progress))
        )

    def fill(values: np.ndarray, start: int) -> dict[str, Any]:
        part = slice(start, start + len(values))
        whole = _from(start, len(files), progress)
        errors = _decode_into(values, files[part], contents[part], resize, workers, whole)
        about = {"bad": {str(start + row): reason for row, reason in _reasons(errors).items()}}
        transient = {str(start + row): True for row, error in errors.items() if error.transient}
        return {**about, RETRY: transient} if transient else about

    shape = (len(files), size, size, 3)
    name = f"pixels-{pixel_key(contents, size, resize)}"
    stored, about = load_or_build(name, shape, np.uint8, fill, "the decoded photos")
    return Pixels(stored, {int(row): reason for row, reason in about["bad"].items()})


def _reasons(errors: dict[int, ImageError]) -> dict[int, str]:
    return {row: str(error) for row, error in errors.items()}


def _from(start: int, total: int, progress: Progress | None) -> Progress | None:
    """A callback for a part that reports the progress of the whole."""
    if progress is None:
        return None
    return lambda done, _: progress(start + done, total)


def hash_files(files: Sequence[Path], workers: int = 0) -> list[str]:
    """:func:`hash_file` of each file."""
    return _in_threads(hash_file, files, workers)


def hash_file(file: Path) -> str:
    """Digest (BLAKE2b, 128 bit, hexadecimal) of a file's bytes; "" where it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, _new_digest).hexdigest()
    except OSError:
        return ""


def compute_phashes(
    files: Sequence[Path], workers: int = 0, progress: Progress | None = None
) -> list[str]:
    """:func:`phash_of` each photo at full size; "" where it does not decode."""

    def phash(file: Path) -> str:
        try:
            with open_photo(file) as image:
                return phash_of(image)
        except ImageError:
            return ""

    return _in_threads(phash, files, workers, progress)


def phash_of(image: Image.Image) -> str:
    """``imagehash.phash`` of an opened photo, 16 hexadecimal digits."""
    image.load()
    # Transparency does not affect the hash, and Pillow would warn that it is lost.
    image.info.pop("transparency", None)
    return str(imagehash.phash(image))


def pixel_key(contents: Sequence[str], size: int, resize: str = "stretch") -> str:
    """A digest of everything that affects the pixels: contents, size, resize, decoder."""
    shape = str(size) if resize == "stretch" else f"{size} {resize}"
    parts = [RECIPE, pillow_version, shape, *contents]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=16)


def _decode_into(
    values: np.ndarray,
    files: Sequence[Path],
    contents: Sequence[str],
    resize: str,
    workers: int,
    progress: Progress | None,
) -> dict[int, ImageError]:
    """Fill ``values`` row by row; returns the rows that have no pixels with their errors."""
    size = values.shape[1]

    def decode(row: int) -> ImageError | None:
        try:
            values[row] = read_pixels(_read_verified(files[row], contents[row]), size, resize)
        except ImageError as error:
            return error
        return None

    found = _in_threads(decode, range(len(files)), workers, progress)
    errors = {row: error for row, error in enumerate(found) if error is not None}
    transient = [f"{files[row].name} ({e})" for row, e in errors.items() if e.transient]
    if transient:
        names = ", ".join(transient[:_NAMED])
        _log.warning("%d photos cannot be used this time: %s", len(transient), names)
    return errors


def _read_verified(file: Path, content: str) -> bytes:
    """The bytes of a file that have this digest.

    :param content: "" if the file could not be read when digests were computed. Such a photo is
        left out, since pixels of unknown bytes must not be cached.
    """
    try:
        photo = file.read_bytes()
    except OSError as error:
        raise ImageError(error.strerror or str(error), transient=bool(content)) from error
    except MemoryError as error:
        raise ImageError("not enough memory to read it", transient=True) from error
    digest = _new_digest()
    digest.update(photo)
    if digest.hexdigest() != content:
        raise ImageError("it changed while the catalogue was read", transient=bool(content))
    return photo


def _in_threads(
    work: Callable[[Any], _Out],
    items: Sequence[Any],
    workers: int,
    progress: Progress | None = None,
) -> list[_Out]:
    threads = workers or os.cpu_count() or 1
    # Several items per task, if there are enough: the overhead of a task equals a small file.
    per_task = min(_MOST_A_TASK, max(1, len(items) // (threads * _MOST_A_TASK)))
    results: list[_Out] = []
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), _ROUND):
            part = items[start : start + _ROUND]
            tasks = [part[i : i + per_task] for i in range(0, len(part), per_task)]
            # On an error or Ctrl-C, map cancels the tasks that have not started.
            for finished in pool.map(lambda task: [work(item) for item in task], tasks):
                for result in finished:
                    results.append(result)
                    if progress:
                        progress(len(results), len(items))
    return results
