"""Inference: threads decode photos ahead of the network, which predicts them in batches."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from ..data_config import AUTO, NONE
from ..errors import ConfigError, ImageError
from .models import ProductClassifier

BATCH = 32
# The answer for a photo that looks like no label group.
UNKNOWN = "unknown"
# Number of batches in memory: one in the network, the rest being decoded.
_BATCHES_HELD = 3

_Photo = TypeVar("_Photo")


@dataclass(frozen=True)
class Prediction:
    """The most probable label groups of one photo, or the reason why it cannot be read.

    :ivar labels: label groups, the most probable first; empty where the photo cannot be read.
    :ivar probabilities: the probabilities of these label groups.
    :ivar error: why the photo cannot be read; None if it was read.
    :ivar known_score: below 0, the photo looks like none of the label groups; None where the model
        has no detector of strangers.
    :ivar refused: whether the answer is ``unknown`` for that reason.
    """

    labels: Sequence[str] = ()
    probabilities: Sequence[float] = ()
    error: str | None = None
    known_score: float | None = None
    refused: bool = False

    def answers(self) -> list[str]:
        """The label groups, the first one replaced by ``unknown`` if the photo is refused."""
        return [UNKNOWN, *self.labels[1:]] if self.refused else list(self.labels)


def check_answer_options(top_k: int, unknown: str, workers: int) -> None:
    """Check the options of a call that classifies photos.

    :raises ConfigError: naming those that are invalid.
    """
    problems = [
        *([f"top_k={top_k}: must be at least 1"] if top_k < 1 else []),
        *([f"unknown={unknown}: must be {AUTO} or {NONE}"] if unknown not in (AUTO, NONE) else []),
        *([f"workers={workers}: must be at least 0"] if workers < 0 else []),
    ]
    if problems:
        raise ConfigError(problems)


class Predictor:
    """A classifier ready for inference: a stream of photos in, a stream of predictions out.

    Memory holds a few batches of pixels, however many photos there are.

    :param model: a :class:`ProductClassifier`, or an exported program of one.
    :param classes: label groups in logit order.
    """

    def __init__(
        self, model: nn.Module, classes: Sequence[str], device: torch.device | str = "cpu"
    ) -> None:
        self.network = FastClassifier(model, device)
        self.classes = list(classes)

    @property
    def has_detector(self) -> bool:
        """Whether the model can answer ``unknown``."""
        return getattr(self.network.model, "detector", None) is not None

    def predict(
        self,
        photos: Iterable[_Photo],
        decode: Callable[[_Photo], np.ndarray],
        *,
        top_k: int = 1,
        workers: int = 0,
        unknown: str = AUTO,
    ) -> Iterator[list[Prediction]]:
        """Yield the predictions of all photos in order, in lists of at most :data:`BATCH`.

        :param decode: photo -> (S, S, 3) uint8; runs in threads and may raise ImageError.
        :param top_k: how many label groups to name for each photo.
        :param workers: threads; 0: one per core.
        :param unknown: ``auto``: refuse photos that look like no label group; ``none``: do not.
        """
        for decoded in decode_ahead(photos, decode, workers):
            pixels = [item for item in decoded if isinstance(item, np.ndarray)]
            best = self._predictions(pixels, top_k, refuse=unknown == AUTO)
            yield [
                next(best) if isinstance(item, np.ndarray) else Prediction(error=str(item))
                for item in decoded
            ]

    def logits(self, photos: Iterable[_Photo], decode: Callable[[_Photo], np.ndarray]) -> Tensor:
        """Logits (N, classes) float32 of all photos.

        :raises ImageError: for a photo that cannot be read.
        """
        parts = [self.network(images) for images in _readable(photos, decode)]
        return torch.cat(parts) if parts else torch.empty(0, len(self.classes))

    def embed(
        self,
        photos: Iterable[_Photo],
        decode: Callable[[_Photo], np.ndarray],
        *,
        workers: int = 0,
    ) -> Tensor:
        """Embeddings (N, features) float32 of all photos, the inputs of the head.

        :raises ImageError: for a photo that cannot be read.
        """
        parts = [self.network.embed(images) for images in _readable(photos, decode, workers)]
        # The model resizes, so any photo tells the number of features.
        return torch.cat(parts) if parts else self.network.embed(torch.zeros(1, 3, 8, 8))[:0]

    def _predictions(
        self, pixels: Sequence[np.ndarray], k: int, refuse: bool
    ) -> Iterator[Prediction]:
        if not pixels:
            return
        logits, scores = self.network.answer(_images(pixels))
        known = [None] * len(pixels) if scores is None else scores.tolist()
        # Stable, so that label groups of equal probability always come in the same order.
        ranked = logits.double().softmax(1).sort(dim=1, descending=True, stable=True)
        values, order = ranked.values[:, :k].tolist(), ranked.indices[:, :k].tolist()
        for probabilities, positions, score in zip(values, order, known, strict=True):
            yield Prediction(
                [self.classes[i] for i in positions],
                probabilities,
                known_score=score,
                refused=refuse and score is not None and score < 0,
            )


def decode_ahead(
    photos: Iterable[_Photo], decode: Callable[[_Photo], np.ndarray], workers: int = 0
) -> Iterator[list[np.ndarray | ImageError]]:
    """Yield batches of decoded photos in order, while threads decode the next ones.

    :param decode: photo -> pixels; an ImageError that it raises is yielded in place of the pixels.
    """

    def pixels_or_error(photo: _Photo) -> np.ndarray | ImageError:
        try:
            return decode(photo)
        except ImageError as error:
            return error

    waiting: deque[list[Future[np.ndarray | ImageError]]] = deque()
    remaining = iter(photos)
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    try:
        while True:
            while len(waiting) < _BATCHES_HELD and (part := list(islice(remaining, BATCH))):
                waiting.append([pool.submit(pixels_or_error, photo) for photo in part])
            if not waiting:
                return
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _readable(
    photos: Iterable[_Photo], decode: Callable[[_Photo], np.ndarray], workers: int = 0
) -> Iterator[Tensor]:
    """Yield batches, (n, 3, S, S) uint8.

    :raises ImageError: for a photo that cannot be read.
    """
    for decoded in decode_ahead(photos, decode, workers):
        pixels = []
        for item in decoded:
            if isinstance(item, ImageError):
                raise item
            pixels.append(item)
        yield _images(pixels)


def _images(pixels: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def fuse_layers(layers: nn.Module) -> nn.Module:
    """A copy in eval mode with batch norms merged into convolutions; outputs equal to about 1e-5.

    Returns the module itself if its graph cannot be traced.
    """
    try:
        return fuse(layers.eval())
    except (fx.proxy.TraceError, TypeError, RuntimeError):
        return layers


class FastClassifier(nn.Module):
    """A classifier prepared for fast inference: layers fused, channels-last memory format.

    :param model: a :class:`ProductClassifier`, or an exported program of one.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.device = torch.device(device)
        if isinstance(model, ProductClassifier):
            model = copy.deepcopy(model)
            model.backbone = fuse_layers(model.backbone)
            model = model.to(self.device).to(memory_format=torch.channels_last)
        self.model = model

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 on any device -> (N, classes) float32 logits on the CPU."""
        return self.model(images.to(self.device, non_blocking=True)).float().cpu()

    @torch.inference_mode()
    def answer(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and scores (N,) float32 on the CPU below 0 for photos of no label group.

        The scores are None where the model has no detector.
        """
        if not isinstance(self.model, ProductClassifier):
            return self(images), None
        logits, scores = self.model.answer(images.to(self.device, non_blocking=True))
        return logits.float().cpu(), None if scores is None else scores.cpu()

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 or float on any device -> (N, features) float32 on the CPU."""
        embed: Callable[[Tensor], Tensor] = self.model.embed  # type: ignore[assignment]
        return embed(images.to(self.device, non_blocking=True)).float().cpu()
