"""The training loss: a sum over photos and its normaliser.

Their quotient is the loss of a batch. Each can be summed over parts of a batch and over processes,
so class weights are exact even if a batch is split.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TrainingError


class CrossEntropy:
    """Cross entropy with label smoothing and weights of the classes, as torch defines them."""

    def __init__(self, label_smoothing: float = 0.0, class_weights: Tensor | None = None) -> None:
        """
        :param class_weights: (C,) float, on the device of the logits; None: all 1.
        """
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over photos: (n, C) logits and labels -> ().

        :param labels: (n,) int64, or (n, C) float, shares of the classes that sum to 1.
        """
        return F.cross_entropy(
            logits,
            labels,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )

    def normaliser(self, labels: Tensor) -> float:
        """The divisor of the sum: the total weight of the labels.

        :param labels: as in :meth:`sum`, but on the CPU, so that no step waits for a GPU.
        """
        if self.class_weights is None:
            return float(len(labels))
        if labels.ndim == 2:
            return float((labels.double() @ self._host_weights()).sum())
        return float(self._host_weights()[labels].sum())

    def _host_weights(self) -> Tensor:
        assert self.class_weights is not None
        if not hasattr(self, "_on_host"):
            self._on_host = self.class_weights.double().cpu()
        return self._on_host


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weights n / (C * n_c) of the classes, as scikit-learn's ``class_weight="balanced"``.

    :param labels: (n,) int64, of the training photos.
    :returns: (classes,) float32.
    :raises TrainingError: when a class has no photo.
    """
    counts = np.bincount(labels, minlength=classes)
    if not counts.all():
        raise TrainingError(
            f"class_weights=balanced: {int((counts == 0).sum())} label groups have no training "
            "photo. Raise min_group, or set class_weights=none."
        )
    return torch.from_numpy(len(labels) / (classes * counts)).float()
