"""Errors meant for people: every message says what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence

from .masking import mask_passwords


class ShopeeError(Exception):
    """An error that the user can correct. The command line prints it and exits with 2."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(mask_passwords(message))


class ConfigError(ShopeeError):
    """Options that are unknown, out of range or contradict each other.

    All problems of one configuration are collected first and raised together.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = [mask_passwords(problem) for problem in problems]
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  ".join([f"{count} in the options:", *self.problems]))


class CatalogError(ShopeeError):
    """The catalogue (CSV, photo folder) cannot be used as it is."""


class ImageError(ShopeeError):
    """A photo cannot be decoded; the message is the reason, without the file's name.

    :ivar transient: whether the same bytes may decode later: after a read error, without enough
        memory, or without the decoder installed. Such a failure must not be cached.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class ModelError(ShopeeError):
    """An architecture, weights file or stage to freeze is unknown or does not match."""


class TrackingError(ShopeeError):
    """The tracking store, the registry or a logged model is not available, or not as expected."""


class ReadOnlyStoreError(TrackingError):
    """The tracking store can be read, but not written to."""


class TrainingError(ShopeeError):
    """Training cannot continue, for instance because the loss is not finite."""

    exit_code = 1


class GroupLostError(TrainingError):
    """Another process that trains the same model is gone or does not respond."""


class CheckpointError(ShopeeError):
    """A checkpoint cannot be written or read, or does not match the training."""


class StudyError(ShopeeError):
    """A study or its storage is not available, or does not match the search."""


_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_WORDS = ("No space left on device", "Disk quota exceeded")


def disk_full(error: BaseException | None) -> str:
    """A message if a full disk or quota has caused an error, else ""."""
    while error is not None:
        # torch's writer of files does not name the operating system's error.
        torchs = isinstance(error, RuntimeError) and "iostream error" in str(error)
        if torchs or getattr(error, "errno", None) in _FULL:
            place = getattr(error, "filename", None)
            return _no_space(f"the disk of {place}" if place else "the disk")
        if any(words in str(error) for words in _FULL_WORDS):
            # MLflow quotes errors, also those of a server.
            return _no_space("a disk of this machine or of the server")
        hidden = error.__suppress_context__
        error = error.__cause__ or (None if hidden else error.__context__)
    return ""


def _no_space(where: str) -> str:
    return (
        f"No space left on {where}. Free some space and run the command again. Temporary files are "
        f"in {tempfile.gettempdir()}; the variable TMPDIR names another folder for them."
    )
