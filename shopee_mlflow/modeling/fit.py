"""The training loop: a generator of epochs. The caller owns logging, stopping and checkpoints."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from ..config import TrainConfig
from ..data.batches import Batches
from ..errors import TrainingError
from .machine import Machine, give_back_memory

# (photos done in this epoch, running loss, running accuracy); called between batches.
Watch = Callable[[int, float, float], None]
_WATCH_SECONDS = 0.5


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave. ``number`` counts from 1; accuracies are shares, 0..1."""

    number: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    epoch_seconds: float
    images_per_second: float

    def metrics(self) -> dict[str, float]:
        """Name -> value, by the names that a run logs."""
        return {name: value for name, value in vars(self).items() if name != "number"}


@dataclass
class Best:
    """The best epoch by validation accuracy, and a copy of its weights.

    Of epochs of equal accuracy, which are common where few photos validate, the one of lower
    validation loss is the better.
    """

    module: nn.Module
    epoch: Epoch | None = None
    _weights: Mapping[str, Tensor] = field(default_factory=dict)

    def update(self, epoch: Epoch) -> bool:
        """Keep the module's weights if this epoch is better than all before; says whether it is."""
        if self.epoch is not None and _rank(epoch) <= _rank(self.epoch):
            return False
        self.epoch = epoch
        # A copy of the mapping itself, which says the layers' versions, too: MNASNet asks for its.
        self._weights = copy.deepcopy(self.module.state_dict())
        return True

    def restore(self) -> Epoch:
        """Put the best weights back into the module."""
        assert self.epoch is not None, "no epoch has been seen"
        self.module.load_state_dict(self._weights)
        return self.epoch


def epochs_without_progress(epochs: Sequence[Epoch]) -> int:
    """How many epochs ago the highest validation accuracy was first reached."""
    accuracies = [epoch.val_accuracy for epoch in epochs]
    return len(accuracies) - 1 - accuracies.index(max(accuracies))


def _rank(epoch: Epoch) -> tuple[float, float]:
    return epoch.val_accuracy, -epoch.val_loss


def fit(
    module: nn.Module,
    train: Batches,
    val: Batches,
    config: TrainConfig,
    machine: Machine,
    watch: Watch | None = None,
    step: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Epoch]:
    """Train, giving back one result an epoch: SGD on cross entropy, validation in eval mode.

    Which epoch is the last is the caller's to decide, up to ``config.epochs``. On the CPU the
    same seed, module and batches give the same epochs, value by value.

    :param module: inputs of ``train`` -> logits; trained in place, on the device already.
    :param step: the same module, compiled for whole batches; a smaller last batch goes uncompiled.
    :raises TrainingError: when the loss is no finite number any more.
    """
    optimizer = SGD(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    schedule = LambdaLR(optimizer, learning_rate_curve(config, steps_per_epoch=len(train)))
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
    trainer = _Trainer(module, step or module, optimizer, schedule, config, machine, scaler)
    for number in range(1, config.epochs + 1):
        started = time.perf_counter()
        # Dropout's randomness follows from the epoch, so any epoch can be done again alone.
        torch.manual_seed(config.seed * 1_000_003 + number)
        lr = float(schedule.get_last_lr()[0])
        train_loss, train_accuracy = trainer.train_epoch(train, number, watch)
        seconds = time.perf_counter() - started
        labels, logits = predict_logits(module, val, machine)
        val_loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise TrainingError(
                f"The loss in epoch {number} is {train_loss} (validation {val_loss}): training "
                f"diverged. Lower lr (now {config.lr:g}) or set clip_norm=1."
            )
        give_back_memory(machine)
        yield Epoch(
            number=number,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=float((logits.argmax(axis=1) == labels).mean()),
            lr=lr,
            epoch_seconds=time.perf_counter() - started,
            images_per_second=train.photos / seconds,
        )


@dataclass(frozen=True)
class _Trainer:
    module: nn.Module
    step: Callable[[Tensor], Tensor]
    optimizer: SGD
    schedule: LambdaLR
    config: TrainConfig
    machine: Machine
    scaler: torch.amp.GradScaler

    def train_epoch(
        self, batches: Batches, number: int, watch: Watch | None
    ) -> tuple[float, float]:
        """Mean loss and accuracy over the epoch's photos, each seen once, in train mode."""
        self.module.train()
        # Summed on the device: reading a value would wait for it, so that is done rarely.
        totals = torch.zeros(2, device=self.machine.device)
        done, shown = 0, time.perf_counter()
        for inputs, labels in batches.epoch(number):
            whole = len(labels) == self.config.batch_size
            with self.machine.autocast():
                logits = (self.step if whole else self.module)(inputs)
                loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
            self._learn(loss)
            correct = (logits.detach().argmax(1) == labels).sum()
            totals += torch.stack([loss.detach().float() * len(labels), correct])
            done += len(labels)
            if watch and time.perf_counter() - shown > _WATCH_SECONDS:
                loss_sum, correct_sum = totals.tolist()
                watch(done, loss_sum / done, correct_sum / done)
                shown = time.perf_counter()
        loss_sum, correct_sum = totals.tolist()
        return loss_sum / done, correct_sum / done

    def _learn(self, loss: Tensor) -> None:
        scaler = self.scaler
        self.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        if self.config.clip_norm:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm)
        scale = scaler.get_scale()
        scaler.step(self.optimizer)
        scaler.update()
        # fp16 leaves out a step whose gradients overflow, and then lowers its scale.
        if scaler.get_scale() >= scale:
            self.schedule.step()


@torch.inference_mode()
def predict_logits(
    module: nn.Module, batches: Batches, machine: Machine
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) int64 and logits (N, C) float32 of every photo, in order, in eval mode."""
    module.eval()
    labels, logits = [], []
    for inputs, targets in batches.epoch():
        with machine.autocast():
            logits.append(module(inputs).float())
        labels.append(targets)
    return torch.cat(labels).cpu().numpy(), torch.cat(logits).cpu().numpy()


def learning_rate_curve(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Step number -> factor of ``lr``: a linear warm-up, then constant or half a cosine to 0."""
    total = max(config.epochs * steps_per_epoch, 1)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return factor
