"""The training loop: a generator of epochs. The caller owns logging, stopping and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..config import TrainConfig
from ..data.batches import Batch, Batches
from ..errors import CheckpointError, TrainingError
from ..modeling.device import Machine, release_memory
from ..modeling.distributed import ALONE, Group
from ..modeling.epochs import Epoch, validation_metrics
from ..modeling.loss import CrossEntropy
from ..modeling.memory import free_memory, out_of_memory_reason, smaller_part
from ..modeling.optim import (
    learning_rate,
    learning_rate_curve,
    make_optimizer,
    weight_average,
)
from ..modeling.scoring import predict_logits
from .custom import OptimizerFactory, custom_optimizer

# (photos done in this epoch, running loss, running accuracy); called between batches.
OnProgress = Callable[[int, float, float], None]
_PROGRESS_SECONDS = 0.5


class Trainer:
    """Trains a module and validates it after each epoch, up to ``config.epochs``.

    On the CPU, equal seeds, modules and batches give identical results. This also holds for a
    trainer restored from a state that was saved between two batches.
    """

    def __init__(
        self,
        module: nn.Module,
        train: Batches,
        val: Batches,
        config: TrainConfig,
        machine: Machine,
        *,
        loss: CrossEntropy | None = None,
        compiled: Callable[[Tensor], Tensor] | None = None,
        backbone: nn.Module | None = None,
        group: Group = ALONE,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        """
        :param module: inputs of ``train`` -> logits; already on the device; trained in place.
        :param train: each of its batches is a training step, of ``config.accumulate`` batches.
        :param loss: the loss; by default cross entropy with the label smoothing of ``config``.
        :param compiled: the same module, compiled for full batches; a smaller last batch runs
            uncompiled.
        :param backbone: the part of the module that may have smaller learning rates.
        :param group: the processes that train the module together, each with a share of ``train``
            and ``val``; metrics are computed over all shares.
        :param optimizer: parameters -> optimizer, instead of the one that the options name.
        """
        self.module, self._group = module, group
        self._wrapped = group.wrap(module, machine.device, config.sync_batchnorm)
        self._compiled = compiled or self._wrapped
        self._train, self._val, self._config, self._machine = train, val, config, machine
        self._loss = loss or CrossEntropy(config.label_smoothing)
        self._optimizer = (
            custom_optimizer(optimizer, module.parameters())
            if optimizer
            else make_optimizer(module, config, backbone)
        )
        curve = learning_rate_curve(config, steps_per_epoch=len(train))
        self._schedule = LambdaLR(self._optimizer, curve)
        self._scaler = torch.amp.GradScaler(
            machine.device.type, enabled=machine.precision == "fp16"
        )
        self._average = weight_average(module, config, config.epochs * len(train))
        batch_size = train.batch_size // config.accumulate
        self._share = math.ceil(batch_size / group.size)
        # The most photos in one backward pass: a batch (the last one may have one photo more), or
        # fewer after running out of memory.
        self.part = batch_size + 1
        self._number = 1
        self._random: Tensor | None = None
        self._lr = self._current_rate()
        self._begin_epoch()

    @property
    def photos(self) -> int:
        """Number of training photos in an epoch."""
        return self._train.photos

    @property
    def validated(self) -> nn.Module:
        """The module that is validated: the average of the weights if there is one."""
        average = self._average
        return self.module if average is None else average.module

    def epochs(
        self,
        on_progress: OnProgress | None = None,
        after_batch: Callable[[], None] | None = None,
    ) -> Iterator[Epoch]:
        """Train and yield the remaining epochs.

        :param on_progress: called at intervals during an epoch.
        :param after_batch: called after each batch; if it raises, :meth:`state` can be saved.
        :raises TrainingError: when the loss is not finite.
        """
        while self._number <= self._config.epochs:
            yield self._epoch(on_progress, after_batch)

    def sync_totals(self) -> None:
        """Sum the running totals of all processes into the first one.

        All processes must call this before :meth:`state` is saved within an epoch.
        """
        self._keep_totals(self._group.sum(self._totals))

    def _keep_totals(self, totals: Tensor) -> None:
        """Store the overall totals in the first process only, since they are summed again later."""
        self._totals = totals if self._group.leads else torch.zeros_like(totals)
        self._restored = self._totals.clone()

    def state(self) -> dict[str, Any]:
        """The state needed to resume exactly: weights, optimizer, schedule, position in the epoch
        and random states. Tensors are not copied."""
        return {
            "number": self._number,
            "batches": self._batches,
            "seen": self._seen,
            "totals": self._totals,
            "part": self.part,
            "lr": self._lr,
            "random": torch.get_rng_state(),
            "cuda_random": self._cuda_random(),
            "module": self.module.state_dict(),
            "average": self._average.state_dict() if self._average else None,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state that :meth:`state` returned.

        :raises CheckpointError: when the state does not match this training.
        """
        try:
            self.module.load_state_dict(state["module"])
            if self._average:
                self._average.load_state_dict(state["average"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self._scaler.load_state_dict(state["scaler"])
            self._number, self._batches = state["number"], state["batches"]
            self._seen, self._lr = state["seen"], state["lr"]
            if self._group.size == 1:
                self.part = state["part"]
            # The dtype first, since MPS has no float64.
            totals = state["totals"].to(self._totals.dtype)
            self._keep_totals(totals.to(self._machine.device))
            self._random = state["random"].cpu()
            if state["cuda_random"] is not None and self._machine.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_random"].cpu(), self._machine.device)
        except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise CheckpointError(
                f"The checkpoint does not match this training: {reason}"
            ) from error

    def _begin_epoch(self) -> None:
        self._batches = self._seen = 0
        # Sums of the loss, its normaliser and correct predictions. They stay on the device and are
        # read rarely, since each read synchronizes with it.
        self._totals = torch.zeros(3, device=self._machine.device, dtype=torch.float64)
        if self._machine.device.type == "mps":  # MPS has no float64
            self._totals = self._totals.float()
        # Totals of all processes before the resume.
        self._restored = torch.zeros_like(self._totals)
        self._random = None

    def _cuda_random(self) -> Tensor | None:
        if self._machine.device.type != "cuda":
            return None
        return torch.cuda.get_rng_state(self._machine.device)

    def _epoch(
        self, on_progress: OnProgress | None, after_batch: Callable[[], None] | None
    ) -> Epoch:
        started, seen_before = time.perf_counter(), self._seen
        train_loss, train_accuracy = self._train_epoch(on_progress, after_batch)
        seconds = time.perf_counter() - started
        self._group.share_buffers(self.module)
        self._group.share_buffers(self.validated)
        validation = self._validate(after_batch) if self._val.photos else {}
        self._check_finite(train_loss, validation.get("val_loss", 0.0))
        release_memory(self._machine)
        metrics = {
            # The first one leads MLflow's list of metrics and its page that compares runs.
            **validation,
            "train_accuracy": train_accuracy,
            "train_loss": train_loss,
            "lr": self._lr,
            "epoch_seconds": time.perf_counter() - started,
            "images_per_second": (self._seen - seen_before) / seconds,
        }
        epoch = Epoch(self._number, metrics)
        self._number += 1
        self._lr = self._current_rate()
        self._begin_epoch()
        return epoch

    def _validate(self, after_batch: Callable[[], None] | None) -> dict[str, float]:
        labels, logits = predict_logits(
            self.validated, self._val, self._machine, self._group, after_batch
        )
        loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        return {**validation_metrics(labels, logits), "val_loss": loss}

    def _current_rate(self) -> float:
        """The learning rate of the head, which no other exceeds."""
        return float(max(self._schedule.get_last_lr()))

    def _train_epoch(
        self, on_progress: OnProgress | None, after_batch: Callable[[], None] | None
    ) -> tuple[float, float]:
        """Train for one epoch; returns mean loss and accuracy over its photos."""
        self.module.train()
        self._seed_dropout()
        shown = time.perf_counter()
        for batch in self._train.epoch(self._number, skip=self._batches):
            self._learn(batch)
            if time.perf_counter() - shown > _PROGRESS_SECONDS:
                self._report(on_progress)
                shown = time.perf_counter()
            if after_batch:
                after_batch()
        return self._means(self._group.sum(self._totals))

    def _seed_dropout(self) -> None:
        """Seed dropout from the number of the epoch, so that any epoch can be repeated."""
        seed = self._config.seed * 1_000_003 + self._number + self._group.rank * 7_919
        if not self._batches:
            torch.manual_seed(seed)
        elif self._random is not None and self._group.leads:
            torch.set_rng_state(self._random)
        elif self._random is not None:
            # A checkpoint has the random state of the first process only.
            torch.manual_seed(seed + self._batches * 104_729)

    def _report(self, on_progress: OnProgress | None) -> None:
        """Report progress, estimated for all processes from the share of this one."""
        totals = self._restored + (self._totals - self._restored) * self._group.size
        # The normaliser already covers whole batches.
        totals[1] = self._totals[1]
        loss, accuracy = self._means(totals)
        if self._group.leads:
            # Only one process checks: if several raised, one could be reported as lost instead.
            self._check_finite(loss)
        if on_progress:
            on_progress(self._seen, loss, accuracy)

    def _means(self, totals: Tensor) -> tuple[float, float]:
        loss_sum, normaliser, correct = totals.tolist()
        return loss_sum / normaliser if normaliser else 0.0, correct / self._seen

    def _check_finite(self, train_loss: float, val_loss: float = 0.0) -> None:
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise TrainingError(
                f"The loss in epoch {self._number} is {train_loss} (validation {val_loss}): "
                f"training diverged. Lower lr (now {learning_rate(self._config):g}) or set "
                "clip_norm=1."
            )

    def _learn(self, batch: Batch) -> None:
        """Run one training step, split into smaller parts after running out of memory."""
        while True:
            try:
                totals = self._gradients(batch)
                break
            except (ValueError, RuntimeError) as error:
                reason = out_of_memory_reason(error, len(batch.labels), self._group)
            # Outside the handler, in which the exception still keeps the step's memory alive.
            self.part = smaller_part(min(self.part, len(batch.labels)), len(batch.labels), reason)
            free_memory(self._machine)
        self._update()
        self._totals += totals
        self._seen += len(batch.all_labels)
        self._batches += 1

    def _gradients(self, batch: Batch) -> Tensor:
        """Compute the gradients of a step, part by part; returns its totals, (3,)."""
        self._optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros_like(self._totals)
        normaliser = self._loss.normaliser(batch.all_labels)
        counts = batch.own > 0
        count = self._parts(len(batch.labels))
        parts = zip(batch.inputs.tensor_split(count), batch.labels.tensor_split(count), strict=True)
        for number, (x, y) in enumerate(parts, start=1):
            # The compiled module takes full batches only.
            step = self._compiled if len(y) == self._config.batch_size else self._wrapped
            with self._group.synchronised(self._wrapped, number == count):
                with self._machine.autocast():
                    logits = step(x)
                    loss = self._loss.sum(logits, y)
                # DistributedDataParallel averages over the processes; group.size undoes this.
                scale = counts * self._group.size / normaliser
                self._scaler.scale(loss * scale).backward()
            if counts:
                # Of a mixed photo, the label with the larger share counts.
                true = y.argmax(1) if y.ndim == 2 else y
                correct = (logits.detach().argmax(1) == true).sum()
                totals[0] += loss.detach()
                totals[2] += correct
        if self._group.leads:
            totals[1] = normaliser
        return totals

    def _parts(self, photos: int) -> int:
        """The number of backward passes of a step: one for each batch, or more in little memory.

        A last batch of one photo adds none, since batch norm cannot learn from a single photo.
        """
        return max(math.ceil((photos - 1) / self._share), math.ceil(photos / self.part))

    def _update(self) -> None:
        scaler = self._scaler
        if self._config.clip_norm:
            scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self._config.clip_norm)
        scale = scaler.get_scale()
        scaler.step(self._optimizer)
        scaler.update()
        # The scaler skips a step whose gradients overflow, and lowers its scale.
        if scaler.get_scale() >= scale:
            self._schedule.step()
            if self._average:
                self._average.update_parameters(self.module)
