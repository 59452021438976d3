"""State shared by trainings on one dataset: decoded photos, activations, initial models."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..config import ARCFACE, TrainConfig, check_epoch
from ..console import say, watch
from ..data.batches import Batches, PixelSource, Source
from ..data.dataset import Dataset
from ..data.mixing import training_mix
from ..data.pixel_cache import pixel_key
from ..data.splits import TEST, TRAIN, VAL
from ..data.transforms import FiniteTransform, FixedDraws, Transform, training_transform
from ..data_config import NONE
from ..modeling.architectures import build_model
from ..modeling.compiling import compile_step
from ..modeling.device import Machine, keep_freed_memory
from ..modeling.distributed import ALONE, Group
from ..modeling.freezing import ActivationSource, FrozenPrefix, SplitModel, split_model
from ..modeling.initial_weights import InitialWeights
from ..modeling.label_names import label_names
from ..modeling.loss import ARCFACE_SCALE, ArcFace, CrossEntropy, balanced_weights
from ..modeling.models import ProductClassifier
from ..modeling.scoring import predict_logits
from ..modeling.state_files import state_digest
from ..modeling.temperature import Temperature, fit_temperature
from .custom import OPTIONS_ONLY, CustomParts, CustomTransform, as_classifier
from .weights_source import initial_weights

EVALUATION_BATCH = 64
_CACHED_MODELS = 8
# Part of the cache key. Change it when the preprocessing or the variants of photos change.
_RECIPE = "activations-1"


def check_model(
    config: TrainConfig, start: InitialWeights | None, stages: Sequence[str] = ()
) -> None:
    """Build the model for two label groups and split it at the frozen stage.

    This finds errors in the options model, weights and freeze before photos are decoded.

    :param start: the weights that the option ``weights`` names.
    :param stages: the stages to split at; by default the option freeze.
    :raises ModelError: if weights do not fit or cannot be downloaded, or a stage does not exist.
    """
    shown = logging.root.manager.disable
    # The training builds the model again and logs the warnings about its weights.
    logging.disable(logging.WARNING)
    try:
        model = _build(config, ("0", "1"), start)
        for stage in stages or (config.freeze,):
            split_model(copy.deepcopy(model), stage)
    finally:
        logging.disable(shown)


def _build(
    config: TrainConfig, classes: Sequence[str], start: InitialWeights | None
) -> ProductClassifier:
    scale = ARCFACE_SCALE if config.loss == ARCFACE else None
    return build_model(config.model, classes, config.image_size, start, config.resize, scale)


@dataclass(frozen=True)
class TrainingInputs:
    """A model split at the frozen stage, and the batches for its trainable part.

    :ivar compiled: the compiled trainable part; None if it runs uncompiled.
    """

    parts: SplitModel
    compiled: Callable[[Tensor], Tensor] | None
    loss: CrossEntropy
    train: Batches
    val: Batches
    test: Batches


@dataclass
class TrainingContext:
    """State shared by one training, or by several in sequence, on one dataset.

    Activations of a frozen prefix are computed once for all trainings that freeze the same layers
    with the same weights. On the CPU in fp32, the option ``cache`` stores them in the cache folder,
    where other processes and later runs find them.

    :ivar custom: objects of the caller that override options.
    :ivar weights: initial weights by the option ``weights``, each loaded once; others are loaded
        when they are needed.
    :ivar augment_all: whether variants of all photos are cached, not only of those in train, since
        the trainings have different splits.
    """

    dataset: Dataset
    machine: Machine
    group: Group = ALONE
    custom: CustomParts = OPTIONS_ONLY
    weights: dict[str, InitialWeights | None] = field(default_factory=dict)
    augment_all: bool = False
    _pixels: PixelSource | None = None
    _resized: dict[str, TrainingContext] = field(default_factory=dict)
    _activations: dict[str, ActivationSource] = field(default_factory=dict)
    _models: dict[tuple[object, ...], ProductClassifier] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.machine.device.type == "cpu":
            keep_freed_memory()

    def with_dataset(self, dataset: Dataset) -> TrainingContext:
        """A context that shares this one's state, for other splits of the same photos.

        :param dataset: as :meth:`.Dataset.with_splits` returns it.
        """
        self.pixels()
        return dataclasses.replace(self, dataset=dataset, _resized={})

    def with_resize(self, resize: str) -> TrainingContext:
        """A context that shares this one's state, for photos made square in another way.

        :raises ShopeeError: as :meth:`.Dataset.with_resize`.
        """
        contexts = self._resized
        contexts.setdefault(self.dataset.config.resize, self)
        if resize not in contexts:
            dataset = self.dataset.with_resize(resize, watch)
            contexts[resize] = dataclasses.replace(self, dataset=dataset, _pixels=None)
        for other in contexts.keys() - {resize}:
            # Pixels may be on the GPU, which may have no room for those of several ways.
            contexts[other]._pixels = None
        return contexts[resize]

    @cached_property
    def label_names(self) -> list[str]:
        """Readable names of the label groups, in the order of the dataset's classes."""
        return label_names(self.dataset.frame, self.dataset.classes)

    def new_model(self, config: TrainConfig) -> ProductClassifier:
        """A model on the device, in channels-last memory format, with seeded initial weights.

        A model is built once per combination of options and then copied, which is faster.
        """
        if self.custom.model is not None:
            own = as_classifier(self.custom.model, self.dataset.classes, config)
            return own.to(memory_format=torch.channels_last).to(self.machine.device)
        names = ("model", "weights", "image_size", "resize", "loss", "seed")
        key = tuple(getattr(config, name) for name in names)
        if key not in self._models:
            start = self.initial_weights(config)
            torch.manual_seed(config.seed)
            model = _build(config, self.dataset.classes, start)
            while len(self._models) >= _CACHED_MODELS:
                del self._models[next(iter(self._models))]
            model.label_names = self.label_names
            self._models[key] = model.to(memory_format=torch.channels_last)
        return copy.deepcopy(self._models[key]).to(self.machine.device)

    def initial_weights(self, config: TrainConfig) -> InitialWeights | None:
        """The weights that the option ``weights`` names, loaded once; None for ``auto``."""
        if config.weights not in self.weights:
            self.weights[config.weights] = initial_weights(config.weights)
        return self.weights[config.weights]

    def prepare(self, model: ProductClassifier, config: TrainConfig) -> TrainingInputs:
        """Split the model at ``freeze`` and make the batches of each split.

        :raises ValueError: when the photos are not resized as ``config`` says.
        """
        if config.resize != (resize := self.dataset.config.resize):
            raise ValueError(f"resize={config.resize}: the photos have {resize}; use with_resize")
        parts = split_model(model, config.freeze)
        source: Source = self.pixels()
        if parts.frozen is not None:
            source = self._frozen(parts.frozen, config)
        train = self.batches(TRAIN, source, config)
        if isinstance(train.transform, CustomTransform):
            train.transform.check(source.take(train.rows[:2]))
        return TrainingInputs(
            parts,
            self._compile(parts, train, config),
            self._loss(config),
            train,
            val=self.batches(VAL, source),
            test=self.batches(TEST, source),
        )

    def test(
        self, model: ProductClassifier, inputs: TrainingInputs | None = None
    ) -> tuple[np.ndarray, np.ndarray, Temperature]:
        """Calibrate the model on the val split and predict the test split, in every process.

        :param inputs: the model's training inputs, to use cached activations; None: the whole model
            runs.
        :returns: labels (T,) int64, logits (T, C) float32 and the model's temperature.
        """
        model.temperature = 1.0
        temperature = fit_temperature(*self._predict(VAL, model, inputs))
        labels, logits = self._predict(TEST, model, inputs)
        model.temperature = temperature.value
        return labels, logits / np.float32(temperature.value), temperature

    def _predict(
        self, split: str, model: ProductClassifier, inputs: TrainingInputs | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if inputs is None or model.tta:
            # Activations of mirror images are not cached, so the whole model runs.
            batches = self.batches(split, self.pixels())
            return predict_logits(model, batches, self.machine, self.group)
        batches = inputs.val if split == VAL else inputs.test
        return predict_logits(inputs.parts.trainable, batches, self.machine, self.group)

    def batches(self, split: str, source: Source, training: TrainConfig | None = None) -> Batches:
        """Batches of a split; shuffled and augmented if ``training`` is given."""
        settings = (
            {"batch_size": EVALUATION_BATCH}
            if training is None
            else {
                # The photos of a step, which the trainer divides into batches.
                "batch_size": training.batch_size * training.accumulate,
                "train": True,
                "transform": self._transform(training),
                "balanced": training.sampling == "balanced",
                "mix": training_mix(training),
                "seed": training.seed,
            }
        )
        labels = self.dataset.frame["label"].to_numpy(np.int64)
        rows, device = self.dataset.rows(split), self.machine.device
        if training:
            check_epoch(training, len(rows))
        share = (self.group.rank, self.group.size)
        return Batches(source, rows, labels, device=device, share=share, **settings)

    def _transform(self, config: TrainConfig) -> Transform | None:
        if self.custom.transform is not None:
            return CustomTransform(self.custom.transform)
        return training_transform(config)

    def _loss(self, config: TrainConfig) -> CrossEntropy:
        loss = ArcFace if config.loss == ARCFACE else CrossEntropy
        if config.class_weights == NONE:
            return loss(config.label_smoothing)
        labels = self.dataset.frame["label"].to_numpy(np.int64)[self.dataset.rows(TRAIN)]
        weights = balanced_weights(labels, len(self.dataset.classes)).to(self.machine.device)
        return loss(config.label_smoothing, weights)

    def _compile(
        self, parts: SplitModel, train: Batches, config: TrainConfig
    ) -> Callable[[Tensor], Tensor] | None:
        # Compilation does not work together with DistributedDataParallel here, which would not see
        # the gradients of a compiled module.
        if self.group.size > 1:
            return None
        example = train.source.take(train.rows[:1])
        with self.machine.autocast():
            return compile_step(parts.trainable, example, train.photos, config, self.machine)

    def pixels(self) -> PixelSource:
        """The decoded photos, one per row of the dataset."""
        if self._pixels is None:
            data = self.dataset
            self._pixels = PixelSource(data.decoded, self.machine.device, data.cache_rows)
        return self._pixels

    def _frozen(self, prefix: FrozenPrefix, config: TrainConfig) -> ActivationSource:
        transform = training_transform(config)
        assert transform is None or isinstance(transform, (FiniteTransform, FixedDraws))
        rows = np.arange(len(self.dataset.frame))
        augmented = rows if self.augment_all else self.dataset.rows(TRAIN)
        augmented = augmented if transform else rows[:0]
        key = self._key(prefix, augmented, config)
        if key not in self._activations:
            # Only one set of activations is kept in memory. Memory-mapped ones are all kept.
            for other in [k for k, source in self._activations.items() if not source.mapped]:
                del self._activations[other]
            unit = "photos and their augmentations" if len(augmented) else "photos"
            with self.machine.autocast(), torch.no_grad():
                source = ActivationSource(
                    prefix.fused(),
                    self.pixels(),
                    rows,
                    augmented,
                    transform,
                    # A key does not cover the code of the caller's network, so its activations
                    # are not stored in the cache folder.
                    name=key if config.cache and self.custom.model is None else None,
                    dtype=config.activation_dtype,
                    progress=watch("computing activations of the frozen layers", unit),
                )
            where = "the cache folder" if source.mapped else "memory"
            size = f"{source.nbytes / 2**20:,.0f} MiB" if source.nbytes >= 2**20 else "under 1 MiB"
            say(f"activations of the frozen layers: {size} in {where}")
            self._activations[key] = source
        return self._activations[key]

    def _draws(self, config: TrainConfig) -> list[str]:
        transform = training_transform(config)
        return [f"{transform.count} {transform.seed}"] if isinstance(transform, FixedDraws) else []

    def _key(self, prefix: FrozenPrefix, augmented: np.ndarray, config: TrainConfig) -> str:
        """A digest of everything that affects the activations, used as the cache key."""
        facts = [
            pixel_key(list(self.dataset.frame["content"]), config.image_size, config.resize),
            str(augmented.tolist()),
            _RECIPE,
            config.augment,
            *self._draws(config),
            config.model,
            config.freeze,
            config.activation_dtype,
            str(self.machine),
            torch.__version__,
            state_digest(prefix.layers.state_dict()),
        ]
        return hashlib.blake2b("\n".join(facts).encode(), digest_size=12).hexdigest()
