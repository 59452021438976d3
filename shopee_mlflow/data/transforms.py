"""Augmentations: random values are drawn for each training photo in each epoch.

A finite augmentation has a few fixed variants of each photo, so activations of frozen layers can be
cached for each variant. A random augmentation has infinitely many variants. With frozen layers it
is limited to a few fixed draws per photo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..config import TrainConfig
from ..data_config import NONE

PLAIN = 0
_PROBABILITY = 0.5


class Transform(Protocol):
    """An augmentation of training photos.

    :ivar variants: number of fixed variants of a photo, including the original; None if there are
        infinitely many.
    """

    @property
    def variants(self) -> int | None: ...

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draw random values for ``count`` photos: an array with one row per photo."""

    def apply(self, images: Tensor, values: np.ndarray) -> Tensor:
        """Transform a batch, (n, 3, H, W) uint8, by n rows of drawn values; may work in place."""


@dataclass(frozen=True)
class FiniteTransform:
    """Apply one of several fixed operations, all equally likely, with probability 0.5.

    :ivar operations: functions of (n, 3, H, W) uint8 photos that return the same shape and dtype.
        Operation k - 1 makes variant k.
    """

    operations: Sequence[Callable[[Tensor], Tensor]]

    @property
    def variants(self) -> int:
        """The original photo, and one variant for each operation."""
        return 1 + len(self.operations)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) int64, the variant of each photo."""
        chosen = rng.integers(1, self.variants, size=count)
        return np.where(rng.random(count) < _PROBABILITY, chosen, PLAIN)

    def apply(self, images: Tensor, values: np.ndarray) -> Tensor:
        """Replace each photo by its variant, in place; each operation runs once per batch."""
        for variant, operation in enumerate(self.operations, start=1):
            chosen = np.flatnonzero(values == variant)
            if len(chosen):
                index = on_device(chosen, images.device)
                images[index] = operation(images[index])
        return images

    def at(self, rows: np.ndarray, variants: np.ndarray) -> Draws:  # noqa: ARG002
        """The draws that make these variants of the photos in these rows."""
        return Draws(self, variants)


@dataclass(frozen=True)
class Policy:
    """A random transform of torchvision, applied to each photo separately.

    torchvision draws from torch's global generator once per call. So there is one call per photo,
    and the generator is seeded with the number drawn for that photo.

    :ivar make: takes (height, width) of the photos, returns a transform of one photo,
        (3, H, W) uint8.
    """

    make: Callable[[tuple[int, int]], Callable[[Tensor], Tensor]]

    @property
    def variants(self) -> int | None:
        """None: there are infinitely many."""
        return None

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) int64, a seed for each photo."""
        return rng.integers(1, 2**63, size=count)

    def apply(self, images: Tensor, values: np.ndarray) -> Tensor:
        """Transform each photo with its seed; the seed 0 leaves it unchanged."""
        transform = self.make((images.shape[-2], images.shape[-1]))
        parts = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, values.tolist(), strict=True):
                # torchvision draws only from the CPU's generator.
                torch.default_generator.manual_seed(seed)
                parts.append(image if seed == PLAIN else transform(image))
        return torch.stack(parts).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class FixedDraws(Policy):
    """A policy with a fixed number of draws per photo, so that activations can be cached.

    Draw k of a photo depends only on the seed, the photo's row and k.

    :ivar count: number of draws per photo, all equally likely in each epoch.
    """

    count: int
    seed: int

    @property
    def variants(self) -> int:
        """The original photo, used for evaluation only, and one variant for each draw."""
        return 1 + self.count

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) int64, the number of a draw for each photo, starting at 1."""
        return rng.integers(1, self.variants, size=count)

    def at(self, rows: np.ndarray, variants: np.ndarray) -> Draws:
        """The draws that make these variants of the photos in these rows."""
        seeds = [
            int(np.random.SeedSequence((self.seed, row, k)).generate_state(1, np.uint64)[0] >> 1)
            if k
            else PLAIN
            for row, k in zip(rows.tolist(), variants.tolist(), strict=True)
        ]
        return Draws(self, np.array(seeds, dtype=np.int64))


def _crop(size: tuple[int, int]) -> list[v2.Transform]:
    """Source: C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6; here with
    35 % to 100 % of the area, since products fill most of their photos."""
    return [v2.RandomResizedCrop(size, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()]


def _light(size: tuple[int, int]) -> list[v2.Transform]:
    return [*_crop(size), v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)]


def _strong(size: tuple[int, int]) -> list[v2.Transform]:
    """Source: S. G. Müller and F. Hutter, "TrivialAugment", ICCV 2021."""
    return [*_crop(size), v2.TrivialAugmentWide(), v2.RandomErasing(p=0.25)]


def _policy(steps: Callable[[tuple[int, int]], list[v2.Transform]]) -> Policy:
    return Policy(lambda size: v2.Compose(steps(size)))


def _grayscale(images: Tensor) -> Tensor:
    return F.rgb_to_grayscale(images, num_output_channels=3)


_TRANSFORMS: dict[str, Transform | None] = {
    NONE: None,
    "original": FiniteTransform((F.horizontal_flip, F.vertical_flip, _grayscale)),
    "flip": FiniteTransform((F.horizontal_flip,)),
    "crop": _policy(_crop),
    "light": _policy(_light),
    "strong": _policy(_strong),
}


def transform_named(name: str) -> Transform | None:
    """The augmentation that the option ``augment`` names; None for ``none``."""
    return _TRANSFORMS[name]


def training_transform(config: TrainConfig) -> Transform | None:
    """The augmentation of a training; with frozen layers, policies have ``variants`` draws."""
    transform = transform_named(config.augment)
    if isinstance(transform, Policy) and config.freeze != NONE:
        return FixedDraws(transform.make, config.variants, config.seed)
    return transform


@dataclass(frozen=True)
class Draws:
    """A transform and the values drawn for some photos, one row per photo."""

    transform: Transform
    values: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Draws:
        return Draws(self.transform, self.values[index])

    def apply(self, images: Tensor) -> Tensor:
        """Transform the photos with their values."""
        return self.transform.apply(images, self.values)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Copy values to a tensor on a device.

    Copies to a GPU use pinned memory; other copies would wait for all queued work.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
