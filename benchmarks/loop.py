"""A plain, timed training loop, shared by the references that have no loop of their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shopee_mlflow.modeling.device import Machine, choose_machine
from shopee_mlflow.modeling.metrics import score

from .job import Job
from .stopwatch import Stopwatch

Loader = Iterable[tuple[Tensor, Tensor]]
# Share of the budget for part of a validation, if no epoch was complete.
_VALIDATION_SHARE = 0.25


@dataclass(frozen=True)
class Evaluation:
    """Labels and logits of the predicted photos, and the seconds it took."""

    labels: np.ndarray
    logits: np.ndarray
    seconds: float

    def scaled(self, photos: int) -> float:
        """Scale the seconds to a number of photos."""
        return self.seconds / len(self.labels) * photos


@dataclass(frozen=True)
class Training:
    """The parts of a system: a model on its device, loaders, and the update of a step.

    :ivar epoch_photos: number of photos in an epoch of ``train``, and in ``val`` and ``test``.
    :ivar after_epoch: called with the number of finished epochs, to step the schedule.
    """

    model: nn.Module
    train: Loader
    val: Loader
    test: Loader
    photos: dict[str, int]
    optimizer: Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    channels_last: bool
    after_epoch: Callable[[int], object]

    def place(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device, in the model's memory order."""
        order = torch.channels_last if self.channels_last else torch.preserve_format
        images = images.to(self.device, memory_format=order, non_blocking=True)
        return images, labels.to(self.device, non_blocking=True)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """One update of the weights."""
        images, labels = self.place(images, labels)
        with self.autocast():
            loss = self.loss(self.model(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        wait_for(self.device)

    @torch.no_grad()
    def evaluate(self, loader: Loader, limit: float = float("inf")) -> Evaluation:
        """Logits in eval mode, of all photos or until a number of seconds has passed."""
        self.model.eval()
        labels, logits = [], []
        began = time.perf_counter()
        for images, targets in loader:
            moved, _ = self.place(images, targets)
            with self.autocast():
                logits.append(self.model(moved).float().cpu())
            labels.append(targets.cpu())
            if time.perf_counter() - began > limit:
                break
        seconds = time.perf_counter() - began
        return Evaluation(torch.cat(labels).numpy(), torch.cat(logits).numpy(), seconds)


def run(job: Job, training: Training) -> dict[str, Any]:
    """Train until the budget is used up; a training that reaches its end is also tested."""
    watch = Stopwatch(job)
    watch.begin_training()
    for number in range(1, job.epochs + 1):
        watch.begin_epoch()
        if not _train_epoch(training, watch):
            break
        watch.end_epoch(training.evaluate(training.val).seconds)
        training.after_epoch(number)
        if watch.enough() and number < job.epochs:
            break
    photos = training.photos
    if watch.passes[-1].complete and len(watch.passes) == job.epochs:
        tested = training.evaluate(training.test)
        figures = watch.figures(photos["train"], None, None)
        return {**figures, **_scores(tested.labels, tested.logits)}
    # The first of these batches may compile.
    cold = training.evaluate(training.val, 0)
    some = training.evaluate(training.val, _VALIDATION_SHARE * job.budget)
    return watch.figures(
        photos["train"],
        some.scaled(photos["val"]),
        some.scaled(photos["test"]),
        cold.seconds - some.scaled(len(cold.labels)),
    )


def _scores(labels: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    return {"test": {**score(labels, logits), "photos": len(labels)}}


def _train_epoch(training: Training, watch: Stopwatch) -> bool:
    """Whether the epoch was complete."""
    training.model.train()
    asked = time.perf_counter()
    for images, labels in training.train:
        came = time.perf_counter()
        training.step(images, labels)
        done = time.perf_counter()
        watch.add(came - asked, done - came, len(labels))
        epoch_photos = sum(batch.photos for batch in watch.passes[-1].batches)
        if watch.enough() and epoch_photos < training.photos["train"]:
            return False
        asked = time.perf_counter()
    return True


def wait_for(device: torch.device) -> None:
    """Synchronize the device, so that the time of a step is its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine_of(job: Job) -> Machine:
    """The device and precision that this project would choose."""
    machine = choose_machine(job.device)
    if machine.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    return machine


def plainly() -> AbstractContextManager[object]:
    """No mixed precision."""
    return nullcontext()


def describe(job: Job, *words: str) -> str:
    """The flags of a reference, for the table."""
    flags = [f"{job.workers} workers"]
    flags += ["channels_last"] if job.channels_last else []
    flags += ["compile"] if job.compile else []
    return ", ".join([*flags, *words])
