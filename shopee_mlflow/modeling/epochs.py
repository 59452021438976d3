"""What epochs gave, and which of them was the best."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


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

    @classmethod
    def metric_names(cls) -> list[str]:
        """The names of :meth:`metrics`."""
        return [f.name for f in dataclasses.fields(cls) if f.name != "number"]

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

    def scores(self) -> dict[str, float]:
        """Of the best epoch: best_val_accuracy and best_epoch."""
        assert self.epoch is not None, "no epoch has been seen"
        return {
            "best_val_accuracy": self.epoch.val_accuracy,
            "best_epoch": float(self.epoch.number),
        }

    def state(self) -> dict[str, object]:
        """All of it, as a checkpoint keeps it."""
        assert self.epoch is not None, "no epoch has been seen"
        return {"epoch": vars(self.epoch), "weights": self._weights}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.epoch, self._weights = Epoch(**state["epoch"]), state["weights"]

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
