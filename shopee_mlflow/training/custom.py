"""Train with a model, transform or optimizer of the caller instead of those that options name."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config import ARCFACE, TrainConfig
from ..data import splits
from ..data.dataset import Dataset
from ..data_config import AUTO, NONE, DataConfig
from ..errors import ConfigError, ModelError
from ..modeling.freezing import BACKBONE
from ..modeling.loss import ARCFACE_SCALE
from ..modeling.models import CosineLinear, ProductClassifier
from ..options import as_text

TransformFn = Callable[[Tensor], Tensor]
OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]
# Options that have no effect on the caller's optimizer, which has its own values.
_OPTIMIZER_OPTIONS = (
    *("lr", "momentum", "nesterov", "weight_decay", "decay_norms"),
    *("backbone_lr_factor", "layerwise_lr"),
)
# Errors of a network for an input of an unsupported shape or type.
_NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, IndexError)


@dataclass(frozen=True)
class CustomParts:
    """Objects of the caller. If one is None, the options define that part.

    :ivar model: a network, see :func:`as_classifier`.
    :ivar transform: a transform of training photos, see :class:`CustomTransform`.
    :ivar optimizer: a function that takes a list of parameters and returns their optimizer.
    """

    model: nn.Module | None = None
    transform: TransformFn | None = None
    optimizer: OptimizerFactory | None = None

    def __bool__(self) -> bool:
        return not (self.model is None and self.transform is None and self.optimizer is None)

    def params(self, config: TrainConfig) -> dict[str, str]:
        """Parameters to log in place of the options that these objects replace."""
        params = {}
        if self.model is not None:
            params["model"] = _name(self.model)
        if self.transform is not None:
            params["augment"] = _name(self.transform)
        if self.optimizer is not None:
            example = self.optimizer([nn.Parameter(torch.zeros(1))])
            params["optimizer"] = type(example).__name__
            names = {field.name for field in dataclasses.fields(config)}
            for name in names.intersection(_OPTIMIZER_OPTIONS):
                params[name] = as_text(example.defaults.get(name, NONE))
        return params


OPTIONS_ONLY = CustomParts()


def check_parts(parts: CustomParts, config: TrainConfig) -> None:
    """Check the caller's objects before photos are decoded.

    :raises ConfigError: listing each object that cannot be used, or not with these options.
    """
    if not isinstance(config, TrainConfig):
        example = "train(TrainConfig(data='shop', epochs=10))"
        raise ConfigError([f"config: must be a TrainConfig, not {config!r:.60}; as in {example}"])
    problems = []
    if parts and config.resume != NONE:
        problems.append(
            f"resume={config.resume}: a training with your own model, transform or optimizer "
            "writes no checkpoints and cannot be resumed; omit resume"
        )
    if parts.model is not None:
        problems += _model_problems(parts.model, config)
    if parts.transform is not None:
        if not callable(parts.transform):
            problems.append(f"transform: must be a function of photos, not {parts.transform!r:.60}")
        if config.freeze != NONE:
            problems.append(
                "transform: does not work with frozen layers, whose activations are cached "
                f"(freeze={config.freeze}); use freeze=none, or the option augment"
            )
    if parts.optimizer is not None:
        problems += _optimizer_problems(parts.optimizer)
    if problems:
        raise ConfigError(problems)


def _model_problems(model: Any, config: TrainConfig) -> list[str]:
    if not isinstance(model, nn.Module):
        return [
            f"model: must be a torch.nn.Module, not {model!r:.60}; to use an architecture by name, "
            "set the option, as in TrainConfig(model='resnet50')"
        ]
    problems = []
    if config.weights != AUTO:
        problems.append(
            f"weights={config.weights}: has no effect on your own model; load weights with "
            "model.load_state_dict"
        )
    scales = [module.scale for module in model.modules() if isinstance(module, CosineLinear)]
    if config.loss == ARCFACE and ARCFACE_SCALE not in scales:
        problems.append(
            f"loss={ARCFACE}: needs a model whose head computes cosines times {ARCFACE_SCALE:g}, "
            f"which that of {_name(model)} does not; name an architecture with the option model, "
            "or use loss=cross_entropy"
        )
    if config.freeze == BACKBONE and not isinstance(model, ProductClassifier):
        problems.append(
            f"freeze={BACKBONE}: {_name(model)} is not divided into backbone and head; freeze one "
            "of its stages by name, or call requires_grad_(False) on its layers"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append(f"model: {_name(model)} has no parameter that requires a gradient")
    return problems


def _optimizer_problems(factory: Any) -> list[str]:
    how = "such as optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)"
    if isinstance(factory, Optimizer):
        return [
            "optimizer: must be a function that takes a list of parameters and returns their "
            f"optimizer, not an optimizer, {how}"
        ]
    if not callable(factory):
        return [f"optimizer: must be a function, {how}; not {factory!r:.60}"]
    made = factory([nn.Parameter(torch.zeros(1))])
    if not isinstance(made, Optimizer):
        return [f"optimizer: must return a torch.optim.Optimizer, not {made!r:.60}; {how}"]
    return []


def options_of(dataset: Dataset, config: TrainConfig) -> TrainConfig:
    """The options of a training, with the data options of a dataset that is already loaded.

    :raises ConfigError: when ``dataset`` is not a dataset, was modified after loading, or was
        loaded with data options that differ from those in ``config``.
    """
    if not isinstance(dataset, Dataset):
        raise ConfigError(
            [f"dataset: must be what load_dataset returns, not {type(dataset).__name__}"]
        )
    if splits.digest(dataset.manifest()) != dataset.digest:
        raise ConfigError(
            ["dataset: its photos, labels or splits were modified after loading; load it again"]
        )
    default, names = DataConfig(), [field.name for field in dataclasses.fields(DataConfig)]
    loaded = {n: getattr(dataset.config, n) for n in names if n not in ("cache", "workers")}
    problems = [
        f"{name}={as_text(getattr(config, name))}: the dataset was loaded with "
        f"{name}={as_text(value)}; load it again with the value that you want, and omit it here"
        for name, value in loaded.items()
        if getattr(config, name) not in (value, getattr(default, name))
    ]
    if problems:
        raise ConfigError(problems)
    return dataclasses.replace(config, **loaded)


def as_classifier(
    module: nn.Module, classes: Sequence[str], config: TrainConfig
) -> ProductClassifier:
    """Make a classifier of a copy of the caller's network.

    A :class:`ProductClassifier`, such as a model of an earlier training, is only copied. Any other
    module must take the same input as torchvision's networks: (N, 3, S, S) float, normalised by
    ImageNet's mean and standard deviation, where S is the option image_size.

    :raises ModelError: when the network does not return logits (N, classes) in train and eval mode,
        or does not fit the data.
    """
    name, model = _name(module), copy.deepcopy(module)
    if not isinstance(model, ProductClassifier):
        size, resize = config.image_size, config.resize
        model = ProductClassifier(model, nn.Identity(), classes, size, name, resize)
    # They were fitted to the weights before this training.
    model.temperature, model.detector = 1.0, None
    problems = [
        f"the model has {what} {mine}, and the data {theirs}"
        for what, mine, theirs in (
            ("label groups", _few(model.classes), _few(classes)),
            ("image_size", model.image_size, config.image_size),
            ("resize", model.resize, config.resize),
        )
        if mine != theirs
    ]
    if problems:
        raise ModelError(f"model: {name} does not fit these data: {'; '.join(problems)}.")
    for mode in (True, False):
        _check_logits(copy.deepcopy(model).train(mode), name, len(classes))
    return model


def _few(classes: Sequence[str]) -> str:
    return f"{', '.join(classes[:3])}{', ...' * (len(classes) > 3)} ({len(classes)})"


@torch.no_grad()
def _check_logits(model: ProductClassifier, name: str, classes: int) -> None:
    side, device = model.image_size, next(model.parameters()).device
    try:
        logits: object = model.to(device)(torch.zeros(2, 3, side, side, device=device))
    except _NETWORK_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"model: {name} fails on photos (2, 3, {side}, {side}) ({reason})."
        ) from error
    if not isinstance(logits, Tensor):
        kind = type(logits).__name__
        raise ModelError(f"model: {name} must return a tensor of logits, not {kind}.")
    if logits.shape != (2, classes):
        raise ModelError(
            f"model: {name} returns {tuple(logits.shape)} for 2 photos, but the data have "
            f"{classes} label groups; its last layer must have {classes} outputs."
        )


@dataclass(frozen=True)
class CustomTransform:
    """A transform of the caller for training photos.

    The function takes photos on the device, uint8 0..255, and returns photos of the same shape,
    uint8 0..255 or float 0..1. A transform of torchvision is called for each photo, (3, S, S),
    since it draws random values once per call. Any other function is called with a batch,
    (n, 3, S, S). torch's generators are seeded before each batch, so the result depends only on
    the seed and the epoch.
    """

    function: TransformFn
    variants: None = None

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count,) int64: a seed for each photo; a batch uses the seed of its first photo."""
        return rng.integers(2**63, size=count)

    def apply(self, images: Tensor, values: np.ndarray) -> Tensor:
        """Transform a batch.

        :raises ConfigError: when the result has another shape or an unsupported dtype.
        """
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(values[0]))
            if type(self.function).__module__.startswith("torchvision.transforms"):
                changed = [self._checked(self.function(image), image) for image in images]
                return torch.stack(changed).contiguous(memory_format=torch.channels_last)
            return self._checked(self.function(images), images)

    def _checked(self, changed: object, images: Tensor) -> Tensor:
        name = _name(self.function)
        if not isinstance(changed, Tensor) or changed.shape != images.shape:
            found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ConfigError(
                [f"transform: {name} must return photos of {tuple(images.shape)}, not {found}"]
            )
        if changed.dtype != torch.uint8 and not changed.is_floating_point():
            raise ConfigError(
                [f"transform: {name} must return uint8 or float photos, not {changed.dtype}"]
            )
        return changed

    def check(self, images: Tensor) -> None:
        """Apply the transform to some photos and check the result.

        :raises ConfigError: when values are out of range, for instance after a normalisation.
        """
        changed = self.apply(images, np.zeros(len(images), dtype=np.int64))
        low, high = float(changed.min()), float(changed.max())
        if changed.is_floating_point() and not (low >= 0 and high <= 1):
            raise ConfigError(
                [
                    f"transform: {_name(self.function)} returns values from {low:.3g} to "
                    f"{high:.3g}; floats must be 0..1, since the model itself normalises photos"
                ]
            )


def custom_optimizer(factory: OptimizerFactory, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """Create the caller's optimizer for the parameters that require gradients.

    :raises ConfigError: when it has other parameters.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    made = factory(trained)
    theirs = {id(p) for group in made.param_groups for p in group["params"]}
    if not theirs <= {id(parameter) for parameter in trained}:
        raise ConfigError(
            [
                "optimizer: must have only the parameters in its argument; these belong to a copy "
                "of your model, which is trained"
            ]
        )
    return made


def _name(thing: object) -> str:
    """A readable name: that of a function or a class, or the class of another object."""
    if isinstance(thing, ProductClassifier) and thing.architecture:
        return thing.architecture
    return str(getattr(thing, "__name__", type(thing).__name__))
