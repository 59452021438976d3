"""Architectures by name: a small CNN and torchvision's classifiers, with heads for our classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model_builder, get_model_weights, list_models

from ..config import PRETRAINED
from ..errors import ModelError
from ..options import nearest
from .models import ProductClassifier, SmallCNN
from .state_files import load_file, unwrap

_log = logging.getLogger(__name__)

_ALIASES = {"effnet": "efficientnet_b0"}
_IMAGENET_CLASSES = 1000
_LISTED = 12
_AVAILABLE = (
    "Use cnn, effnet, or a classifier of torchvision such as resnet50 or convnext_tiny, the latter "
    "two also with _pretrained. In Python, architecture_names() lists them all."
)


def architecture_names() -> list[str]:
    """Every name that :func:`build_model` takes."""
    plain = ["effnet", *list_models(module=torchvision.models)]
    return ["cnn", *(name + suffix for name in plain for suffix in ("", PRETRAINED))]


def check_architecture(name: str) -> None:
    """Check that an architecture has this name.

    :raises ModelError: otherwise, with the closest name.
    """
    known = architecture_names()
    if name not in known:
        near = nearest(name, known)
        raise ModelError(
            f"model={name}: no such architecture. "
            + (f"Did you mean {' or '.join(near)}?" if near else _AVAILABLE)
        )


def build_model(
    name: str,
    classes: Sequence[str],
    image_size: int = 256,
    weights: Path | str | None = None,
    resize: str = "stretch",
) -> ProductClassifier:
    """Build a classifier; ``*_pretrained`` starts from torchvision's newest ImageNet weights.

    :param name: ``cnn``, ``effnet``, or a torchvision classifier, the latter two with or without
        ``_pretrained``.
    :param classes: label groups in logit order.
    :param weights: state-dict file to load instead of the download: in torchvision's
        layout, or saved from a :class:`ProductClassifier` of the same architecture.
    :param resize: how photos become squares: ``stretch`` or ``pad``.
    :raises ModelError: for an unknown name, an unsupported image size, or unsuitable weights.
    """
    check_architecture(name)
    base = name.removesuffix(PRETRAINED)
    if base == "cnn":
        backbone: nn.Module = SmallCNN(image_size)
        head: nn.Module = nn.Linear(SmallCNN.features_out, len(classes))
        model = ProductClassifier(backbone, head, classes, image_size, name, resize)
        if weights:
            _load_own(model, weights)
    else:
        network = _torchvision_network(_ALIASES.get(base, base), image_size)
        state = {}
        if weights or name.endswith(PRETRAINED):
            state = read_state(weights) if weights else download_state(_ALIASES.get(base, base))
        own_layout = bool(state) and all(key.startswith(("backbone.", "head.")) for key in state)
        source = str(weights or "the downloaded weights")
        if state and not own_layout:
            _load_state(network, state, source)
        backbone, head = _replace_head(network, len(classes))
        model = ProductClassifier(backbone, head, classes, image_size, name, resize)
        if own_layout:
            _load_state(model, state, source)
    _check_size(model)
    return model


def read_state(path: Path | str) -> dict[str, Tensor]:
    """Read a state dict without executing code from the pickle (``weights_only=True``).

    Checkpoints of Lightning, DataParallel, torch.compile and common training scripts are
    unwrapped; a log message says how.

    :raises ModelError: when the file is not a state dict, or loading it would run code.
    """
    state, changes = unwrap(load_file(path))
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(value, Tensor) for value in state.values())
    ):
        found = ""
        if isinstance(state, Mapping) and state:
            found = f" Its keys: {', '.join(str(key) for key in list(state)[:_LISTED])}."
        raise ModelError(
            f"weights={path}: holds no state dict (name -> tensor).{found} Save one with "
            "torch.save(model.state_dict(), path)."
        )
    if changes:
        _log.info("weights=%s: %s.", path, "; ".join(changes))
    return dict(state)


def download_state(network: str) -> dict[str, Tensor]:
    """torchvision's newest ImageNet weights, from its cache or the network.

    :raises ModelError: when the download fails, with the file's address and two ways to supply it.
    """
    weights = get_model_weights(network).DEFAULT
    file = weights.url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(
            f"The pretrained weights {file} cannot be downloaded from {weights.url} ({reason}).\n"
            f"Either copy that file to {cached}, or name a state-dict file in torchvision's "
            "layout with weights=PATH. Models without _pretrained need no download."
        ) from error


def _torchvision_network(name: str, image_size: int) -> nn.Module:
    """The untrained network with ImageNet's 1000 classes."""
    builder = get_model_builder(name)
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        # With auxiliary heads, the output in training mode would have another type.
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = image_size
    if name == "maxvit_t":
        options["input_size"] = (image_size, image_size)
    try:
        return builder(**options)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise _wrong_size(name, image_size, error) from error


