"""Mix pairs of training photos and their labels: mixup and cutmix.

The formulas are those of ``torchvision.transforms.v2.MixUp`` and ``CutMix``. These draw random
values once per batch. Here they are drawn for each photo, from the seed and the epoch. Each photo
is mixed with the previous photo of its batch, and the first photo with the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import TrainConfig
from ..data_config import NONE
from .transforms import on_device


class Mix(Protocol):
    """Mixes photos with their partners."""

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw random values for ``count`` photos: an array with one row per photo."""

    def shares(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """(n,) float64, 0..1: the weight of each photo's own label.

        :param size: height and width of the photos.
        """

    def apply(self, images: Tensor, partners: Tensor, values: np.ndarray) -> Tensor:
        """Mix photos with their partners, both (n, 3, H, W) uint8, by n rows of drawn values."""


@dataclass(frozen=True)
class MixUp:
    """The weighted mean of a photo and its partner.

    Source: H. Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018.

    :ivar alpha: weights are drawn from Beta(alpha, alpha).
    """

    alpha: float

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) float64, the weight of each photo."""
        return rng.beta(self.alpha, self.alpha, size=count)

    def shares(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:  # noqa: ARG002
        """The drawn weights."""
        return values

    def apply(self, images: Tensor, partners: Tensor, values: np.ndarray) -> Tensor:
        """(n, 3, H, W) float32, 0..1."""
        weight = on_device(values.astype(np.float32), images.device)[:, None, None, None]
        return torch.lerp(partners.float(), images.float(), weight) / 255


@dataclass(frozen=True)
class CutMix:
    """The photo with a rectangle replaced by that of its partner.

    Source: S. Yun et al., "CutMix: Regularization strategy to train strong classifiers with
    localizable features", ICCV 2019.

    :ivar alpha: the share of the photo's area that is kept is drawn from Beta(alpha, alpha). It is
        larger than drawn if the rectangle extends beyond the photo, where it is clipped.
    """

    alpha: float

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, 3) float64, 0..1: the share, and the rectangle's centre from top and left."""
        shares = rng.beta(self.alpha, self.alpha, size=(count, 1))
        return np.hstack([shares, rng.random((count, 2))])

    def shares(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The shares of the photos' areas outside the rectangles."""
        (top, bottom), (left, right) = self._box(values, size)
        return 1 - (bottom - top) * (right - left) / (size[0] * size[1])

    def apply(self, images: Tensor, partners: Tensor, values: np.ndarray) -> Tensor:
        """(n, 3, H, W) uint8."""
        size = (images.shape[-2], images.shape[-1])
        rows, columns = (
            (np.arange(side) >= low[:, None]) & (np.arange(side) < high[:, None])
            for side, (low, high) in zip(size, self._box(values, size), strict=True)
        )
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(on_device(inside, images.device), partners, images)

    def _box(
        self, values: np.ndarray, size: tuple[int, int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """First and end row, first and end column of each rectangle, in whole pixels."""
        half = 0.5 * np.sqrt(1 - values[:, 0])
        box = []
        for side, centre in zip(size, values[:, 1:].T, strict=True):
            middle, reach = np.floor(centre * side), np.floor(half * side)
            box.append((np.clip(middle - reach, 0, side), np.clip(middle + reach, 0, side)))
        return box


def training_mix(config: TrainConfig) -> Mix | None:
    """The mixing that the option ``mix`` names; None for ``none``."""
    kinds: dict[str, type[MixUp | CutMix]] = {"mixup": MixUp, "cutmix": CutMix}
    return None if config.mix == NONE else kinds[config.mix](config.mix_alpha)


def partners_in_batch(positions: np.ndarray, start: int, end: int) -> np.ndarray:
    """Positions of the partners of photos in a batch, which has the positions [start, end)."""
    partners: np.ndarray = start + (positions - start - 1) % (end - start)
    return partners


def soft_labels(labels: np.ndarray, others: np.ndarray, shares: np.ndarray, classes: int) -> Tensor:
    """Label probabilities, (n, classes) float32 on the CPU.

    :param shares: weights of the photos' own labels; the partners' labels have the rest.
    """
    soft, rows = np.zeros((len(labels), classes), np.float32), np.arange(len(labels))
    soft[rows, labels] = shares
    soft[rows, others] += (1 - shares).astype(np.float32)
    return torch.from_numpy(soft)
