"""Architectures by name: a small CNN, and classifiers of torchvision and timm with new heads."""

from __future__ import annotations

from collections.abc import Sequence
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
from .initial_weights import InitialWeights, last_layer, load_state, load_whole_model, read_weights
from .models import CosineLinear, ProductClassifier, SmallCNN
from .timm_models import PREFIX as TIMM
from .timm_models import check_timm_name, timm_backbone

_ALIASES = {"effnet": "efficientnet_b0"}
_IMAGENET_CLASSES = 1000
_AVAILABLE = (
    "Use cnn, effnet, a classifier of torchvision such as resnet50 or convnext_tiny, or timm/NAME, "
    "all but cnn also with _pretrained. In Python, architecture_names() lists those of torchvision."
)


def architecture_names() -> list[str]:
    """Every name that :func:`build_model` takes, but for those of timm."""
    plain = ["effnet", *list_models(module=torchvision.models)]
    return ["cnn", *(name + suffix for name in plain for suffix in ("", PRETRAINED))]


def check_architecture(name: str) -> None:
    """Check that an architecture has this name.

    :raises ModelError: otherwise, with the closest name.
    """
    if name.startswith(TIMM):
        check_timm_name(name)
        return
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
    weights: Path | str | InitialWeights | None = None,
    resize: str = "stretch",
    cosine_scale: float | None = None,
) -> ProductClassifier:
    """Build a classifier; ``*_pretrained`` starts from its library's ImageNet weights.

    :param name: ``cnn``, ``effnet``, a torchvision classifier, or ``timm/NAME``; all but ``cnn``
        with or without ``_pretrained``.
    :param classes: label groups in logit order.
    :param weights: weights to start from instead of the download: in the layout of torchvision or
        timm, or of a :class:`ProductClassifier` of the same architecture. A file, or what
        :func:`~shopee_mlflow.modeling.initial_weights.read_weights` returns.
    :param resize: how photos become squares: ``stretch``, ``pad`` or ``crop``.
    :param cosine_scale: the logits are cosines times this number, as ``loss=arcface`` needs; None:
        a linear head.
    :raises ModelError: for an unknown name, an unsupported image size, or unsuitable weights.
    """
    check_architecture(name)
    start = read_weights(weights) if isinstance(weights, (str, Path)) else weights
    whole = start is not None and (start.is_whole_model or name == "cnn")
    if whole:
        parts = _new_parts(name.removesuffix(PRETRAINED), classes, image_size, None)
    else:
        parts = _new_parts(name, classes, image_size, start)
    backbone, head, normalisation = parts
    if cosine_scale is not None:
        head = _with_cosines(head, cosine_scale)
    model = ProductClassifier(backbone, head, classes, image_size, name, resize, *normalisation)
    if start is not None and whole:
        load_whole_model(model, start)
    _check_size(model)
    return model


def _new_parts(
    name: str, classes: Sequence[str], image_size: int, start: InitialWeights | None
) -> tuple[nn.Module, nn.Module, tuple[Sequence[float], ...]]:
    """Backbone, new head, and the mean and standard deviation that the backbone expects.

    :param start: weights of the backbone.
    """
    if name == "cnn":
        return SmallCNN(image_size), nn.Linear(SmallCNN.features_out, len(classes)), ()
    if name.startswith(TIMM):
        timm = timm_backbone(name, image_size, start)
        return timm.network, nn.Linear(timm.features, len(classes)), (timm.mean, timm.std)
    base = name.removesuffix(PRETRAINED)
    base = _ALIASES.get(base, base)
    network = _torchvision_network(base, image_size)
    if start:
        load_state(network, start.state, start.source)
    elif name.endswith(PRETRAINED):
        load_state(network, download_state(base), "the downloaded weights")
    return *_replace_head(network, len(classes)), ()


def _with_cosines(head: nn.Module, scale: float) -> nn.Module:
    """The head with cosines in place of its last, linear layer."""
    if isinstance(head, nn.Sequential):
        return nn.Sequential(*head[:-1], _with_cosines(head[-1], scale))
    assert isinstance(head, nn.Linear)
    return CosineLinear(head.in_features, head.out_features, scale)


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


def _replace_head(network: nn.Module, classes: int) -> tuple[nn.Module, nn.Module]:
    """Remove the last layer; returns the backbone, which computes features, and a new head.

    A dropout directly before the last layer moves into the head, so that it stays active when the
    backbone is frozen.
    """
    path, last = last_layer(network)
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
