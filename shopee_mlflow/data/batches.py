"""Photos become batches: gathered from memory, augmented as whole batches, without workers.

Which photo comes when, and how it is augmented, follows from the seed and the epoch's number
alone, so an epoch can be repeated without any stored random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from .array_cache import Window, as_tensor

# Augmentation is a choice among finitely many variants of a photo: as it is, or one of three.
PLAIN, HORIZONTAL_FLIP, VERTICAL_FLIP, GRAYSCALE = VARIANTS = range(4)
_AUGMENT_PROBABILITY = 0.5

_OPERATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    HORIZONTAL_FLIP: transforms.horizontal_flip,
    VERTICAL_FLIP: transforms.vertical_flip,
    GRAYSCALE: lambda images: transforms.rgb_to_grayscale(images, num_output_channels=3),
}


class Source(Protocol):
    """Where batches take their inputs from: pixels, or activations computed before."""

    def take(self, rows: np.ndarray, variants: np.ndarray) -> Tensor:
        """Inputs on the device for these rows, each in the variant drawn for it."""


class PixelSource:
    """Decoded photos, on the device where they fit, else in (memory-mapped) memory.

    :param pixels: (M, S, S, 3) uint8.
    :param places: (N,) int64, where in ``pixels`` each row's photo is; None: row for row.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        device: torch.device | str = "cpu",
        places: np.ndarray | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._places = places
        self._pixels = as_tensor(pixels)
        self._window = Window(pixels)
        if self.device.type == "cuda" and self._fits():
            self._pixels = self._pixels.to(self.device)

    def take(self, rows: np.ndarray, variants: np.ndarray) -> Tensor:
        """(n, 3, S, S) uint8 on the device, in channels-last memory order."""
        places = rows if self._places is None else self._places[rows]
        batch = self._pixels.index_select(0, on_device(places, self._pixels.device))
        self._window.passed(batch.nbytes)
        batch = batch.to(self.device, non_blocking=True)
        return apply_variants(batch.permute(0, 3, 1, 2), variants)

    def _fits(self) -> bool:
        torch.cuda.empty_cache()  # what torch keeps for later is free, too
        free, _ = torch.cuda.mem_get_info(self.device)
        return self._pixels.nbytes < free / 2


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Values as a tensor there. To a GPU from pinned memory, since a copy from any other would
    wait for all that the GPU has still to do."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def draw_variants(count: int, rng: np.random.Generator) -> np.ndarray:
    """A variant for each photo: with probability 0.5 one of the three operations, alike."""
    chosen = rng.integers(1, len(VARIANTS), size=count)
    return np.where(rng.random(count) < _AUGMENT_PROBABILITY, chosen, PLAIN)


def apply_variants(images: Tensor, variants: np.ndarray) -> Tensor:
    """Augment a batch, (n, 3, H, W) uint8: one whole-batch operation for each variant in it.

    Changes ``images`` in place where any variant is not plain, and returns it.
    """
    for variant, operation in _OPERATIONS.items():
        chosen = np.flatnonzero(variants == variant)
        if len(chosen):
            index = on_device(chosen, images.device)
            images[index] = operation(images[index])
    return images


@dataclass(frozen=True)
class Batches:
    """Batches of one split, epoch by epoch.

    :ivar rows: (n,) int64, rows of the source.
    :ivar labels: (N,) int64, the label of every row of the source.
    :ivar shuffle: a new order each epoch; else the order of ``rows``.
    :ivar augment: a new variant for each photo each epoch; else all plain.
    :ivar share: (k, n): of each batch this is the k-th of n shares, every n-th photo. A batch is
        the same whatever n is.
    """

    source: Source
    rows: np.ndarray
    labels: np.ndarray
    batch_size: int
    device: torch.device
    shuffle: bool = False
    augment: bool = False
    seed: int = 0
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return len(self._ends())

    @property
    def photos(self) -> int:
        """Photos in an epoch, of all shares."""
        return len(self.rows)

    def sizes(self) -> list[tuple[int, int]]:
        """Of each batch: photos in all shares, and in this one."""
        ends = self._ends()
        totals = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return [(total, len(self._mine(total))) for total in totals]

    def positions(self) -> np.ndarray:
        """(m,) int64: which of ``rows`` are in this share, in its order where nothing shuffles."""
        ends = self._ends()
        starts = [0, *ends[:-1]]
        parts = [start + self._mine(end - start) for start, end in zip(starts, ends, strict=True)]
        return np.concatenate(parts)

    def epoch(self, number: int = 0, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels, (n,) int64, of each batch, on the device.

        A share that has no photo of a batch is left out where nothing is learned; where something
        is, the other shares wait for its gradients, so it gets the batch's first photo, which is to
        count nothing (see :meth:`sizes`).

        :param skip: so many batches at the beginning are left out.
        """
        rng = np.random.default_rng((self.seed, number))
        rows = rng.permutation(self.rows) if self.shuffle else self.rows
        variants = draw_variants(len(rows), rng) if self.augment else np.zeros(len(rows), int)
        ends = self._ends()
        start = ends[skip - 1] if skip else 0
        for end in ends[skip:]:
            mine = start + self._mine(end - start)
            if not len(mine) and self.shuffle:
                mine = np.array([start])
            if len(mine):
                labels = on_device(self.labels[rows[mine]], self.device)
                yield self.source.take(rows[mine], variants[mine]), labels
            start = end

    def _mine(self, total: int) -> np.ndarray:
        number, shares = self.share
        return np.arange(number, total, shares)

    def _ends(self) -> list[int]:
        """Where batches end. A last training batch of one photo joins the one before it, since
        batch normalisation cannot learn from a single photo."""
        ends = [*range(self.batch_size, self.photos, self.batch_size), self.photos]
        if self.shuffle and len(ends) > 1 and ends[-1] - ends[-2] == 1:
            del ends[-2]
        return ends
