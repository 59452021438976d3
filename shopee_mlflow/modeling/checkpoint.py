"""Checkpoint files: written atomically, verified by a digest, read without executing code.

There are two files: ``last.pt``, replaced each time, and ``best.pt``, the best epoch so far, which
is written only when it changes. They hold tensors and plain values only.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..errors import CheckpointError

LAST, BEST = "last.pt", "best.pt"
# Change it whenever the contents of checkpoints change.
_VERSION = 2
# A file begins with these bytes and the digest of all that follows.
_MAGIC, _DIGEST_BYTES = b"shopee01", 16


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, in a folder of its own."""

    folder: Path

    def save(self, last: Mapping[str, Any], best: Mapping[str, Any] | None = None) -> None:
        """Write the state and, if given, the best epoch.

        :raises CheckpointError: when the disk is full or not writable; the previous
            checkpoint is unchanged.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The best epoch first: last.pt must never refer to a missing one.
            if best is not None:
                _write(self.folder / BEST, best)
            _write(self.folder / LAST, last)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint in {self.folder} could not be written ({error.strerror or error})."
                " The previous one is unchanged. Free some space, and resume."
            ) from error

    def prepare(self) -> None:
        """Create the folder, and delete partial files of a write that was killed.

        :raises CheckpointError: when the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob("*.tmp"):
                partial.unlink(missing_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise CheckpointError(
                f"No checkpoint can be written to {self.folder.resolve()} "
                f"({error.strerror or error}). Start in a folder that can be written to."
            ) from error

    def load(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The last state, with tensors on the CPU, and the best epoch, if there is one.

        :raises CheckpointError: when there is no checkpoint, or it is damaged.
        """
        best = self.folder / BEST
        return _read(self.folder / LAST), _read(best) if best.exists() else None

    def is_there(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.folder / LAST).is_file()

    def delete(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # not empty: other trainings have checkpoints
            self.folder.parent.rmdir()


class _Hashing:
    """A stream that computes the digest of what is written to it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def _write(target: Path, content: Mapping[str, Any]) -> None:
    """Write a temporary file, and rename it to the target once it is complete and on the disk."""
    temporary = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(_MAGIC + bytes(_DIGEST_BYTES))
            hashing = _Hashing(stream)
            torch.save({"version": _VERSION, **content}, cast(IO[bytes], hashing))
            stream.seek(len(_MAGIC))
            stream.write(hashing.digest.digest())
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    except RuntimeError as error:
        # torch's writer reports a full disk as a RuntimeError.
        raise OSError(str(error).split("\n")[0]) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
        start = len(_MAGIC) + _DIGEST_BYTES
        # torch would load a tensor with a flipped bit without noticing.
        digest = hashlib.blake2b(data[start:], digest_size=_DIGEST_BYTES).digest()
        if data[:start] != _MAGIC + digest:
            raise OSError("its digest does not match")
        content = torch.load(io.BytesIO(data[start:]), map_location="cpu", weights_only=True)
        if content["version"] != _VERSION:
            raise CheckpointError(f"{file} was written by another version of this project.")
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {file}.") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"The checkpoint {file} is damaged or not a checkpoint ({reason}). Start again without "
            "resume."
        ) from error
    return dict(content)