def _wrong_size(name: str, image_size: int, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()
    return ModelError(
        f"model={name}: cannot be built for image_size={image_size} "
        f"({reason[0][:200] if reason else type(error).__name__}). Try image_size=224."
    )


def _check_size(model: ProductClassifier) -> None:
    """Run one photo through the network, so that an unsupported size is reported early."""
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, model.image_size, model.image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _wrong_size(model.architecture, model.image_size, error) from error
    finally:
        model.train(was_training)


def _last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the layer that computes the 1000 logits of ImageNet."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    return layers[-1]


def _replace_head(network: nn.Module, classes: int) -> tuple[nn.Module, nn.Module]:
    """Remove the last layer; returns the backbone, which computes features, and a new head.

    A dropout directly before the last layer moves into the head, so that it stays active when the
    backbone is frozen.
    """
    path, last = _last_layer(network)
    if isinstance(last, nn.Conv2d):
        # SqueezeNet classifies with a convolution and pools after it: pool first instead.
        network.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return network, nn.Sequential(nn.Dropout(0.5), nn.Linear(last.in_channels, classes))
    assert isinstance(last, nn.Linear)
    head: nn.Module = nn.Linear(last.in_features, classes)
    parent_path, _, child = path.rpartition(".")
    parent = network.get_submodule(parent_path)
    setattr(parent, child, nn.Identity())
    if isinstance(parent, nn.Sequential) and child.isdigit() and int(child) > 0:
        before = parent[int(child) - 1]
        if isinstance(before, nn.Dropout):
            parent[int(child) - 1] = nn.Identity()
            head = nn.Sequential(nn.Dropout(before.p), head)
    return network, head


def _load_own(model: ProductClassifier, weights: Path | str) -> None:
    """Load a state dict saved from a :class:`ProductClassifier`."""
    _load_state(model, read_state(weights), str(weights))


def _load_state(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load weights in the network's own layout.

    If its size differs, the last layer is left out, with a warning.

    :raises ModelError: listing keys that are missing, unknown or of another shape.
    """
    wanted = network.state_dict()
    head = _last_layer(network)[0]
    state = {key: value for key, value in state.items() if not _is_auxiliary(key, wanted)}
    head_keys = {key for key in wanted if key.rpartition(".")[0] == head}
    left_out = {k for k in head_keys if k in state and state[k].shape != wanted[k].shape}
    if left_out:
        _log.warning(
            "weights=%s: its head has %d classes and is left out; the new head starts from random "
            "values.",
            source,
            len(state[f"{head}.weight"]),
        )
    kept = {key: value for key, value in state.items() if key not in head_keys or not left_out}
    problems = [
        *(f"missing: {key}" for key in wanted if key not in kept and key not in head_keys),
        *(f"unknown: {key}" for key in kept if key not in wanted),
        *(
            f"shape: {key} is {tuple(value.shape)}, wanted {tuple(wanted[key].shape)}"
            for key, value in kept.items()
            if key in wanted and value.shape != wanted[key].shape
        ),
    ]
    if problems:
        more = len(problems) - _LISTED
        listed = "\n  ".join([*problems[:_LISTED], *([f"... and {more} more"] if more > 0 else [])])
        raise ModelError(
            f"weights={source}: {len(problems)} keys do not fit this architecture"
            f"{_other_names(state, wanted)}:\n  {listed}"
        )
    network.load_state_dict(kept, strict=False)


def _other_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """A hint for weights of another library, of which almost no name matches."""
    unknown, missing = state.keys() - wanted.keys(), wanted.keys() - state.keys()
    if not unknown or len(missing) < 0.9 * len(wanted):
        return ""
    theirs = next(key for key in state if key in unknown)
    ours = next(key for key in wanted if key in missing)
    return f" (the file has names like {theirs}, the network has names like {ours})"


def _is_auxiliary(key: str, wanted: Mapping[str, Tensor]) -> bool:
    """Whether a key belongs to a head that GoogLeNet and Inception use in training only."""
    return key.startswith(("aux1.", "aux2.", "AuxLogits.")) and key not in wanted
