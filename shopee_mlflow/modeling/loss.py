"""The training loss: a sum over photos and its normaliser.

Their quotient is the loss of a batch. Each can be summed over parts of a batch and over processes,
so class weights are exact even if a batch is split.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import TrainingError

# The logit of a cosine of 1, and the angle in radians that arcface adds to that of the own class.
ARCFACE_SCALE, ARCFACE_MARGIN = 30.0, 0.3


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


class ArcFace(CrossEntropy):
    """Cross entropy of scaled cosines, with an angle added to that of a photo's own class.

    Additive angular margin loss, https://arxiv.org/abs/1801.07698. The logits are those of a
    :class:`~shopee_mlflow.modeling.models.CosineLinear`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        scale: float = ARCFACE_SCALE,
        margin: float = ARCFACE_MARGIN,
    ) -> None:
        """
        :param scale: that of the head; ``margin``: the added angle in radians.
        """
        super().__init__(label_smoothing, class_weights)
        self.scale, self.margin = scale, margin

    def sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over photos: (n, C) scaled cosines and labels (n,) int64 -> ()."""
        cosines = logits.float() / self.scale
        own = cosines.gather(1, labels[:, None])
        # The derivative of the arc cosine is infinite at -1 and 1.
        angle = own.clamp(-1 + 1e-6, 1 - 1e-6).acos() + self.margin
        # Beyond a half turn the cosine would rise again; a straight line falls on.
        beyond = own - self.margin * math.sin(self.margin)
        harder = torch.where(angle < math.pi, angle.cos(), beyond)
        return super().sum(self.scale * cosines.scatter(1, labels[:, None], harder), labels)


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
