"""Metrics of an epoch, and the best epoch of a training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..config import MONITORED
from ..errors import CheckpointError
from .metrics import accuracy, balanced_accuracy, macro_f1, top_k_accuracy

EPOCH_METRICS = (
    *("train_loss", "train_accuracy", "val_loss", *MONITORED),
    *("lr", "epoch_seconds", "images_per_second"),
)


def validation_metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """The metrics that ``monitor`` may name, for (N,) labels and (N, C) logits."""
    predicted = logits.argmax(axis=1)
    return {
        "val_accuracy": accuracy(labels, predicted),
        "val_macro_f1": macro_f1(labels, predicted),
        "val_balanced_accuracy": balanced_accuracy(labels, predicted),
        "val_top5_accuracy": top_k_accuracy(labels, logits, 5),
    }


@dataclass(frozen=True)
class Epoch:
    """A completed epoch.

    :ivar number: counts from 1.
    :ivar metrics: name -> value, with the names in a run: train_loss, train_accuracy,
        val_loss, those of :func:`validation_metrics`, lr, epoch_seconds, images_per_second.
        Accuracies are shares, 0..1.
    """

    number: int
    metrics: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.metrics[name]

    def state(self) -> dict[str, Any]:
        """The epoch as plain values, for a checkpoint."""
        return {"number": self.number, "metrics": dict(self.metrics)}

    @classmethod
    def from_state(cls, state: Any) -> Epoch:
        """Create an epoch from the result of :meth:`state`.

        :raises CheckpointError: for any other value, as in a checkpoint of another version.
        """
        try:
            return cls(int(state["number"]), dict(state["metrics"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The checkpoint's history does not match this version ({error!r}). Start again "
                "without resume."
            ) from error


@dataclass
class BestEpoch:
    """The best epoch by a validation metric, and a copy of its weights.

    With few validation photos, equal values are common; the lower validation loss breaks ties.
    Without validation photos, the last epoch counts as the best.

    :ivar monitor: name of the metric; higher is better.
    """

    module: nn.Module
    monitor: str = "val_accuracy"
    epoch: Epoch | None = None
    _weights: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def found(self) -> Epoch:
        """The best epoch; at least one epoch must have ended."""
        assert self.epoch is not None, "no epoch has ended"
        return self.epoch

    def update(self, epoch: Epoch, validated: nn.Module | None = None) -> bool:
        """Copy the weights if this epoch is the best so far; returns whether it is.

        :param validated: the module whose weights were validated; by default the module itself.
        """
        if self.epoch is not None and self._rank(epoch) <= self._rank(self.epoch):
            return False
        self.epoch = epoch
        # A copy of the whole mapping, whose metadata holds layer versions that MNASNet needs.
        self._weights = copy.deepcopy((validated or self.module).state_dict())
        return True

    def scores(self) -> dict[str, float]:
        """best_epoch, and the best epoch's values of val_accuracy and ``monitor``, as best_*."""
        names = dict.fromkeys(["val_accuracy", self.monitor])
        known = [name for name in names if name in self.found.metrics]
        values = {f"best_{name}": self.found[name] for name in known}
        return {**values, "best_epoch": float(self.found.number)}

    def state(self) -> dict[str, object]:
        """Epoch and weights, for a checkpoint."""
        return {"epoch": self.found.state(), "weights": self._weights}

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state that :meth:`state` returned.

        :raises CheckpointError: for any other value.
        """
        self.epoch, self._weights = Epoch.from_state(state["epoch"]), state["weights"]

    def load_weights(self) -> Epoch:
        """Load the best epoch's weights into the module."""
        self.module.load_state_dict(self._weights)
        return self.found

    def _rank(self, epoch: Epoch) -> tuple[float, float]:
        if self.monitor not in epoch.metrics:
            return float(epoch.number), 0.0
        return epoch[self.monitor], -epoch["val_loss"]


def epochs_without_progress(epochs: Sequence[Epoch], monitor: str = "val_accuracy") -> int:
    """Number of epochs since the metric first reached its highest value."""
    values = [epoch[monitor] for epoch in epochs]
    return len(values) - 1 - values.index(max(values))
