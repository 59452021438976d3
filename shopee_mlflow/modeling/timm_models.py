"""Architectures of timm, an optional package: ``model=timm/NAME``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PRETRAINED
from ..errors import ModelError
from .initial_weights import InitialWeights

PREFIX = "timm/"
_STATISTICS = ("running_mean", "running_var")
# New networks have no value above a hundredth of it.
_FIRST_MARKER = 1000


@dataclass(frozen=True)
class TimmBackbone:
    """A network of timm without its head.

    :ivar network: normalised photos (N, 3, S, S) -> (N, features).
    :ivar features: number of features.
    :ivar mean: channel means for the normalisation of photos in 0..1.
    :ivar std: channel standard deviations for the normalisation.
    """

    network: nn.Module
    features: int
    mean: Sequence[float]
    std: Sequence[float]


def check_timm_name(name: str) -> None:
    """Check that timm is installed and has an architecture of this name.

    :param name: ``timm/NAME`` or ``timm/NAME_pretrained``.
    :raises ModelError: if not; the message has the closest names.
    """
    timm = _timm(name)
    wanted, pretrained = _parse(name)
    base, _, tag = wanted.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(PREFIX + each for each in near)}?" if near else ""
        raise ModelError(f"model={name}: timm has no such architecture.{hint}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        raise ModelError(
            f"model={name}: timm has no weights {tag!r} for {base}. "
            + (f"Available: {', '.join(tags)}." if tags else "No others are available.")
        )
    if pretrained and not tags:
        raise ModelError(
            f"model={name}: timm has no pretrained weights for {base}; omit {PRETRAINED}."
        )


def timm_backbone(
    name: str, image_size: int, weights: InitialWeights | None = None
) -> TimmBackbone:
    """Build a network of timm for photos of ``image_size``.

    :param name: ``timm/NAME``, with ``_pretrained`` to download timm's weights.
    :param weights: weights in timm's layout, loaded instead of a download.
    :raises ModelError: when weights cannot be downloaded or do not fit, or the network cannot be
        built for this size.
    """
    timm = _timm(name)
    architecture, pretrained = _parse(name)
    settings: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    config = timm.get_pretrained_cfg(architecture)
    if config is not None and config.fixed_input_size:
        settings["img_size"] = image_size
    try:
        if weights:
            network = _with_weights(timm, architecture, settings, weights)
        else:
            network = timm.create_model(architecture, **settings)
    except ModelError:
        raise
    except Exception as error:
        raise _build_error(name, image_size, weights, pretrained, error) from error
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(1, 3, image_size, image_size)).shape[1]
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _build_error(name, image_size, None, False, error) from error
    about = network.pretrained_cfg
    return TimmBackbone(network.train(), features, about["mean"], about["std"])


def _with_weights(
    timm: Any, architecture: str, settings: Mapping[str, Any], weights: InitialWeights
) -> Any:
    """Build a network with weights, and check that they are those of this architecture.

    timm's own loader resizes position embeddings and renames layers of old versions. It ignores
    names that are missing or not needed. So the check loads markers in place of the weights: each
    weight of the file is a number of its own, which is found again in the network.
    """

    def loaded(state: Mapping[str, Tensor]) -> Any:
        given = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}}
        with torch.random.fork_rng(devices=[]):
            return timm.create_model(architecture, **{**settings, **given})

    names = [name for name, value in weights.state.items() if value.is_floating_point()]
    markers = {
        name: torch.full(weights.state[name].shape, float(number))
        for number, name in enumerate(names, start=_FIRST_MARKER)
    }
    marked = loaded({**weights.state, **markers})
    learned = _learned(marked)
    missing = [name for name, value in learned.items() if value.max() < _FIRST_MARKER / 100]
    heads = marked.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
    unused = _unused_layers(names, learned.values()) - marked.state_dict().keys()
    unused = {name for name in unused if not name.startswith(heads)}
    if missing or unused:
        why = (
            f"{len(missing)} of {len(learned)} weights are missing, such as {missing[0]}"
            if missing
            else f"it has more layers, such as {min(unused)}"
        )
        raise ModelError(
            f"weights={weights.source}: does not fit model={PREFIX}{architecture}: {why}."
        )
    return loaded(weights.state)


def _learned(network: nn.Module) -> dict[str, Tensor]:
    """The values that training determines: parameters, and statistics of batch norm."""
    buffers = {name: b for name, b in network.named_buffers() if name.endswith(_STATISTICS)}
    return {**{name: p.detach() for name, p in network.named_parameters()}, **buffers}


def _unused_layers(names: Sequence[str], loaded: Iterable[Tensor]) -> set[str]:
    """Names in a file whose markers are in no layer, although those of layers like them are.

    Layers are alike if their names differ in numbers only. Others that are not used, such as heads,
    are no sign of another architecture.
    """
    found: set[int] = set()
    for value in loaded:
        found |= set(value.round().long().flatten().unique_consecutive().tolist())
    numbers = dict(zip(names, range(_FIRST_MARKER, _FIRST_MARKER + len(names)), strict=True))
    kinds = {re.sub(r"\d+", "#", name) for name, number in numbers.items() if number in found}
    return {
        name
        for name, number in numbers.items()
        if number not in found and re.sub(r"\d+", "#", name) in kinds
    }


def _parse(name: str) -> tuple[str, bool]:
    """timm's name of an architecture, and whether to download pretrained weights."""
    return name.removeprefix(PREFIX).removesuffix(PRETRAINED), name.endswith(PRETRAINED)


def _timm(name: str) -> Any:
    if find_spec("timm") is None:
        raise ModelError(
            f"model={name}: needs the package timm. Install it with pip install timm, or with this "
            "project's extra: pip install -e '.[timm]'."
        )
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"model={name}: the package timm cannot be imported ({error}).") from error
    return timm


def _build_error(
    name: str,
    image_size: int,
    weights: InitialWeights | None,
    pretrained: bool,
    error: Exception,
) -> ModelError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if weights:
        return ModelError(
            f"weights={weights.source}: does not fit model={name}:\n  "
            + "\n  ".join(line.strip()[:300] for line in lines[:6])
        )
    if pretrained:
        return ModelError(
            f"The pretrained weights of {name} cannot be loaded from the Hugging Face hub "
            f"({lines[0][:300]}).\nName a local file in timm's layout with weights=PATH, or train "
            f"from scratch with model={name.removesuffix(PRETRAINED)}."
        )
    return ModelError(
        f"model={name}: cannot be built for image_size={image_size} ({lines[0][:200]})."
    )
