"""Read initial weights from a file, and load them into a network with other label groups."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ..config import PRETRAINED
from ..errors import ModelError
from .models import ProductClassifier
from .state_files import load_file, state_digest, unusable_state, unwrap

_log = logging.getLogger(__name__)

# Other buffers may hold integers, and bounds that are infinite.
_TRAINED = ("weight", "bias", "running_mean", "running_var")

_LISTED = 12
_OWN_PREFIXES = ("backbone.", "head.")


@dataclass(frozen=True)
class InitialWeights:
    """Weights that a training starts from.

    :ivar state: name -> tensor, with the names of a :class:`ProductClassifier` or of the library of
        its backbone.
    :ivar source: the value of the option ``weights``.
    :ivar classes: label groups of the rows of the head, in order; empty if unknown.
    :ivar architecture: name of the architecture; empty if unknown.
    :ivar run_id: the run that has trained the weights; None if unknown.
    """

    state: Mapping[str, Tensor] = field(repr=False)
    source: str
    classes: Sequence[str] = ()
    architecture: str = ""
    run_id: str | None = None

    def digest(self) -> str:
        """A digest of all values."""
        return state_digest(self.state, 8)

    @property
    def is_whole_model(self) -> bool:
        """Whether these are weights of a :class:`ProductClassifier`."""
        return all(key.startswith(_OWN_PREFIXES) for key in self.state)


def weights_of_model(
    model: ProductClassifier, source: str, run_id: str | None = None
) -> InitialWeights:
    """The weights of a model, with its label groups."""
    return InitialWeights(model.state_dict(), source, model.classes, model.architecture, run_id)


def read_weights(path: Path | str) -> InitialWeights:
    """Read a state dict without executing code in the file (``weights_only=True``).

    Checkpoints of Lightning, DataParallel, torch.compile and common training scripts are
    unwrapped, and the changes are logged.

    :raises ModelError: when the file is not a state dict, holds values that are not finite, or
        loading it would run code.
    """
    state, changes = unwrap(load_file(path))
    if problem := unusable_state(state):
        found = ""
        if isinstance(state, Mapping) and state:
            found = f" Its keys: {', '.join(str(key) for key in list(state)[:_LISTED])}."
        raise ModelError(
            f"weights={path}: {problem}.{found} Save a state dict with "
            "torch.save(model.state_dict(), path)."
        )
    _check_values(state, path)
    if changes:
        _log.info("weights=%s: %s.", path, "; ".join(changes))
    return InitialWeights(dict(state), str(path))


def _check_values(state: Mapping[str, Tensor], path: Path | str) -> None:
    """Check that weights and running statistics are finite floating-point numbers.

    :raises ModelError: naming the first one that is not.
    """
    for name, tensor in state.items():
        if not name.endswith(_TRAINED):
            continue
        if name.endswith(("weight", "bias")) and not tensor.is_floating_point():
            raise ModelError(
                f"weights={path}: {name} is {tensor.dtype}, and weights must be floating-point "
                "numbers. Save the weights of the model before it is quantized."
            )
        if not tensor.float().isfinite().all():
            raise ModelError(
                f"weights={path}: {name} holds NaN or infinite values. The training that saved the "
                "file has diverged, or half precision has overflowed. Use an earlier checkpoint."
            )


def load_whole_model(model: ProductClassifier, weights: InitialWeights) -> None:
    """Load the weights of another :class:`ProductClassifier` of the same architecture.

    Label groups that both models have keep their rows of the head. The rows of other label groups
    keep their random values.

    :raises ModelError: when the architectures or shapes differ.
    """
    if weights.architecture and _base(weights.architecture) != _base(model.architecture):
        raise ModelError(
            f"weights={weights.source}: has the architecture {weights.architecture}, not "
            f"{model.architecture}. Set model={_base(weights.architecture)}."
        )
    state = dict(weights.state)
    if weights.classes and list(weights.classes) != model.classes and _same_head(state, model):
        _reorder_head(state, model, weights)
    load_state(model, state, weights.source)
    rows = len(state.get(f"{last_layer(model)[0]}.weight", ()))
    if not weights.classes and rows == len(model.classes) and _same_head(state, model):
        _log.warning(
            "weights=%s: has no names of label groups; the rows of its head are used for those of "
            "the catalogue, in their order. To match them by name, give the run or its model.",
            weights.source,
        )


def _base(architecture: str) -> str:
    name = architecture.removesuffix(PRETRAINED)
    return "efficientnet_b0" if name == "effnet" else name


def _same_head(state: Mapping[str, Tensor], model: ProductClassifier) -> bool:
    """Whether both heads are linear with a bias, or both are cosines, which have none."""
    bias = f"{last_layer(model)[0]}.bias"
    return (bias in state) == (bias in model.state_dict())


def _reorder_head(
    state: dict[str, Tensor], model: ProductClassifier, weights: InitialWeights
) -> None:
    """Move the rows of the head to the positions of their label groups in the model."""
    rows = {name: row for row, name in enumerate(weights.classes)}
    known = [(new, rows[name]) for new, name in enumerate(model.classes) if name in rows]
    here, there = ([pair[side] for pair in known] for side in (0, 1))
    head = last_layer(model)[0]
    for key, value in model.state_dict().items():
        if key.rpartition(".")[0] == head and key in state:
            fresh = value.clone()
            if fresh.shape[1:] == state[key].shape[1:]:
                fresh[here] = state[key][there].to(fresh.dtype)
            state[key] = fresh
    _log.warning(
        "weights=%s: %d of %d label groups keep their row of the head; the others start from "
        "random values.",
        weights.source,
        len(known),
        len(model.classes),
    )


def last_layer(network: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the layer that computes the logits."""
    layers = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    return layers[-1]


