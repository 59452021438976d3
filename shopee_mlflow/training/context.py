"""A dataset on a machine, made ready for trainings that share its pixels and activations."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..config import AUTO, TrainConfig
from ..console import say, watch
from ..data.batches import Batches, PixelSource, Source
from ..data.dataset import Dataset
from ..data.pixel_cache import pixel_key
from ..data.splits import TEST, TRAIN, VAL
from ..modeling.architectures import build_model
from ..modeling.compiling import compile_step
from ..modeling.device import Machine, keep_freed_memory
from ..modeling.freezing import ActivationSource, FrozenPrefix, SplitModel, split_model
from ..modeling.group import ALONE, Group
from ..modeling.models import ProductClassifier
from ..modeling.scoring import predict_logits

_EVALUATION_BATCH = 64
_MODELS_KEPT = 8
# Changes when photos are prepared for the network, or varied, in another way.
_RECIPE = "activations-1"


@dataclass(frozen=True)
class TrainingInputs:
    """A model cut where it is frozen, and the batches for what is trained of it.

    :ivar step: what is trained, compiled; None where it is not to be.
    """

    split_model: SplitModel
    step: Callable[[Tensor], Tensor] | None
    train: Batches
    val: Batches
    test: Batches


@dataclass
class TrainingContext:
    """What trainings on one dataset have in common, for one of them or for many in turn.

    Pixels are laid out once. What a frozen prefix gives is computed once for all trainings that
    freeze the same layers with the same weights. On the CPU in fp32, and where the option
    ``cache`` allows it, other processes and later runs find it in the cache folder.
    """

    dataset: Dataset
    machine: Machine
    group: Group = ALONE
    _pixels: PixelSource | None = None
    _activations: dict[str, ActivationSource] = field(default_factory=dict)
    _models: dict[tuple[object, ...], ProductClassifier] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.machine.device.type == "cpu":
            keep_freed_memory()

    def new_model(self, config: TrainConfig) -> ProductClassifier:
        """A model on the device, in the memory order that convolutions like; seeded.

        Trainings that start alike get copies of one model, which is faster than another build.
        """
        key = (config.model, config.weights, config.image_size, config.seed)
        if key not in self._models:
            torch.manual_seed(config.seed)
            weights = None if config.weights == AUTO else config.weights
            model = build_model(config.model, self.dataset.classes, config.image_size, weights)
            while len(self._models) >= _MODELS_KEPT:
                del self._models[next(iter(self._models))]
            self._models[key] = model.to(memory_format=torch.channels_last)
        return copy.deepcopy(self._models[key]).to(self.machine.device)

    def test_photos(self) -> Batches:
        """The test split's photos, for a whole model."""
        labels = self.dataset.frame["label"].to_numpy(np.int64)
        rows = self.dataset.rows(TEST)
        return Batches(
            self._photos(),
            rows,
            labels,
            _EVALUATION_BATCH,
            self.machine.device,
            share=self.group.share,
        )

    def test(self, model: ProductClassifier, part: TrainingInputs) -> tuple[np.ndarray, np.ndarray]:
        """Labels (T,) int64 and logits (T, C) float32 of the test split; in all of a group.

        :param part: what was trained of the model.
        """
        # A mirrored photo has another activation, so the whole model looks at it.
        tested = (
            (model, self.test_photos()) if model.tta else (part.split_model.trainable, part.test)
        )
        return predict_logits(*tested, self.machine, self.group)

    def prepare(self, model: ProductClassifier, config: TrainConfig) -> TrainingInputs:
        """SplitModel the model at ``freeze`` and make the batches of each split."""
        parts = split_model(model, config.freeze)
        source: Source = self._photos()
        if parts.frozen is not None:
            source = self._frozen(parts.frozen, config)

        def batches(split: str, size: int, learn: bool = False) -> Batches:
            return Batches(
                source,
                self.dataset.rows(split),
                self.dataset.frame["label"].to_numpy(np.int64),
                size,
                self.machine.device,
                shuffle=learn,
                augment=learn and config.augment,
                seed=config.seed,
                share=self.group.share,
            )

        example = source.take(self.dataset.rows(TRAIN)[:1], np.zeros(1, dtype=np.int64))
        photos = len(self.dataset.rows(TRAIN))
        step = None
        # What is compiled would not tell the others its gradients.
        if self.group.size == 1:
            with self.machine.autocast():
                step = compile_step(parts.trainable, example, photos, config, self.machine)
        return TrainingInputs(
            parts,
            step,
            train=batches(TRAIN, config.batch_size, learn=True),
            val=batches(VAL, _EVALUATION_BATCH),
            test=batches(TEST, _EVALUATION_BATCH),
        )

    def _photos(self) -> PixelSource:
        if self._pixels is None:
            data = self.dataset
            self._pixels = PixelSource(data.decoded, self.machine.device, data.places)
        return self._pixels

    def _frozen(self, prefix: FrozenPrefix, config: TrainConfig) -> ActivationSource:
        train = self.dataset.rows(TRAIN) if config.augment else np.array([], dtype=np.int64)
        key = self._key(prefix, train, config)
        if key not in self._activations:
            # Memory holds one prefix's; those in files are the system's to keep or let go.
            held = {k: source for k, source in self._activations.items() if source.mapped}
            self._activations = held
            with self.machine.autocast(), torch.no_grad():
                source = ActivationSource(
                    prefix.fused(),
                    self._photos(),
                    plain_rows=np.arange(len(self.dataset.frame)),
                    augmented_rows=train,
                    name=key if config.cache else None,
                    numbers=config.activation_dtype,
                    progress=watch("computing what the frozen layers give"),
                )
            where = "the cache folder" if source.mapped else "memory"
            say(f"activations of the frozen layers: {source.nbytes / 2**20:,.0f} MiB in {where}")
            self._activations[key] = source
        return self._activations[key]

    def _key(self, prefix: FrozenPrefix, augmented: np.ndarray, config: TrainConfig) -> str:
        """A digest of all that shapes the activations: photos, layers, weights, arithmetic."""
        digest = hashlib.blake2b(digest_size=12)
        facts = [
            pixel_key(list(self.dataset.frame["content"]), config.image_size),
            str(augmented.tolist()),
            _RECIPE,
            config.model,
            config.freeze,
            config.activation_dtype,
            str(self.machine),
            torch.__version__,
        ]
        digest.update("\n".join(facts).encode())
        for name, tensor in prefix.layers.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
