"""Arrays that are costly to make are made once: a file in the cache folder, mapped into memory.

The caller's name for a file holds a digest of everything that shapes the array, so a stale file
is never met. The description beside it is written last and holds checksums, so a damaged file is
made again.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache_folder import cache_folder
from ..errors import CatalogError
from .building import NOTES, UNFINISHED, Build, Fill, checksum, locked, room_for, unfinished

_UNDER_WAY = {".tmp", UNFINISHED, NOTES}
# After this long without a write, in seconds, an unfinished file is taken for left behind.
_LEFT_SECONDS = 3600
# How often a file is made when somebody deletes it meanwhile.
_TRIES = 3
_CHUNK = 2**20
# Of a mapped file, read or written since it was last let go, in bytes.
_WINDOW = 2**30


def load_or_build(
    name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike, fill: Fill, what: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The array of this name, mapped from its file; made by ``fill`` where there is none yet.

    Processes that want the same one make it together (see building.py).

    :param what: the array's contents in words, for errors.
    :returns: the array, copy on write, and all that ``fill`` returned when it was made.
    :raises CatalogError: when the disk of the cache folder is too small or cannot be written.
    """
    target = cache_folder() / f"{name}.npy"
    there = _read(target)
    for _ in range(_TRIES):
        if there:
            return there
        build = Build(target, shape, np.dtype(dtype))
        with locked(target.with_suffix(".lock")):
            there = _read(target)
            if there:
                return there
            build.prepare(what)
        build.work(fill)
        with locked(target.with_suffix(".lock")):
            build.finish()
        # What was noted is trusted no more than what was found: a machine may have gone off between
        # a note and its part.
        there = _read(target)
    if there:
        return there
    raise CatalogError(f"{target} was deleted or damaged {_TRIES} times while it was made.")


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


def has_room(name: str, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> bool:
    """Whether the cache folder's disk can take an array of this size, or what is missing of it."""
    needed, free = room_for(cache_folder() / f"{name}.npy", shape, dtype)
    return needed <= free


def clear_cache() -> int:
    """Delete all arrays from the cache folder; returns the bytes set free."""
    freed = 0
    for kind in ("pixels", "activations"):
        for file in cache_folder().glob(f"{kind}-*"):
            with suppress(FileNotFoundError):
                # Another process may write it; only what has been left is taken.
                if file.suffix in _UNDER_WAY and time.time() - _last_write(file) < _LEFT_SECONDS:
                    continue
                if file.suffix == ".lock" and unfinished(file):
                    continue
                if file.is_dir():
                    shutil.rmtree(file, ignore_errors=True)
                    continue
                size = min(file.stat().st_size, file.stat().st_blocks * 512)
                file.unlink()
                freed += size
    return freed


def _last_write(file: Path) -> float:
    """When a build wrote something last, in seconds since the epoch; it notes each of its parts."""
    there = [file, file.with_suffix(NOTES)]
    return max((place.stat().st_mtime for place in there if place.exists()), default=0.0)


def _read(target: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The array and its description, or None where they are absent or not what was written."""
    try:
        stored = json.loads(target.with_suffix(".json").read_text("utf-8"))
        if not _is_whole(target, stored):
            return None
        return _map(target), stored["about"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None


def _is_whole(file: Path, stored: dict[str, Any]) -> bool:
    """Whether each byte of a file is as it was written; parts are looked at side by side."""
    offset, step, sums = stored["offset"], stored["part_bytes"], stored["parts"]
    with file.open("rb") as stream:
        if checksum(stored, stream.read(offset)) != stored["crc32"]:
            return False

    def part_is_whole(number: int) -> bool:
        # The last part goes to the end of the file, so that nothing may follow it.
        left = step if number + 1 < len(sums) else file.stat().st_size
        crc = 0
        with file.open("rb") as stream:
            stream.seek(offset + number * step)
            while left and (chunk := stream.read(min(_CHUNK, left))):
                crc = zlib.crc32(chunk, crc)
                left -= len(chunk)
        return bool(crc == sums[number])

    with ThreadPoolExecutor(min(len(sums), os.cpu_count() or 1)) as pool:
        return all(pool.map(part_is_whole, range(len(sums))))


def _map(target: Path) -> np.ndarray:
    # Copy on write: torch wants writable memory, and the file must not change.
    try:
        values: np.ndarray = np.load(target, mmap_mode="c", allow_pickle=False)
    except OSError:
        # Memory that might be written to counts as taken; a file larger than all of it can still
        # be read in place.
        values = np.load(target, mmap_mode="r", allow_pickle=False)
    return values
