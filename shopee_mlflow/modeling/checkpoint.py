"""Checkpoints: a training on the disk, whole or not at all, to go on from exactly.

Two files, so that an epoch that is not the best writes the smaller half: ``last.pt``, rolling, and
``best.pt``, the best epoch so far. They hold tensors and plain values only, and nothing in them is
executed when they are read.
"""

from __future__ import annotations

import os
import pickle
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

LAST, BEST = "last.pt", "best.pt"
# Changes when checkpoints are written in another way.
_VERSION = 1


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training, in a folder of its own."""

    folder: Path

    def save(self, last: Mapping[str, Any], best: Mapping[str, Any] | None = None) -> None:
        """Write the state; the best epoch as well where it is given.

        :raises CheckpointError: when the disk is full or cannot be written; the checkpoint before
            is as it was.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The best one first: last.pt must never tell of one that is not there.
            if best is not None:
                _write(self.folder / BEST, best)
            _write(self.folder / LAST, last)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint in {self.folder} could not be written ({error.strerror or error})."
                " The one before is as it was. Free some space, and go on with resume."
            ) from error

    def load(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The state, on the CPU, and the best epoch, if there is one.

        :raises CheckpointError: when there is none, or it is damaged.
        """
        best = self.folder / BEST
        return _read(self.folder / LAST), _read(best) if best.exists() else None

    def is_there(self) -> bool:
        """Whether there is something to go on from."""
        return (self.folder / LAST).is_file()

    def delete(self) -> None:
        """Take the files away: the training has ended well."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(target: Path, content: Mapping[str, Any]) -> None:
    """Another file takes the place of the one before when it is whole and on the disk."""
    own = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        with own.open("wb") as stream:
            torch.save({"version": _VERSION, **content}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        own.replace(target)
    except RuntimeError as error:
        # torch's writer tells of a full disk in its own way.
        raise OSError(str(error).split("\n")[0]) from error
    finally:
        own.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content["version"] != _VERSION:
            raise CheckpointError(f"{file} was written by another version of this project.")
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no checkpoint {file}.") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"The checkpoint {file} is damaged or no checkpoint ({reason}). Begin again without "
            "resume."
        ) from error
    return dict(content)
