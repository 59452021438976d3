"""The detector of strangers of a trained model: its photos, embedded; the detector, attached."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..data.batches import Batches, PixelSource, Source
from ..data.left_out_photos import Strangers, decode_left_out
from ..data.splits import TEST, TRAIN, VAL
from ..data_config import NONE
from ..modeling.models import ProductClassifier, StrangerDetector
from ..modeling.scoring import predict_logits
from ..modeling.strangers import (
    Embedded,
    StrangerResult,
    detect_strangers,
    reference_half,
    reference_rows,
)
from .context import EVALUATION_BATCH, TrainingContext, TrainingInputs


def attach_detector(
    config: TrainConfig,
    context: TrainingContext,
    model: ProductClassifier,
    inputs: TrainingInputs | None = None,
) -> StrangerResult:
    """Give a calibrated model a detector of strangers, in every process, and measure it.

    It gets none with ``unknown`` none, and none if it is stored as pt2, which returns logits only.

    :param inputs: the model's training inputs, to use cached activations; None: the whole model
        runs.
    """
    if config.unknown == NONE:
        return StrangerResult()
    if config.serialization == "pt2":
        return StrangerResult(
            words=["strangers are not refused: serialization=pt2 stores a program of logits only"]
        )
    data, embedder = context.dataset, Embedder(context, model, inputs)
    chosen = data.rows(TRAIN)
    labels = data.frame["label"].to_numpy(np.int64)
    train = embedder.rows(chosen[reference_rows(labels[chosen])])
    val, test = embedder.rows(data.rows(VAL)), embedder.rows(data.rows(TEST))
    strangers = left_out_photos(context)
    others = embedder.photos(strangers.pixels)
    seed = data.config.split_seed
    result = detect_strangers(train, val, test, others, strangers.frame, data.classes, seed)
    model.detector = result.detector and result.detector.to(context.machine.device)
    return result


def attach_final_detector(
    context: TrainingContext, model: ProductClassifier, inputs: TrainingInputs, threshold: float
) -> None:
    """Give a model that was trained on all photos a detector with the threshold of the folds."""
    data, embedder = context.dataset, Embedder(context, model, inputs)
    labels = data.frame["label"].to_numpy(np.int64)
    known = embedder.rows(reference_rows(labels)).embeddings
    strangers = left_out_photos(context)
    others = embedder.photos(strangers.pixels).embeddings
    others = others[reference_half(strangers.frame["label_group"].tolist(), data.config.split_seed)]
    detector = StrangerDetector(torch.from_numpy(known), torch.from_numpy(others), threshold)
    model.detector = detector.to(context.machine.device)


def left_out_photos(context: TrainingContext) -> Strangers:
    """The decoded photos of left-out label groups; none if no group is left out."""
    data = context.dataset
    if not len(data.left_out):
        size = data.config.image_size
        none = pd.DataFrame({"image": [], "label_group": []}, dtype=str)
        return Strangers(none, np.zeros((0, size, size, 3), np.uint8))
    return decode_left_out(data.left_out, data.config, set(data.frame["content"]))


class Embedder:
    """Embeddings and calibrated logits of a model's photos."""

    def __init__(
        self, context: TrainingContext, model: ProductClassifier, inputs: TrainingInputs | None
    ) -> None:
        self._context, self._model = context, model
        self._labels = context.dataset.frame["label"].to_numpy(np.int64)
        whole = _Embed(model)
        if inputs is None or inputs.parts.frozen is None:
            self._source: Source = context.pixels()
            self._module: nn.Module = whole
        else:
            # Where only the head was trained, the activations are the embeddings.
            self._source = inputs.val.source
            self._module = inputs.parts.backbone or nn.Identity()
        self._whole = whole

    def rows(self, rows: np.ndarray) -> Embedded:
        """Photos of the dataset."""
        return self._embedded(self._module, self._source, rows, self._labels)

    def photos(self, pixels: np.ndarray) -> Embedded:
        """Other photos, (N, S, S, 3) uint8; without labels."""
        if not len(pixels):
            one = self.photos(np.zeros((1, *pixels.shape[1:]), np.uint8))
            return Embedded(one.embeddings[:0], one.logits[:0], one.labels)
        source = PixelSource(pixels, self._context.machine.device)
        found = self._embedded(
            self._whole, source, np.arange(len(pixels)), np.zeros(len(pixels), np.int64)
        )
        return Embedded(found.embeddings, found.logits, found.labels[:0])

    def _embedded(
        self, module: nn.Module, source: Source, rows: np.ndarray, labels: np.ndarray
    ) -> Embedded:
        machine, group = self._context.machine, self._context.group
        share = (group.rank, group.size)
        batches = Batches(source, rows, labels, EVALUATION_BATCH, machine.device, share=share)
        found, embeddings = predict_logits(module, batches, machine, group)
        if not len(rows):
            return Embedded(
                np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32), np.zeros(0, np.int64)
            )
        return Embedded(embeddings, self._logits(embeddings), found)

    @torch.inference_mode()
    def _logits(self, embeddings: np.ndarray) -> np.ndarray:
        head = self._model.head.eval()
        logits = head(torch.from_numpy(embeddings).to(self._context.machine.device))
        values: np.ndarray = (logits.float() / self._model.temperature).cpu().numpy()
        return values


class _Embed(nn.Module):
    """A model's :meth:`ProductClassifier.embed` as the forward of a module."""

    def __init__(self, model: ProductClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Photos -> embeddings."""
        return self.model.embed(images)
