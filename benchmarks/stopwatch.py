"""Compute times of epochs and of the whole job from times of batches, measured or scaled."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import psutil

from .job import Job

_FEWEST_BATCHES = 2


@dataclass(frozen=True)
class Batch:
    """Seconds of waiting for a batch, seconds of its step, and its number of photos.

    :ivar cold: whether it is the first of its phase, which compiles and warms up.
    """

    wait: float
    step: float
    photos: int
    cold: bool

    @property
    def seconds(self) -> float:
        """Seconds of waiting and computing."""
        return self.wait + self.step


@dataclass
class Pass:
    """The batches of an epoch; whether it is complete, and when it was done since the start."""

    batches: list[Batch] = field(default_factory=list)
    complete: bool = False
    done: float = 0.0
    validation: float | None = None


@dataclass
class Stopwatch:
    """Records the times of a training, and tells when the budget is used up.

    A phase is a sequence of epochs with the same kind of steps; its first batch is cold. fastai has
    two phases.

    :ivar began: when the process started.
    :ivar phase: number of the first epoch of the current phase.
    """

    job: Job
    began: float = field(default_factory=lambda: psutil.Process(os.getpid()).create_time())
    passes: list[Pass] = field(default_factory=list)
    phase: int = 0
    ready: float = 0.0

    def elapsed(self) -> float:
        """Seconds since the process started."""
        return time.time() - self.began

    def begin_training(self) -> None:
        """Record the end of the setup."""
        self.ready = self.elapsed()

    def begin_epoch(self, new_phase: bool = False) -> None:
        """Start an epoch."""
        if new_phase:
            self.phase = len(self.passes)
        self.passes.append(Pass())

    def add(self, wait: float, step: float, photos: int) -> None:
        """Record a batch of the current epoch."""
        cold = not any(one.batches for one in self.passes[self.phase :])
        self.passes[-1].batches.append(Batch(wait, step, photos, cold))

    def end_epoch(self, validation: float) -> None:
        """End the current epoch, after a validation of a number of seconds."""
        last = self.passes[-1]
        last.complete, last.validation, last.done = True, validation, self.elapsed()

    def enough(self, share: float = 1.0) -> bool:
        """Whether the batches of this phase have used up their share of the budget."""
        if self.job.to_the_end:
            return False
        warm = _warm(self.passes[self.phase :])
        spent = sum(batch.seconds for batch in warm)
        return len(warm) >= _FEWEST_BATCHES and spent >= share * self.job.budget

    def figures(
        self,
        epoch_photos: int,
        validation: float | None,
        test: float | None,
        evaluation_compiling: float = 0.0,
    ) -> dict[str, Any]:
        """The figures of the training; ``scaled`` names those that were scaled.

        :param epoch_photos: photos that an epoch trains on.
        :param validation: seconds of a validation that does not compile; None: the job ran to its
            end.
        :param test: scaled seconds of the test; None: the job ran to its end.
        :param evaluation_compiling: seconds by which the first validation takes longer.
        """
        scaled = []
        first_phase, later_phase = self.passes[: self.phase or None], self.passes[self.phase :]
        compiling = _compiling(first_phase) if self.phase else 0.0
        if self.passes[0].complete:
            first = self.passes[0].done
        else:
            scaled.append("first_epoch_done")
            cold = compiling if self.phase else _compiling(later_phase)
            cold += max(0.0, evaluation_compiling)
            first = self.ready + cold + epoch_photos / _rate(first_phase) + (validation or 0.0)
        later_epochs = [one for one in self.passes[max(self.phase, 1) :] if one.complete]
        if later_epochs:
            later = statistics.median(_epoch_seconds(one, later_phase) for one in later_epochs)
        else:
            scaled.append("later_epoch")
            later = epoch_photos / _rate(later_phase) + (validation or 0.0)
        whole = None
        if test is not None:
            scaled.append("whole_job")
            late_compiling = _compiling(later_phase) if self.phase else 0.0
            whole = first + late_compiling + (self.job.epochs - 1) * later + test
        warm = _warm(later_phase) or later_phase[0].batches
        return {
            "start_seconds": self.ready,
            "compile_seconds": compiling + _compiling(later_phase) if self.job.compile else None,
            "first_epoch_done": first,
            "later_epoch": later,
            "images_per_second": _rate(later_phase),
            "input_wait": sum(b.wait for b in warm) / sum(b.seconds for b in warm),
            "whole_job": whole,
            "measured_batches": len(warm),
            "epochs_run": sum(one.complete for one in self.passes),
            "scaled": scaled,
        }


def _warm(passes: list[Pass]) -> list[Batch]:
    return [batch for one in passes for batch in one.batches if not batch.cold]


def _rate(passes: list[Pass]) -> float:
    """Photos per second, including waiting; without the cold batch if there are others."""
    batches = _warm(passes) or [batch for one in passes for batch in one.batches]
    return sum(batch.photos for batch in batches) / sum(batch.seconds for batch in batches)


def _compiling(passes: list[Pass]) -> float:
    """How many seconds longer the cold batch took than other batches."""
    if not _warm(passes):
        return 0.0
    cold = [batch for one in passes for batch in one.batches if batch.cold]
    return sum(max(0.0, batch.seconds - batch.photos / _rate(passes)) for batch in cold)


def _epoch_seconds(one: Pass, phase: list[Pass]) -> float:
    """Seconds of a complete epoch, without the compiling of its cold batch."""
    extra = _compiling(phase) if any(batch.cold for batch in one.batches) else 0.0
    return sum(batch.seconds for batch in one.batches) - extra + (one.validation or 0.0)
