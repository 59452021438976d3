"""Errors meant for people: every message says what is wrong, where, and what to do."""

from __future__ import annotations

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

    :ivar transient: whether the same bytes may decode another time: a read error, too little
        memory, a decoder that is not installed. Such a failure must not be remembered.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class ModelError(ShopeeError):
    """An architecture, a weights file or a stage that does not fit."""


class TrackingError(ShopeeError):
    """The tracking server, the registry or a logged model is not what was asked for."""


class ReadOnlyStoreError(TrackingError):
    """The tracking store may be read, but not written."""


class TrainingError(ShopeeError):
    """Training cannot go on, for instance because the loss is no number any more."""

    exit_code = 1


class GroupLostError(TrainingError):
    """Of processes that train one model another one is gone, or does not answer."""


class CheckpointError(ShopeeError):
    """A checkpoint that cannot be written or read, or that does not fit what is asked for."""


class StudyError(ShopeeError):
    """A search's study, or the storage it is kept in, is not what was asked for."""
