"""Augmentations: each training photo is transformed by values drawn for it in each epoch.

A finite augmentation chooses one of a few fixed variants of a photo, so activations of frozen
layers can be cached for each variant. A random one draws real numbers, so they cannot be cached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ..config import NONE

PLAIN = 0
_PROBABILITY = 0.5
# Share of a photo's area that a random crop keeps, and logarithm of its width over its height.
_CROP_SCALE, _CROP_LOG_RATIO = (0.35, 1.0), (math.log(3 / 4), math.log(4 / 3))


class Transform(Protocol):
    """An augmentation of training photos.

    :ivar variants: number of fixed variants of a photo, the plain one first; None if there are
        infinitely many.
    """

    @property
    def variants(self) -> int | None: ...

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the values of ``count`` photos: an array with one row per photo."""

    def apply(self, images: Tensor, values: np.ndarray) -> Tensor:
        """Transform a batch, (n, 3, H, W) uint8, by n rows of drawn values; may work in place."""


@dataclass(frozen=True)
class FiniteTransform:
    """With probability 0.5 one of several fixed operations, all equally likely.

    :ivar operations: (n, 3, H, W) uint8 -> the same; variant k is made by operation k - 1.
    """

    operations: Sequence[Callable[[Tensor], Tensor]]

    @property
    def variants(self) -> int:
        """The plain photo, and one variant for each operation."""
        return 1 + len(self.operations)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) int64, the variant of each photo."""
        chosen = rng.integers(1, self.variants, size=count)
        return np.where(rng.random(count) < _PROBABILITY, chosen, PLAIN)

    def apply(self, images: Tensor, values: np.ndarray) -> Tensor:
        """Make each photo the variant drawn for it, in place; each operation runs once."""
        for variant, operation in enumerate(self.operations, start=1):
            chosen = np.flatnonzero(values == variant)
            if len(chosen):
                index = on_device(chosen, images.device)
                images[index] = operation(images[index])
        return images


@dataclass(frozen=True)
class RandomCrop:
    """A random part of the photo, resized to the whole, and a horizontal flip with probability 0.5.

    Source: C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6; here with
    35 % to 100 % of the area, since products fill most of their photos.
    """

    variants: None = None

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, 5) float64: left, top, width and height of the part, 0..1, and 1 for a flip."""
        area = rng.uniform(*_CROP_SCALE, size=count)
        ratio = np.exp(rng.uniform(*_CROP_LOG_RATIO, size=count))
        width = np.minimum(np.sqrt(area * ratio), 1)
        height = np.minimum(np.sqrt(area / ratio), 1)
        left, top = (rng.random(count) * (1 - side) for side in (width, height))
        flip = rng.random(count) < _PROBABILITY
        return np.stack([left, top, width, height, flip], axis=1)

    def apply(self, images: Tensor, values: np.ndarray) -> Tensor:
        """Crop, resize and flip each photo."""
        size = list(images.shape[-2:])
        parts = []
        for image, (left, top, width, height, flip) in zip(images, values, strict=True):
            box = [round(top * size[0]), round(left * size[1])]
            extent = [max(1, round(height * size[0])), max(1, round(width * size[1]))]
            part = F.resized_crop(image, *box, *extent, size=size, antialias=True)
            parts.append(F.horizontal_flip(part) if flip else part)
        return torch.stack(parts).contiguous(memory_format=torch.channels_last)


def _grayscale(images: Tensor) -> Tensor:
    return F.rgb_to_grayscale(images, num_output_channels=3)


_TRANSFORMS: dict[str, Transform | None] = {
    NONE: None,
    "original": FiniteTransform((F.horizontal_flip, F.vertical_flip, _grayscale)),
    "flip": FiniteTransform((F.horizontal_flip,)),
    "crop": RandomCrop(),
}


def transform_named(name: str) -> Transform | None:
    """The augmentation that the option ``augment`` names; None for ``none``."""
    return _TRANSFORMS[name]


@dataclass(frozen=True)
class Draws:
    """Values drawn for some photos, one row per photo."""

    transform: Transform
    values: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Draws:
        return Draws(self.transform, self.values[index])

    def apply(self, images: Tensor) -> Tensor:
        """Transform the photos by their values."""
        return self.transform.apply(images, self.values)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Values as a tensor on a device.

    Copies to a GPU use pinned memory, since other copies would wait for all queued work.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
