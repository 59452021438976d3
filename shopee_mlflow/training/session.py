"""The training loop: a generator of epochs. The caller owns logging, stopping and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from ..config import TrainConfig
from ..data.batches import Batches
from ..errors import TrainingError
from ..modeling.device import Machine, give_back_memory
from ..modeling.epochs import Epoch
from ..modeling.group import ALONE, Group, is_lost, lost
from ..modeling.memory import free_memory, is_out_of_memory, smaller_part
from ..modeling.optim import learning_rate_curve
from ..modeling.scoring import predict_logits

# (photos done in this epoch, running loss, running accuracy); called between batches.
Watch = Callable[[int, float, float], None]
_WATCH_SECONDS = 0.5
# How torch says so.
_ONE_VALUE = "Expected more than 1 value per channel"


def fit(
    module: nn.Module,
    train: Batches,
    val: Batches,
    config: TrainConfig,
    machine: Machine,
    watch: Watch | None = None,
    step: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Epoch]:
    """Train from the beginning, giving back one result an epoch: see :class:`Training`."""
    return Training(module, train, val, config, machine, step).epochs(watch)


class Training:
    """SGD on cross entropy, validation in eval mode: epochs one by one, up to ``config.epochs``.

    Which of them is the last is the caller's to decide. On the CPU the same seed, module and
    batches give the same epochs, value by value; also where a training goes on from the state that
    another had between two batches.
    """

    def __init__(
        self,
        module: nn.Module,
        train: Batches,
        val: Batches,
        config: TrainConfig,
        machine: Machine,
        step: Callable[[Tensor], Tensor] | None = None,
        group: Group = ALONE,
    ) -> None:
        """
        :param module: inputs of ``train`` -> logits; trained in place, on the device already.
        :param step: the same module, compiled for whole batches; a smaller last batch goes
            uncompiled.
        :param group: the processes that train it together, each with a share of ``train`` and
            ``val``; what an epoch gives is then that of all shares.
        """
        self.module, self._group = module, group
        self._net = group.wrap(module, machine.device, config.sync_batchnorm)
        self._step = step or self._net
        self._train, self._val, self._config, self._machine = train, val, config, machine
        self._sizes = train.sizes()
        self._optimizer = SGD(
            [p for p in module.parameters() if p.requires_grad],
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        curve = learning_rate_curve(config, steps_per_epoch=len(train))
        self._schedule = LambdaLR(self._optimizer, curve)
        self._scaler = torch.amp.GradScaler(
            machine.device.type, enabled=machine.precision == "fp16"
        )
        # Photos whose gradients are computed together: a batch, the last one may have one more, or
        # less where memory does not do.
        self.part = train.batch_size + 1
        self._number = 1
        self._random: Tensor | None = None
        self._lr = float(self._schedule.get_last_lr()[0])
        self._begin_epoch()

    @property
    def photos(self) -> int:
        """Photos of an epoch."""
        return self._train.photos

    def epochs(
        self, watch: Watch | None = None, between: Callable[[], None] | None = None
    ) -> Iterator[Epoch]:
        """The epochs that are left.

        :param watch: told now and then how the epoch goes.
        :param between: called after each batch; what it raises leaves the training in a state to
            go on from.
        :raises TrainingError: when the loss is no finite number any more.
        """
        while self._number <= self._config.epochs:
            yield self._epoch(watch, between)

    def sync_totals(self) -> None:
        """Within an epoch give the first process what all have counted, before it asks for the
        :meth:`state`; called by all of a group."""
        self._keep_totals(self._group.sum(self._totals))

    def _keep_totals(self, totals: Tensor) -> None:
        """One of the group has them, since they are summed over it in the end."""
        self._totals = totals if self._group.leads else torch.zeros_like(totals)
        self._resumed = self._totals.clone()

    def state(self) -> dict[str, Any]:
        """All that a training needs to go on exactly: weights, optimizer, schedule, place in the
        epoch and random states; tensors are not copied."""
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
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave.

        :raises ValueError: when it is no state of such a training.
        """
        try:
            self.module.load_state_dict(state["module"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._schedule.load_state_dict(state["schedule"])
            self._scaler.load_state_dict(state["scaler"])
            self._number, self._batches = state["number"], state["batches"]
            self._seen, self._lr = state["seen"], state["lr"]
            if self._group.size == 1:
                self.part = state["part"]
            self._keep_totals(state["totals"].to(self._machine.device))
            self._random = state["random"].cpu()
            if state["cuda_random"] is not None and self._machine.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_random"].cpu(), self._machine.device)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"no state of such a training: {error}") from error

    def _begin_epoch(self) -> None:
        self._batches = self._seen = 0
        # Summed on the device: reading a value would wait for it, so that is done rarely.
        self._totals = torch.zeros(2, device=self._machine.device)
        # Those of all shares, from before this process went on.
        self._resumed = torch.zeros_like(self._totals)
        self._random = None

    def _cuda_random(self) -> Tensor | None:
        if self._machine.device.type != "cuda":
            return None
        return torch.cuda.get_rng_state(self._machine.device)

    def _epoch(self, watch: Watch | None, between: Callable[[], None] | None) -> Epoch:
        started, done_before = time.perf_counter(), self._seen
        train_loss, train_accuracy = self._train_epoch(watch, between)
        seconds = time.perf_counter() - started
        self._group.share_buffers(self.module)
        labels, logits = predict_logits(self.module, self._val, self._machine, self._group, between)
        val_loss = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
        self._check_finite(train_loss, val_loss)
        give_back_memory(self._machine)
        epoch = Epoch(
            number=self._number,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            val_loss=val_loss,
            val_accuracy=float((logits.argmax(axis=1) == labels).mean()),
            lr=self._lr,
            epoch_seconds=time.perf_counter() - started,
            images_per_second=(self._seen - done_before) / seconds,
        )
        self._number += 1
        self._lr = float(self._schedule.get_last_lr()[0])
        self._begin_epoch()
        return epoch

    def _train_epoch(
        self, watch: Watch | None, between: Callable[[], None] | None
    ) -> tuple[float, float]:
        """Mean loss and accuracy over the epoch's photos, each seen once, in train mode."""
        self.module.train()
        # Dropout's randomness follows from the epoch, so any epoch can be done again alone.
        seed = self._config.seed * 1_000_003 + self._number
        if not self._batches:
            torch.manual_seed(seed + self._group.rank * 7_919)
        elif self._random is not None and self._group.leads:
            torch.set_rng_state(self._random)
        elif self._random is not None:
            # Of a group the first one's state is known only.
            torch.manual_seed(seed + self._group.rank * 7_919 + self._batches * 104_729)
        shown = time.perf_counter()
        for inputs, labels in self._train.epoch(self._number, skip=self._batches):
            self._learn(inputs, labels)
            if time.perf_counter() - shown > _WATCH_SECONDS:
                # The others' shares are much like this one.
                mine = self._totals - self._resumed
                loss_sum, correct_sum = (self._resumed + mine * self._group.size).tolist()
                if self._group.leads:
                    # One of them tells, or it could be another that is found dead for it.
                    self._check_finite(loss_sum / self._seen)
                if watch:
                    watch(self._seen, loss_sum / self._seen, correct_sum / self._seen)
                shown = time.perf_counter()
            if between:
                between()
        loss_sum, correct_sum = self._group.sum(self._totals).tolist()
        return loss_sum / self._seen, correct_sum / self._seen

    def _check_finite(self, train_loss: float, val_loss: float = 0.0) -> None:
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise TrainingError(
                f"The loss in epoch {self._number} is {train_loss} (validation {val_loss}): "
                f"training diverged. Lower lr (now {self._config.lr:g}) or set clip_norm=1."
            )

    def _learn(self, inputs: Tensor, labels: Tensor) -> None:
        """One step, and what it adds to the epoch; in smaller parts where memory does not do."""
        total, mine = self._sizes[self._batches]
        while True:
            try:
                totals = self._gradients(inputs, labels, total, mine)
                break
            except ValueError as error:
                if _ONE_VALUE not in str(error):
                    raise
                # A batch of one, or a process's share of a batch.
                raise TrainingError(
                    "Batch norm cannot learn from a single photo whose features have shrunk to one "
                    "pixel. Raise image_size or batch_size, or start fewer processes."
                ) from error
            except RuntimeError as error:
                if self._group.size > 1 and is_lost(error):
                    raise lost(error) from error
                if not is_out_of_memory(error):
                    raise
                reason = str(error).split("\n")[0]
                if self._group.size > 1:
                    # The others wait for the gradients of this batch, and only once.
                    raise TrainingError(
                        f"Out of memory with {len(labels)} photos at a time ({reason}). Several "
                        "processes do not take a batch in parts: start more of them, or lower "
                        "batch_size."
                    ) from error
            # Not within the handler, where the error holds what the step has taken.
            self.part = smaller_part(min(self.part, len(labels)), len(labels), reason)
            free_memory(self._machine)
        self._update()
        self._totals += totals
        self._seen += total
        self._batches += 1

    def _gradients(self, inputs: Tensor, labels: Tensor, total: int, mine: int) -> Tensor:
        """The gradients of the mean loss of a batch -> (2,) its summed loss, and photos right.

        :param total: photos of the batch in all shares; ``mine`` of them are in this one.
        """
        self._optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros_like(self._totals)
        for x, y in zip(inputs.split(self.part), labels.split(self.part), strict=True):
            # What is compiled is compiled for whole batches.
            step = self._step if len(y) == self._config.batch_size else self._net
            with self._machine.autocast():
                logits = step(x)
                loss = F.cross_entropy(logits, y, label_smoothing=self._config.label_smoothing)
            photos = min(len(y), mine)
            # A group takes the mean of its processes' gradients, hence its size.
            weight = photos * self._group.size / total
            self._scaler.scale(loss if weight == 1 else loss * weight).backward()
            if photos:
                correct = (logits.detach().argmax(1) == y).sum()
                totals += torch.stack([loss.detach().float() * photos, correct])
        return totals

    def _update(self) -> None:
        scaler = self._scaler
        if self._config.clip_norm:
            scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), self._config.clip_norm)
        scale = scaler.get_scale()
        scaler.step(self._optimizer)
        scaler.update()
        # fp16 leaves out a step whose gradients overflow, and then lowers its scale.
        if scaler.get_scale() >= scale:
            self._schedule.step()
