"""Arrays that are costly to make are made once: a file in the cache folder, mapped into memory.

The caller's name for a file holds a digest of everything that shapes the array, so a stale file
is never met. The description beside it is written last and holds a checksum, so an interrupted or
damaged file is made again.
"""

from __future__ import annotations

import json
import mmap
import shutil
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..errors import CatalogError
from .storage import CACHE_VARIABLE, cache_folder

# Fills an empty array, and returns what else there is to remember, as JSON knows it.
Fill = Callable[[np.ndarray], dict[str, Any]]

# After this long without a write, in seconds, an unfinished file is taken for left behind.
_LEFT_SECONDS = 3600
# Left free on the disk when a file is made, in bytes.
_DISK_RESERVE = 200 * 2**20
_CHUNK = 2**20
# Of a mapped file, read or written since it was last let go, in bytes.
_WINDOW = 2**30


def load_or_build(
    name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike, fill: Fill, what: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The array of this name, mapped from its file; made by ``fill`` where there is none yet.

    Of several processes that want the same one, the first makes it and the others wait.

    :param what: the array's contents in words, for errors.
    :returns: the array, copy on write, and what ``fill`` returned when it was made.
    :raises CatalogError: when the disk of the cache folder is too small or cannot be written.
    """
    target = cache_folder() / f"{name}.npy"
    there = _read(target)
    if there:
        return there
    with _one_builder(target):
        return _read(target) or _build(target, shape, np.dtype(dtype), fill, what)


def is_built(name: str) -> bool:
    """Whether there is an array of this name, finished, though perhaps damaged."""
    return (cache_folder() / f"{name}.json").is_file()


def as_tensor(values: np.ndarray) -> Tensor:
    """The same memory as a tensor, for reading; a mapped array may forbid writing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


class Window:
    """How much of a mapped file this process holds in memory: a window, however large the file.

    The system keeps what is let go for as long as it has memory to spare, so that reading it again
    costs next to nothing; but it may take it back, and it does not count as this process's.
    """

    def __init__(self, values: np.ndarray) -> None:
        """
        :param values: an array; one that is not mapped is left alone.
        """
        self._file = _file_of(values)
        self._held = 0

    def passed(self, nbytes: int) -> None:
        """So many more bytes have been read or written."""
        self._held += nbytes
        if self._file is not None and self._held > _WINDOW:
            self._file.madvise(mmap.MADV_DONTNEED)
            self._held = 0


def _file_of(values: np.ndarray) -> mmap.mmap | None:
    """The map behind an array, where the system can let go of parts of it."""
    base: object = values
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None


def has_room(shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> bool:
    """Whether the cache folder's disk can take an array of this size."""
    needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return shutil.disk_usage(cache_folder()).free >= needed + _DISK_RESERVE


def clear_cache() -> int:
    """Delete all arrays from the cache folder; returns the bytes set free."""
    freed = 0
    for kind in ("pixels", "activations"):
        for file in cache_folder().glob(f"{kind}-*"):
            with suppress(FileNotFoundError):
                about = file.stat()
                # A .tmp file may be another process's work; only one that has been left is taken.
                if file.suffix != ".tmp" or time.time() - about.st_mtime > _LEFT_SECONDS:
                    file.unlink()
                    freed += about.st_size
    return freed


@contextmanager
def _one_builder(target: Path) -> Iterator[None]:
    """Held by the process that makes the file; the system lets go of it when a process dies."""
    lock = FileLock(target.with_suffix(".lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        # A file system without locks: two builds at once do work twice, and no harm.
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(target: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The array and its description, or None where they are absent or not what was written."""
    try:
        stored = json.loads(target.with_suffix(".json").read_text("utf-8"))
        if _checksum(target, stored["about"]) != stored["crc32"]:
            return None
        return _map(target), stored["about"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _build(
    target: Path, shape: tuple[int, ...], dtype: np.dtype[Any], fill: Fill, what: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Write a file of our own and rename it, so that nobody ever sees half of one."""
    _check_disk(target.parent, shape, dtype, what)
    own = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with _writing_to(target.parent):
            values = np.lib.format.open_memmap(own, mode="w+", dtype=dtype, shape=shape)
        # As those who come later will read it: JSON makes text of whole-number keys.
        about = json.loads(json.dumps(fill(values)))
        with _writing_to(target.parent):
            values.flush()
            description = {"about": about, "crc32": _checksum(own, about)}
            own.replace(target)
            own.write_text(json.dumps(description), encoding="utf-8")
            own.replace(target.with_suffix(".json"))
    finally:
        own.unlink(missing_ok=True)
    return _map(target), about


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
    try:
        values: np.ndarray = np.load(target, mmap_mode="c", allow_pickle=False)
    except OSError:
        # Memory that might be written to counts as taken; a file larger than all of it can still
        # be read in place.
        values = np.load(target, mmap_mode="r", allow_pickle=False)
    return values


def _check_disk(folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    if not has_room(shape, dtype):
        needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        raise CatalogError(
            f"The cache folder {folder} has {shutil.disk_usage(folder).free / 2**20:,.0f} MiB "
            f"free; {what} need {needed / 2**20:,.0f} MiB. Free some, name a folder on a larger "
            f"disk with {CACHE_VARIABLE}, or set cache=false."
        )


def _checksum(file: Path, about: dict[str, Any]) -> int:
    """CRC-32 of the description and the whole file: its header is trusted no more than its values.

    :raises AttributeError: when the description is no mapping.
    """
    crc = zlib.crc32(json.dumps(sorted(about.items())).encode())
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
