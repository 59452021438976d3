"""Arrays that are expensive to compute are computed once and kept in the cache folder.

An array NAME consists of ``NAME.bin``, its values without a header, and ``NAME.json``, the checksum
of each part and what else was remembered of it. The name holds a digest of everything that shapes
the array, so a stale file is never found. One process computes an array, while a lock makes others
wait. The description is replaced after each part, so an interrupted build resumes with the first
part that is missing or damaged.
"""

from __future__ import annotations

import json
import logging
import math
import mmap
import os
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from ..cache_folder import CACHE_VARIABLE, cache_folder
from ..errors import CatalogError

_log = logging.getLogger(__name__)

# Computes the rows of an array from a row number on, in place. Returns what else is to be
# remembered of them: name -> mapping with text keys, as JSON has it.
Fill = Callable[[np.ndarray, int], dict[str, Any]]
# Name of the mapping of rows whose values are valid for this process alone. The next build computes
# their parts again.
RETRY = "retry"

# Marks a description as ours.
_FORMAT = "shopee_mlflow array 1"
_KINDS = ("pixels", "activations")
# Approximate size of a part in bytes. A part is a whole number of batches.
_PART = 64 * 2**20
_BATCH = 32
# Disk space to leave free, in bytes.
_DISK_RESERVE = 200 * 2**20
# How often a build starts again when its files are deleted meanwhile.
_TRIES = 3
_CHUNK = 2**20
# Most bytes of a mapped file that a process holds in memory.
_WINDOW = 2**30

_Shape = tuple[int, ...]
_Found = tuple[np.ndarray, dict[str, Any]]


def load_or_build(
    name: str, shape: _Shape, dtype: np.typing.DTypeLike, fill: Fill, what: str
) -> _Found:
    """Map the array of this name from the cache folder; compute it first where there is none.

    :param what: the array's contents in words, for errors.
    :returns: the array, mapped copy-on-write, and everything that ``fill`` returned.
    :raises CatalogError: when the disk of the cache folder is too small or cannot be written.
    """
    if not math.prod(shape):
        empty = np.zeros(shape, dtype)
        return empty, fill(empty, 0)
    for _ in range(_TRIES):
        file = _ArrayFile(cache_folder() / name, shape, np.dtype(dtype))
        found = file.read()
        if found:
            return found
        with locked(file.lock) as exclusive:
            build = file.build if exclusive else file.build_alone
            found = file.read() or build(fill, what)
        if found:
            return found
    raise CatalogError(f"{file.values} was deleted or damaged {_TRIES} times while it was built.")


def has_room(name: str, shape: _Shape, dtype: np.typing.DTypeLike) -> bool:
    """Whether the disk of the cache folder has room for an array, or for the missing part of it."""
    needed, free = _ArrayFile(cache_folder() / name, shape, np.dtype(dtype)).room()
    return needed <= free


def as_tensor(values: np.ndarray) -> Tensor:
    """The same memory as a tensor, for reading; a mapped array may forbid writing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


class Window:
    """Limits how much of a mapped file this process holds in memory.

    The system keeps released pages while memory is free, so reading them again is fast.
    """

    def __init__(self, values: np.ndarray) -> None:
        """
        :param values: an array; one that is not mapped is left alone.
        """
        base: object = values
        while isinstance(base, np.ndarray):
            base = base.base
        can_release = isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED")
        self._file = base if can_release else None
        self._held = 0

    def passed(self, nbytes: int) -> None:
        """Count bytes as read or written; release all when they exceed the window."""
        self._held += nbytes
        if isinstance(self._file, mmap.mmap) and self._held > _WINDOW:
            self._file.madvise(mmap.MADV_DONTNEED)
            self._held = 0


def clear_cache() -> int:
    """Delete the arrays of this project from the cache folder, except those being built.

    :returns: the number of bytes freed.
    """
    freed = 0
    for kind in _KINDS:
        for description in cache_folder().glob(f"{kind}-*.json"):
            if description.is_symlink() or not _is_ours(description):
                continue
            with suppress(Timeout), locked(description.with_suffix(".lock"), wait=False):
                for suffix in (".bin", ".npy", ".json", ".lock"):
                    with suppress(OSError):
                        file = description.with_suffix(suffix)
                        size = file.lstat().st_size
                        file.unlink()
                        freed += size
    return freed


def _is_ours(description: Path) -> bool:
    """Whether a description is this project's; until format 1 it had no mark but these fields."""
    try:
        stored = json.loads(description.read_text("utf-8"))
        return stored.get("format") == _FORMAT or {"crc32", "part_bytes", "parts"} <= set(stored)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


