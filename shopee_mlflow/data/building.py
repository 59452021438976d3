"""A costly array becomes a file, part by part, made by any number of processes and machines.

Each part is claimed by a lock that the system lets go of when its process dies, computed in memory,
written to its place in the file and then noted as done. So no part is made twice where locks work,
a build that was interrupted goes on where it stopped, and no process holds more than one part.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..cache_folder import CACHE_VARIABLE
from ..errors import CatalogError

_log = logging.getLogger(__name__)

# Fills an empty array with the rows that begin at a number, and returns what else there is to
# remember of them: name -> mapping, as JSON knows it.
Fill = Callable[[np.ndarray, int], dict[str, Any]]

# Of a part, in bytes; a part has at least as many rows as a batch, and whole batches of them.
_PART = 64 * 2**20
_BATCH = 32
# Left free on the disk when a file is made, in bytes.
_DISK_RESERVE = 200 * 2**20
# Endings of the unfinished file, and of the folder that notes its parts.
UNFINISHED, NOTES = ".part", ".parts"


@dataclass(frozen=True)
class Layout:
    """Where a file's parts are.

    :ivar offset: of the first row, in bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Size of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def part_rows(self) -> int:
        """Rows of each part but the last."""
        return max(1, _PART // max(1, self.row_bytes) // _BATCH) * _BATCH

    @property
    def parts(self) -> int:
        """How many there are."""
        return max(1, math.ceil(self.shape[0] / self.part_rows))


class Build:
    """The making of one file, in which other processes may take part at any time."""

    def __init__(self, target: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """
        :param target: the file as it is named once it is whole.
        """
        self.target = target
        self._layout = Layout(shape, dtype, 0)
        self._file = self._notes = target

    def prepare(self, what: str) -> None:
        """Make the empty file, or find the one that others have begun; one process at a time.

        Each has a name of its own, and its notes have the same: where locks do not work, two
        processes may begin two files, which does work twice and no harm.

        :raises CatalogError: when the disk is too small or cannot be written to.
        """
        begun = []
        for file in unfinished(self.target):
            self._name(file)
            if self._fits(file):
                begun.append(file)
            else:
                self.forget()
        self._name(
            begun[0] if begun else self.target.with_suffix(f".{uuid.uuid4().hex}{UNFINISHED}")
        )
        if not begun:
            check_disk(self.target, self._layout.shape, self._layout.dtype, what)
            own = self._file.with_suffix(".tmp")
            try:
                with writing_to(self.target.parent):
                    self._notes.mkdir()
                    np.lib.format.open_memmap(
                        own, mode="w+", dtype=self._layout.dtype, shape=self._layout.shape
                    )
                    own.replace(self._file)
            finally:
                own.unlink(missing_ok=True)

    def _name(self, file: Path) -> None:
        self._file, self._notes = file, file.with_suffix(NOTES)

    def _fits(self, file: Path) -> bool:
        try:
            there = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        wanted = (self._layout.shape, self._layout.dtype)
        return file.with_suffix(NOTES).is_dir() and (there.shape, there.dtype) == wanted

    def work(self, fill: Fill) -> None:
        """Make what nobody makes; then wait for the others, and make what they leave undone."""
        with suppress(FileNotFoundError):
            size = self._file.stat().st_size
            offset = size - self._layout.row_bytes * self._layout.shape[0]
            self._layout = Layout(self._layout.shape, self._layout.dtype, offset)
        for patient in (False, True):
            for number in range(self._layout.parts):
                with self._claimed(number, patient) as mine:
                    if mine and not self._note(number).exists() and self._file.exists():
                        with self._nothing_of_one():
                            self._make(number, fill)

    def finish(self) -> None:
        """Give the whole file its name, and describe it; one process at a time.

        Whoever reads it then looks whether it is what was noted. Nothing happens where another
        process has been faster, or somebody has deleted it.
        """
        try:
            description = self._describe()
        except FileNotFoundError:
            self.forget()
            return
        own = self.target.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            with writing_to(self.target.parent):
                own.write_text(json.dumps(description), encoding="utf-8")
                # First, so that a file without it can still be gone on with.
                own.replace(self.target.with_suffix(".json"))
                with self._or_finished():
                    self._file.replace(self.target)
        finally:
            own.unlink(missing_ok=True)
        self.forget()

    def _describe(self) -> dict[str, Any]:
        layout = self._layout
        notes = [
            json.loads(self._note(number).read_text("utf-8")) for number in range(layout.parts)
        ]
        about: dict[str, Any] = {}
        for note in notes:
            for name, facts in note["about"].items():
                about.setdefault(name, {}).update(facts)
        description = {
            "about": about,
            "offset": layout.offset,
            "part_bytes": layout.part_rows * layout.row_bytes,
            "parts": [note["crc32"] for note in notes],
        }
        with self._file.open("rb") as stream:
            description["crc32"] = checksum(description, stream.read(layout.offset))
        return description

    def forget(self) -> None:
        """Delete what there is of the unfinished file."""
        self._file.unlink(missing_ok=True)
        shutil.rmtree(self._notes, ignore_errors=True)

    def _note(self, number: int) -> Path:
        return self._notes / f"{number:06d}.json"

    def _make(self, number: int, fill: Fill) -> None:
        layout = self._layout
        start = number * layout.part_rows
        rows = min(layout.part_rows, layout.shape[0] - start)
        values = np.zeros((rows, *layout.shape[1:]), layout.dtype)
        about = fill(values, start)
        note = {"about": about, "crc32": zlib.crc32(values.data)}
        own = self._notes / f"{uuid.uuid4().hex}.tmp"
        with writing_to(self.target.parent), self._or_finished():
            # Written, not mapped: on a disk that machines share, a mapped page at the border of
            # two parts would bring back what another machine has not written yet.
            with self._file.open("r+b") as stream:
                stream.seek(layout.offset + start * layout.row_bytes)
                stream.write(values.data)
            own.write_text(json.dumps(note), encoding="utf-8")
            own.replace(self._note(number))

    @contextmanager
    def _nothing_of_one(self) -> Iterator[None]:
        """Of a file in one part that fails there is nothing to go on with."""
        try:
            yield
        except BaseException:
            if self._layout.parts == 1:
                self.forget()
            raise

    @contextmanager
    def _or_finished(self) -> Iterator[None]:
        """Without locks another process may have given the whole file its name in the meantime."""
        try:
            yield
        except FileNotFoundError:
            if self._file.exists():
                raise

    @contextmanager
    def _claimed(self, number: int, patient: bool) -> Iterator[bool]:
        """Whether this process may make a part; a patient one waits until the answer is yes."""
        if self._note(number).exists() or not self._notes.exists():
            yield False
            return
        try:
            with locked(self._notes / f"{number:06d}.lock", patient):
                yield True
        except Timeout:
            yield False


@contextmanager
def locked(file: Path, patient: bool = True) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it when that one dies.

    :raises Timeout: where another one has it, and this one is not to wait.
    """
    # Never a file in a lock's place, which would outlive a process that is killed.
    lock = FileLock(file, fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if patient else 0)
    except Timeout:
        raise
    except FileNotFoundError:
        pass  # The file is whole, and its notes are gone.
    except (OSError, NotImplementedError) as error:
        # The folder of the cache, whose own notes are a folder deeper.
        folder = file.parent.parent if file.parent.suffix == NOTES else file.parent
        _tell_no_locks(folder, type(error).__name__)
    try:
        yield
    finally:
        with suppress(OSError):
            lock.release()


@cache
def _tell_no_locks(folder: Path, reason: str) -> None:
    """Told once: without locks parts may be made twice, which costs time and no more."""
    _log.warning("%s: files cannot be locked there (%s), so work may be done twice", folder, reason)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Tell what to do where the folder cannot be written to."""
    try:
        yield
    except OSError as error:
        raise CatalogError(
            f"The cache folder {folder} cannot be written to ({error.strerror or error}). "
            f"Name another one with {CACHE_VARIABLE}, or set cache=false."
        ) from error


def unfinished(target: Path) -> list[Path]:
    """Files that are to become this one, and are not whole."""
    return sorted(target.parent.glob(f"{target.stem}.*{UNFINISHED}"))


def room_for(target: Path, shape: tuple[int, ...], dtype: np.typing.DTypeLike) -> tuple[int, int]:
    """Bytes that a file still needs, beside what is written of it, and bytes to be had."""
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    for file in unfinished(target):
        with suppress(OSError):
            # It has gaps where parts are missing.
            needed -= min(needed, file.stat().st_blocks * 512)
    return needed, shutil.disk_usage(target.parent).free - _DISK_RESERVE


def check_disk(target: Path, shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    """:raises CatalogError: when the disk has no room for such a file."""
    needed, free = room_for(target, shape, dtype)
    if needed > free:
        folder = target.parent
        raise CatalogError(
            f"The cache folder {folder} has {shutil.disk_usage(folder).free / 2**20:,.0f} MiB "
            f"free; {what} need {needed / 2**20:,.0f} MiB. Free some, name a folder on a larger "
            f"disk with {CACHE_VARIABLE}, or set cache=false."
        )


def checksum(description: dict[str, Any], header: bytes) -> int:
    """CRC-32 of all that a description tells, and of the file's header, which is trusted no more
    than its values.

    :raises AttributeError: when what is to be remembered is no mapping.
    """
    told = {name: description[name] for name in ("offset", "part_bytes", "parts")}
    told["about"] = sorted(description["about"].items())
    return zlib.crc32(header, zlib.crc32(json.dumps(told, sort_keys=True).encode()))
