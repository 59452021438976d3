"""Batches of photos, gathered from memory and augmented together, without worker processes.

The order of photos and their augmentation depend only on the seed and the number of the epoch, so
an epoch can be repeated without any stored random state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .mapped_arrays import Window, as_tensor
from .mixing import Mix, partners_in_batch, soft_labels
from .transforms import Draws, Transform, on_device


class Source(Protocol):
    """The source of a batch's inputs: pixels, or cached activations of frozen layers."""

    def take(self, rows: np.ndarray, draws: Draws | None = None) -> Tensor:
        """Inputs of these rows on the device, transformed by ``draws``; None: not transformed."""


class PixelSource:
    """Decoded photos, on the device if they fit, else in (memory-mapped) host memory.

    :param pixels: (M, S, S, 3) uint8.
    :param cache_rows: (N,) int64, the position in ``pixels`` of each row's photo; None: that row.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        device: torch.device | str = "cpu",
        cache_rows: np.ndarray | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._cache_rows = cache_rows
        self._pixels = as_tensor(pixels)
        self._window = Window(pixels)
        if self.device.type == "cuda" and self._fits():
            self._pixels = self._pixels.to(self.device)

    def take(self, rows: np.ndarray, draws: Draws | None = None) -> Tensor:
        """(n, 3, S, S) uint8 on the device, in channels-last memory order."""
        positions = rows if self._cache_rows is None else self._cache_rows[rows]
        batch = self._pixels.index_select(0, on_device(positions, self._pixels.device))
        self._window.passed(batch.nbytes)
        images = batch.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        return images if draws is None else draws.apply(images)

    def _fits(self) -> bool:
        torch.cuda.empty_cache()  # torch's cached memory is free, too
        free, _ = torch.cuda.mem_get_info(self.device)
        return self._pixels.nbytes < free / 2


@dataclass(frozen=True)
class Batch:
    """A batch, or one process's share of it.

    :ivar inputs: (n, ...) on the device.
    :ivar labels: (n,) int64 on the device; (n, C) float32, shares of the classes, if photos are
        mixed.
    :ivar own: how many of these photos count: n, or 0 for an empty share, which gets one photo as
        a placeholder.
    :ivar all_labels: (N,) int64, or (N, C) float32: labels of the whole batch, on the CPU.
    """

    inputs: Tensor
    labels: Tensor
    own: int
    all_labels: Tensor


@dataclass(frozen=True)
class Batches:
    """Batches of one split, epoch by epoch.

    :ivar rows: (n,) int64, rows of the source.
    :ivar labels: (N,) int64, the label of every row of the source.
    :ivar train: shuffle the photos in each epoch; otherwise keep the order of ``rows``.
    :ivar transform: augmentation of the photos, with new random values in each epoch.
    :ivar share: (rank, size): this process takes every size-th photo of each batch, beginning
        with photo ``rank``. The batches themselves do not depend on the size.
    :ivar balanced: draw the photos of a training epoch with replacement, each label equally likely;
        otherwise each photo once.
    :ivar mix: mixes each photo with another one of its batch.
    """

    source: Source
    rows: np.ndarray
    labels: np.ndarray
    batch_size: int
    device: torch.device
    train: bool = False
    transform: Transform | None = None
    seed: int = 0
    share: tuple[int, int] = (0, 1)
    balanced: bool = False
    mix: Mix | None = None

    def __len__(self) -> int:
        return len(self._ends())

    @property
    def photos(self) -> int:
        """Photos in an epoch, of all shares."""
        return len(self.rows)

    def positions(self) -> np.ndarray:
        """(m,) int64: positions in ``rows`` of this share's photos, in order, without shuffling."""
        ends = self._ends()
        starts = [0, *ends[:-1]]
        parts = [start + self._own(end - start) for start, end in zip(starts, ends, strict=True)]
        return np.concatenate(parts)

    def epoch(self, number: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Batches of an epoch.

        In evaluation, a batch without photos for this share is skipped. In training, the other
        processes wait for gradients, so the share gets the batch's first photo with ``own=0``.

        :param skip: number of batches to leave out at the beginning.
        """
        rng = np.random.default_rng((self.seed, number))
        rows = self._ordered(rng)
        draws = None
        if self.transform:
            draws = Draws(self.transform, self.transform.draw(len(rows), rng))
        mixing = self.mix.draw(len(rows), rng) if self.mix else None
        ends = self._ends()
        start = ends[skip - 1] if skip else 0
        for end in ends[skip:]:
            own = start + self._own(end - start)
            taken = own if len(own) or not self.train else np.array([start])
            if len(taken) and mixing is not None:
                yield self._mixed(rows, draws, mixing, taken, (start, end), len(own))
            elif len(taken):
                yield Batch(
                    self.source.take(rows[taken], draws[taken] if draws else None),
                    on_device(self.labels[rows[taken]], self.device),
                    len(own),
                    torch.from_numpy(self.labels[rows[start:end]]),
                )
            start = end

    def _mixed(
        self,
        rows: np.ndarray,
        draws: Draws | None,
        mixing: np.ndarray,
        taken: np.ndarray,
        span: tuple[int, int],
        own: int,
    ) -> Batch:
        """The batch that spans these positions of the epoch, its photos mixed."""
        assert self.mix is not None
        # The partners of a share may belong to other processes.
        needed = np.union1d(taken, partners_in_batch(taken, *span))
        photos = self.source.take(rows[needed], draws[needed] if draws else None)
        first, second = (
            photos[on_device(np.searchsorted(needed, wanted), photos.device)]
            for wanted in (taken, partners_in_batch(taken, *span))
        )
        inputs = self.mix.apply(first, second, mixing[taken])
        whole = np.arange(*span)
        labels = self.labels[rows]
        soft = soft_labels(
            labels[whole],
            labels[partners_in_batch(whole, *span)],
            self.mix.shares(mixing[whole], (photos.shape[-2], photos.shape[-1])),
            classes=int(self.labels.max()) + 1,
        )
        return Batch(
            inputs.contiguous(memory_format=torch.channels_last),
            on_device(soft.numpy()[taken - span[0]], self.device),
            own,
            soft,
        )

    def _ordered(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of an epoch, in order."""
        if not self.train:
            return self.rows
        if not self.balanced:
            return rng.permutation(self.rows)
        labels = self.labels[self.rows]
        weights = 1 / np.bincount(labels)[labels]
        return rng.choice(self.rows, size=len(self.rows), p=weights / weights.sum())

    def _own(self, total: int) -> np.ndarray:
        rank, size = self.share
        return np.arange(rank, total, size)

    def _ends(self) -> list[int]:
        """Where batches end. A last training batch of one photo joins the one before it, since
        batch normalisation cannot learn from a single photo."""
        ends = [*range(self.batch_size, self.photos, self.batch_size), self.photos]
        if self.train and len(ends) > 1 and ends[-1] - ends[-2] == 1:
            del ends[-2]
        return ends