class _ArrayFile:
    """The files of one array."""

    def __init__(self, stem: Path, shape: _Shape, dtype: np.dtype[Any]) -> None:
        self.stem, self.shape, self.dtype = stem, shape, dtype
        self.values = stem.with_name(f"{stem.name}.bin")
        self.description = stem.with_name(f"{stem.name}.json")
        self.lock = stem.with_name(f"{stem.name}.lock")
        self._facts = {"format": _FORMAT, "shape": list(shape), "dtype": dtype.str}
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.nbytes = shape[0] * self._row_bytes
        self.part_rows = max(1, _PART // max(1, self._row_bytes) // _BATCH) * _BATCH
        self.starts = range(0, shape[0], self.part_rows)

    def read(self, built_here: bool = False) -> _Found | None:
        """Map the array; None where it is absent, unfinished or damaged.

        :param built_here: accept parts that the next build must compute again.
        """
        parts = self._described()
        unfinished = not built_here and any(part["about"].get(RETRY) for part in parts)
        if unfinished or len(parts) != len(self.starts) or len(self._intact(parts)) < len(parts):
            return None
        about: dict[str, Any] = {}
        for part in parts:
            for name, facts in part["about"].items():
                about.setdefault(name, {}).update(facts)
        return self._map(), about

    def build(self, fill: Fill, what: str) -> _Found | None:
        """Compute the parts that are missing; None where the files were deleted meanwhile."""
        parts = self._intact(self._described()[: len(self.starts)])
        self._check_disk(what)
        if not parts:
            # Another process may still map a damaged file, so it is not written over.
            self.values.unlink(missing_ok=True)
        for number, start in enumerate(self.starts):
            if number < len(parts) and not parts[number]["about"].get(RETRY):
                continue
            rows = min(self.part_rows, self.shape[0] - start)
            values = np.zeros((rows, *self.shape[1:]), self.dtype)
            about = fill(values, start)
            crc = zlib.crc32(values.data, _checksum(about))
            parts[number : number + 1] = [{"about": about, "crc32": crc}]
            try:
                self._write(start, values, parts)
            except FileNotFoundError:
                return None
        return self.read(built_here=True)

    def build_alone(self, fill: Fill, what: str) -> _Found | None:
        """Build under a name of its own, where locks do not keep other processes away."""
        own = _ArrayFile(Path(f"{self.stem}.{uuid.uuid4().hex}"), self.shape, self.dtype)
        built = own.build(fill, what)
        with suppress(FileNotFoundError), _writing_to(self.stem.parent):
            own.values.replace(self.values)
            own.description.replace(self.description)
        return built

    def _write(self, start: int, values: np.ndarray, parts: list[dict[str, Any]]) -> None:
        """Write a part to its place, then the description that lists it."""
        with _writing_to(self.stem.parent):
            if start == 0:
                # First, so that clear_cache knows whose file it is.
                self._describe([])
            with self.values.open("r+b" if start or self.values.exists() else "wb") as stream:
                stream.seek(start * self._row_bytes)
                stream.write(values.data)
                if start == self.starts[-1]:
                    stream.truncate()
            self._describe(parts)

    def _describe(self, parts: list[dict[str, Any]]) -> None:
        new = self.stem.with_name(f"{self.stem.name}.tmp")
        try:
            new.write_text(json.dumps({**self._facts, "parts": parts}), encoding="utf-8")
            new.replace(self.description)
        finally:
            new.unlink(missing_ok=True)

    def _described(self) -> list[dict[str, Any]]:
        """The parts that are said to be there; none where the description is damaged."""
        try:
            stored = json.loads(self.description.read_text("utf-8"))
            parts: list[dict[str, Any]] = stored["parts"]
            if all(stored[name] == fact for name, fact in self._facts.items()):
                return [part for part in parts if isinstance(part["about"], dict)]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return []

    def _intact(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The leading parts whose values are as they were written."""

        def is_intact(number: int) -> bool:
            left = self.part_rows * self._row_bytes
            if number + 1 == len(self.starts):
                # The last part goes to the end of the file, so that nothing may follow it.
                left = self.values.stat().st_size
            crc = _checksum(parts[number]["about"])
            with self.values.open("rb") as stream:
                stream.seek(self.starts[number] * self._row_bytes)
                while left and (chunk := stream.read(min(_CHUNK, left))):
                    crc = zlib.crc32(chunk, crc)
                    left -= len(chunk)
            return bool(crc == parts[number]["crc32"])

        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                checks = list(pool.map(is_intact, range(len(parts))))
        except (OSError, KeyError):
            return []
        return parts[: [*checks, False].index(False)]

    def _map(self) -> np.ndarray:
        try:
            # Copy-on-write: torch wants writable memory, and the file must not change.
            return np.memmap(self.values, self.dtype, "c", shape=self.shape)
        except OSError:
            # Memory that may be written counts as taken. A file larger than all of it can still be
            # mapped for reading.
            return np.memmap(self.values, self.dtype, "r", shape=self.shape)

    def room(self) -> tuple[int, int]:
        """Bytes that are still needed for the array, and bytes that may be used."""
        written = self.values.stat().st_size if self.values.exists() else 0
        free = shutil.disk_usage(self.stem.parent).free - _DISK_RESERVE
        return max(0, self.nbytes - written), max(0, free)

    def _check_disk(self, what: str) -> None:
        needed, free = self.room()
        if needed > free:
            disk_free = shutil.disk_usage(self.stem.parent).free
            raise CatalogError(
                f"The cache folder {self.stem.parent} has {disk_free / 2**20:,.0f} "
                f"MiB free; {what} need {needed / 2**20:,.0f} MiB. Free some, name a folder on a "
                f"larger disk with {CACHE_VARIABLE}, or set cache=false."
            )


def _checksum(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that the system releases when its process dies; False where there are no locks.

    :raises Timeout: when another process holds it and this one is not to wait.
    """
    # A file in the place of a lock would outlive a process that is killed.
    lock = FileLock(file, fallback_to_soft=False)
    exclusive = True
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        exclusive = False
        _warn_no_locks(file.parent, type(error).__name__)
    try:
        yield exclusive
    finally:
        with suppress(OSError):
            lock.release()


@cache
def _warn_no_locks(folder: Path, reason: str) -> None:
    _log.warning("%s: files cannot be locked there (%s), so work may be done twice", folder, reason)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Report what to do when the folder cannot be written; a deleted file is no such case."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CatalogError(
            f"The cache folder {folder} cannot be written to ({error.strerror or error}). "
            f"Name another one with {CACHE_VARIABLE}, or set cache=false."
        ) from error