def load_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict with the network's own names.

    If the last layer has another size or another kind (with a bias, or cosines without one), it is
    not loaded, and a warning is logged.

    :raises ModelError: listing keys that are missing, unknown or of another shape.
    """
    wanted = network.state_dict()
    head = last_layer(network)[0]
    state = {key: value for key, value in state.items() if not _is_auxiliary(key, wanted)}
    head_keys = {key for key in (*wanted, *state) if key.rpartition(".")[0] == head}
    left_out = {k for k in head_keys if _shape(state, k) != _shape(wanted, k)}
    if left_out and head_keys & set(state):
        rows = next(iter(_shape(state, f"{head}.weight") or ()), None)
        why = f"has {rows} classes"
        if rows is None:
            why = "has no weight"
        elif rows == len(wanted[f"{head}.weight"]):
            why = "was trained with another loss"
        _log.warning(
            "weights=%s: the head %s and is not loaded; the new head starts from random values.",
            source,
            why,
        )
    kept = {key: value for key, value in state.items() if key not in head_keys or not left_out}
    problems = [
        *(f"missing: {key}" for key in wanted if key not in kept and key not in head_keys),
        *(f"unknown: {key}" for key in kept if key not in wanted),
        *(
            f"shape: {key} is {tuple(value.shape)}, expected {tuple(wanted[key].shape)}"
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


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def _other_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """A hint for weights of another library, whose names hardly match; otherwise empty."""
    unknown, missing = state.keys() - wanted.keys(), wanted.keys() - state.keys()
    if not unknown or len(missing) < 0.9 * len(wanted):
        return ""
    theirs = next(key for key in state if key in unknown)
    ours = next(key for key in wanted if key in missing)
    return f" (the file has names like {theirs}, the network has names like {ours})"


def _is_auxiliary(key: str, wanted: Mapping[str, Tensor]) -> bool:
    """Whether a key belongs to an auxiliary head, which GoogLeNet and Inception use in training."""
    return key.startswith(("aux1.", "aux2.", "AuxLogits.")) and key not in wanted
