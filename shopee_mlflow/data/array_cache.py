"""Cache for arrays that are expensive to compute, as files in the cache folder.

An array NAME consists of ``NAME.bin``, its values without a header, and ``NAME.json``, which has
the checksum and the metadata of each part. The name holds a digest of everything that affects the
array, so a stale file is never used. One process computes an array, while a lock makes others wait.
The description is replaced after each part, so an interrupted build resumes with the first part
that is missing or damaged.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout

from ..cache_folder import CACHE_VARIABLE, cache_folder
from ..errors import CatalogError
from .file_locks import locked

# Computes rows of an array in place, given the number of the first one. Returns metadata to store
# with them: name -> mapping with string keys, since it is stored as JSON.
Fill = Callable[[np.ndarray, int], dict[str, Any]]
# Name of the metadata of rows whose values are valid in this process only. The next build computes
# their parts again.
RETRY = "retry"

# Marks a description as one of this project.
_FORMAT = "shopee_mlflow array 1"
_KINDS = ("pixels", "activations")
# Approximate size of a part in bytes. A part is a whole number of batches.
_PART = 64 * 2**20
_BATCH = 32
# Disk space to leave free, in bytes.
_DISK_RESERVE = 200 * 2**20
# Number of attempts when files are deleted during a build.
_TRIES = 3
_CHUNK = 2**20

_Shape = tuple[int, ...]
_Found = tuple[np.ndarray, dict[str, Any]]


def load_or_build(
    name: str, shape: _Shape, dtype: np.typing.DTypeLike, fill: Fill, what: str
) -> _Found:
    """Map an array from the cache folder; compute it first if it is missing.

    :param what: the array's contents in words, for errors.
    :returns: the array, mapped copy-on-write, and the metadata that ``fill`` returned.
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
                for suffix in (".bin", ".npy", ".tmp", ".json", ".lock"):
                    with suppress(OSError):
                        file = description.with_suffix(suffix)
                        size = file.lstat().st_size
                        file.unlink()
                        freed += size
    return freed


def _is_ours(description: Path) -> bool:
    """Whether a description is this project's. Before format 1 it had only these fields."""
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
        self._new = stem.with_name(f"{stem.name}.tmp")
        self._facts = {"format": _FORMAT, "shape": list(shape), "dtype": dtype.str}
        self._row_bytes = math.prod(shape[1:]) * dtype.itemsize
        self.nbytes = shape[0] * self._row_bytes
        self.part_rows = max(1, _PART // max(1, self._row_bytes) // _BATCH) * _BATCH
        self.starts = range(0, shape[0], self.part_rows)

    def read(self, built_here: bool = False) -> _Found | None:
        """Map the array; None if it is missing, unfinished or damaged.

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
        """Compute the missing parts; None if the files were deleted meanwhile."""
        described = self._described()
        parts = self._intact(described[: len(self.starts)])
        self._check_disk(what)
        if not parts:
            self.values.unlink(missing_ok=True)
        elif len(described) == len(self.starts):
            # Another process may have mapped the file of a finished array, so a copy is written.
            with _writing_to(self.stem.parent):
                copy = shutil.copyfile(self.values, self._new)
                copy.replace(self.values)
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
        """Build under a temporary name, for file systems without locks."""
        temporary = _ArrayFile(Path(f"{self.stem}.{uuid.uuid4().hex}"), self.shape, self.dtype)
        built = temporary.build(fill, what)
        with suppress(FileNotFoundError), _writing_to(self.stem.parent):
            temporary.values.replace(self.values)
            temporary.description.replace(self.description)
        return built

    def _write(self, start: int, values: np.ndarray, parts: list[dict[str, Any]]) -> None:
        """Write a part at its offset, then the description that lists it."""
        with _writing_to(self.stem.parent):
            if len(parts) == 1:
                # First, so that clear_cache recognizes the file.
                self._describe([])
            with self.values.open("r+b" if start or self.values.exists() else "wb") as stream:
                stream.seek(start * self._row_bytes)
                stream.write(values.data)
                if start == self.starts[-1]:
                    stream.truncate()
            self._describe(parts)

    def _describe(self, parts: list[dict[str, Any]]) -> None:
        try:
            self._new.write_text(json.dumps({**self._facts, "parts": parts}), encoding="utf-8")
            self._new.replace(self.description)
        finally:
            self._new.unlink(missing_ok=True)

    def _described(self) -> list[dict[str, Any]]:
        """The parts that the description lists; none if it is damaged."""
        try:
            stored = json.loads(self.description.read_text("utf-8"))
            parts: list[dict[str, Any]] = stored["parts"]
            if all(stored[name] == fact for name, fact in self._facts.items()):
                return [part for part in parts if isinstance(part["about"], dict)]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return []

    def _intact(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The leading parts whose values match their checksums."""

        def is_intact(number: int) -> bool:
            remaining = self.part_rows * self._row_bytes
            if number + 1 == len(self.starts):
                # The last part extends to the end of the file, so that nothing may follow it.
                remaining = self.values.stat().st_size
            crc = _checksum(parts[number]["about"])
            with self.values.open("rb") as stream:
                stream.seek(self.starts[number] * self._row_bytes)
                while remaining and (chunk := stream.read(min(_CHUNK, remaining))):
                    crc = zlib.crc32(chunk, crc)
                    remaining -= len(chunk)
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
            # A writable mapping counts as used memory. A file larger than the memory can still be
            # mapped read-only.
            return np.memmap(self.values, self.dtype, "r", shape=self.shape)

    def room(self) -> tuple[int, int]:
        """Bytes that the array still needs, and bytes that are free for it."""
        written = self.values.stat().st_size if self.values.exists() else 0
        free = shutil.disk_usage(self.stem.parent).free - _DISK_RESERVE
        return max(0, self.nbytes - written), max(0, free)

    def _check_disk(self, what: str) -> None:
        needed, usable = self.room()
        if needed > usable:
            folder = self.stem.parent
            free = shutil.disk_usage(folder).free
            raise CatalogError(
                f"The cache folder {folder} has {free / 2**20:,.0f} MiB free; {what} need "
                f"{needed / 2**20:,.0f} MiB. Free some, name a folder on a larger disk with "
                f"{CACHE_VARIABLE}, or set cache=false."
            )


def _checksum(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    """Report a folder that cannot be written to, with advice. FileNotFoundError passes through."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CatalogError(
            f"The cache folder {folder} cannot be written to ({error.strerror or error}). "
            f"Name another one with {CACHE_VARIABLE}, or set cache=false."
        ) from error
