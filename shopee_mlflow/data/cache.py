"""Photos are decoded once: a file of uint8 pixels in the cache folder, mapped into memory.

The file's name is a digest of the photos' contents and of everything that shapes the pixels,
so other photos, another size or another decoder never meet a stale file. The description beside
it is written last and holds a checksum, so an interrupted or damaged file is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import imagehash
import numpy as np
from PIL import __version__ as pillow_version

from ..errors import CatalogError, ImageError
from .images import RECIPE, open_photo, read_pixels
from .storage import CACHE_VARIABLE, cache_folder

Progress = Callable[[int, int], None]

# After this long without a write, in seconds, an unfinished file is taken for left behind.
_LEFT_SECONDS = 3600
# Left free on the disk when the cache file is made, in bytes.
_DISK_RESERVE = 200 * 2**20
_CHUNK = 2**20

_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Pixels:
    """Decoded photos, in the order of the files asked for.

    :ivar values: (N, size, size, 3) uint8, RGB; zeros where a photo does not decode.
    :ivar bad: position of a photo that does not decode -> the reason.
    """

    values: np.ndarray
    bad: dict[int, str]


def load_pixels(
    files: Sequence[Path],
    contents: Sequence[str],
    size: int,
    *,
    cache: bool = True,
    workers: int = 0,
    progress: Progress | None = None,
) -> Pixels:
    """Decode photos in parallel threads, or map them from the cache where they are already.

    :param contents: digest of each file's bytes, as :func:`hash_files` gives them.
    :param size: side in pixels.
    :raises CatalogError: when the disk of the cache folder is too small.
    """
    if not cache:
        values = np.zeros((len(files), size, size, 3), np.uint8)
        return Pixels(values, _decode_into(values, files, workers, progress))
    target = cache_folder() / f"pixels-{_key(contents, size)}.npy"
    return _read_cached(target) or _build(target, files, size, workers, progress)


def hash_files(files: Sequence[Path], workers: int = 0) -> list[str]:
    """Digest (BLAKE2b, 128 bit, hexadecimal) of each file's bytes; "" where it cannot be read."""

    def digest(file: Path) -> str:
        try:
            with file.open("rb") as stream:
                return hashlib.file_digest(
                    stream, lambda: hashlib.blake2b(digest_size=16)
                ).hexdigest()
        except OSError:
            return ""

    return _in_threads(digest, files, workers)


def compute_phashes(
    files: Sequence[Path], workers: int = 0, progress: Progress | None = None
) -> list[str]:
    """``imagehash.phash`` of each photo at full size, 16 hexadecimal digits; "" if undecodable."""

    def phash(file: Path) -> str:
        try:
            with open_photo(file) as image:
                image.load()
                # It has no part in the hash, and Pillow would warn that it gets lost.
                image.info.pop("transparency", None)
                return str(imagehash.phash(image))
        except ImageError:
            return ""

    return _in_threads(phash, files, workers, progress)


def clear_cache() -> int:
    """Delete all decoded photos from the cache folder; returns the bytes set free."""
    freed = 0
    for file in cache_folder().glob("pixels-*"):
        with suppress(FileNotFoundError):
            about = file.stat()
            # A .tmp file may be another process's work; only one that has been left is taken.
            if file.suffix != ".tmp" or time.time() - about.st_mtime > _LEFT_SECONDS:
                file.unlink()
                freed += about.st_size
    return freed


def _key(contents: Sequence[str], size: int) -> str:
    parts = [RECIPE, pillow_version, str(size), *contents]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


def _read_cached(target: Path) -> Pixels | None:
    """The cached pixels, or None where there are none or they are not what was written."""
    try:
        about: dict[str, Any] = json.loads(target.with_suffix(".json").read_text("utf-8"))
        if _checksum(target) != about["crc32"]:
            return None
        return Pixels(_map(target), {int(row): reason for row, reason in about["bad"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _build(
    target: Path, files: Sequence[Path], size: int, workers: int, progress: Progress | None
) -> Pixels:
    """Decode into a file of our own and rename it: two builds at once do no harm."""
    shape = (len(files), size, size, 3)
    _check_disk(target.parent, int(np.prod(shape)))
    own = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with _writing_to(target.parent):
            values = np.lib.format.open_memmap(own, mode="w+", dtype=np.uint8, shape=shape)
        bad = _decode_into(values, files, workers, progress)
        with _writing_to(target.parent):
            values.flush()
            about = {"crc32": _checksum(own), "bad": bad}
            own.replace(target)
            own.write_text(json.dumps(about), encoding="utf-8")
            own.replace(target.with_suffix(".json"))
    finally:
        own.unlink(missing_ok=True)
    return Pixels(_map(target), bad)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CatalogError(
            f"The cache folder {folder} cannot be written to ({error.strerror or error}). "
            f"Name another one with {CACHE_VARIABLE}, or set cache=false."
        ) from error


def _map(target: Path) -> np.ndarray:
    # Copy on write: torch wants writable memory, and the file must not change.
    values: np.ndarray = np.load(target, mmap_mode="c", allow_pickle=False)
    return values


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _DISK_RESERVE:
        raise CatalogError(
            f"The cache folder {folder} has {free / 2**20:,.0f} MiB free; the decoded photos need "
            f"{needed / 2**20:,.0f} MiB. Free some, name a folder on a larger disk with "
            f"{CACHE_VARIABLE}, or set cache=false."
        )


def _decode_into(
    values: np.ndarray, files: Sequence[Path], workers: int, progress: Progress | None
) -> dict[int, str]:
    """Fill ``values`` row by row; returns the rows that do not decode with their reasons."""
    size = values.shape[1]

    def decode(row: int) -> str | None:
        try:
            values[row] = read_pixels(files[row], size)
        except ImageError as error:
            return str(error)
        return None

    reasons = _in_threads(decode, range(len(files)), workers, progress)
    return {row: reason for row, reason in enumerate(reasons) if reason is not None}


def _in_threads(
    work: Callable[[Any], _Out],
    items: Sequence[Any],
    workers: int,
    progress: Progress | None = None,
) -> list[_Out]:
    results: list[_Out] = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        # Left by an error or Ctrl-C, map cancels what has not begun.
        for result in pool.map(work, items):
            results.append(result)
            if progress:
                progress(len(results), len(items))
    return results


def _checksum(file: Path) -> int:
    """CRC-32 of the whole file: its header is trusted no more than its pixels."""
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
