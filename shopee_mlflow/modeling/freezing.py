"""Freezing: split a network at a stage, run the frozen part once, train the other part.

The split is made in the traced graph of the backbone (torch.fx), so it works for any architecture
with sequential stages. Both parts share their layers with the whole model: training the second part
trains the model, and the logged model is the whole, unchanged network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, fx, nn

from ..data.array_cache import has_room, load_or_build
from ..data.batches import Source
from ..data.mapped_arrays import Window, as_tensor
from ..data.transforms import PLAIN, Draws, FiniteTransform, FixedDraws, on_device
from ..data_config import AUTO
from ..errors import ModelError
from ..options import nearest
from .inference import fuse_layers
from .models import ProductClassifier

BACKBONE = "backbone"
# Largest share of the free memory for activations; batches and the network need the rest.
_MEMORY_SHARE = 0.8
_PREFIX_BATCH = 32
NOTHING = "none"
_Real = type[np.floating[Any]]
# Size in bytes above which activations are stored in half precision.
_HALF_FROM = 4 * 2**30
_HALF_MOST = torch.finfo(torch.float16).max
# Marks a float16 file whose activations exceed the range of float16.
_TOO_LARGE = "too_large"


@dataclass(frozen=True)
class SplitModel:
    """A model in two parts: ``trainable(frozen(images))`` equals ``model(images)``.

    :ivar frozen: photos -> activations, always in eval mode; None where nothing is frozen.
    :ivar trainable: activations (photos where nothing is frozen) -> logits.
    :ivar backbone: the trainable layers without the head; None where only the head is trained.
    """

    frozen: FrozenPrefix | None
    trainable: nn.Module
    backbone: nn.Module | None = None


class FrozenPrefix(nn.Module):
    """Preprocessing and the frozen layers. Stays in eval mode; computes no gradients."""

    def __init__(self, model: ProductClassifier, layers: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the whole model is not registered as a submodule.
        self._model = (model,)
        self.layers = layers
        for parameter in layers.parameters():
            parameter.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenPrefix:  # noqa: ARG002 - frozen is frozen
        """Do nothing: frozen layers stay in eval mode and keep their statistics."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 or float photos -> activations."""
        return self.layers(self._model[0].preprocess(images))

    def fused(self) -> nn.Module:
        """A copy for fast inference with merged batch norms; outputs are equal to about 1e-5."""
        return FrozenPrefix(self._model[0], fuse_layers(self.layers))


class ActivationSource:
    """Activations of the frozen prefix, computed once for each photo and variant.

    Replaces the photos in :class:`~shopee_mlflow.data.batches.Batches`.
    """

    def __init__(
        self,
        prefix: nn.Module,
        photos: Source,
        plain_rows: np.ndarray,
        augmented_rows: np.ndarray,
        transform: FiniteTransform | FixedDraws | None = None,
        *,
        name: str | None = None,
        dtype: str = AUTO,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Run the prefix over all rows, and over every variant of ``augmented_rows``.

        :param name: name of the file in the cache folder, a digest of everything that affects the
            activations. None keeps them in memory, as on a GPU or without room on the disk.
        :param dtype: dtype of the file: ``float32``; ``float16`` (half the size, relative error
            2**-11); ``auto`` (float16 for large files). If values exceed the range of float16, the
            file is float32.
        :raises ModelError: when activations that are kept in memory do not fit into it.
        """
        variants = transform.variants if transform else 1
        wanted = [(row, PLAIN) for row in plain_rows]
        wanted += [(row, variant) for variant in range(1, variants) for row in augmented_rows]
        rows, chosen = np.array(wanted, dtype=np.int64).T
        # Position in the store of each variant and row; -1 where there is none.
        self._slot = np.full((variants, int(rows.max()) + 1), -1, dtype=np.int64)
        self._slot[chosen, rows] = np.arange(len(rows))

        def compute(part: slice) -> Tensor:
            draws = transform.at(rows[part], chosen[part]) if transform else None
            return _channels_last(prefix(photos.take(rows[part], draws)))

        first = compute(slice(0, 1))
        shape = (len(rows), *first.shape[1:])

        def fill(store: Tensor, first_row: int = 0) -> dict[str, Any]:
            for start in range(0, len(store), _PREFIX_BATCH):
                span = slice(start, min(start + _PREFIX_BATCH, len(store)))
                part = slice(first_row + span.start, first_row + span.stop)
                values = compute(part)
                if store.dtype == torch.float16 and values.abs().max() > _HALF_MOST:
                    return {_TOO_LARGE: {str(first_row): True}}
                store[span] = values
                if progress:
                    progress(part.stop, len(rows))
            return {}

        file, stored_dtype = f"activations-{name}", _file_dtype(dtype, shape)
        self._window: Window | None = None
        self.mapped = name is not None and _fits_a_file(first, shape, stored_dtype, file)
        if self.mapped:
            stored = _in_file(file, shape, stored_dtype, fill)
            self._store, self._window = as_tensor(stored), Window(stored)
        else:
            _check_memory(first, len(rows))
            self._store = first.new_empty(shape)
            fill(self._store)

    def take(self, rows: np.ndarray, draws: Draws | None = None) -> Tensor:
        """Activations on the device, 4-dimensional ones in channels-last memory order."""
        slots = self._slot[PLAIN if draws is None else draws.values, rows]
        batch = self._store.index_select(0, on_device(slots, self._store.device))
        if self._window:
            self._window.passed(batch.nbytes)
            batch = batch.float()
        return batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch

    @property
    def nbytes(self) -> int:
        """Size of the activations in bytes."""
        return self._store.nbytes


def _channels_last(values: Tensor) -> Tensor:
    """Permute to the memory order of the store, in which CPU convolutions are fastest."""
    return values.permute(0, 2, 3, 1) if values.ndim == 4 else values


def _fits_a_file(example: Tensor, shape: tuple[int, ...], dtype: _Real, name: str) -> bool:
    cacheable = example.device.type == "cpu" and example.dtype == torch.float32
    return cacheable and has_room(name, shape, dtype)


def _file_dtype(wanted: str, shape: tuple[int, ...]) -> _Real:
    if wanted == AUTO:
        wanted = "float16" if 4 * math.prod(shape) > _HALF_FROM else "float32"
    return np.float16 if wanted == "float16" else np.float32


def _in_file(
    name: str,
    shape: tuple[int, ...],
    dtype: _Real,
    fill: Callable[[Tensor, int], dict[str, Any]],
) -> np.ndarray:
    def fill_part(values: np.ndarray, start: int) -> dict[str, Any]:
        with _threads_of_waiting_processes():
            return fill(torch.from_numpy(values), start)

    stored, about = load_or_build(name, shape, dtype, fill_part, "the activations")
    if _TOO_LARGE in about:
        return _in_file(f"{name}-float32", shape, np.float32, fill)
    return stored


@contextmanager
def _threads_of_waiting_processes() -> Iterator[None]:
    """Also use the threads of the group's other processes, which wait while this one computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_memory(example: Tensor, total: int) -> None:
    """:raises ModelError: when the activations of all photos do not fit into memory."""
    needed = total * example.nbytes
    if example.device.type == "cuda":
        torch.cuda.empty_cache()  # memory cached by torch is free, too
        free = torch.cuda.mem_get_info(example.device)[0]
    else:
        free = psutil.virtual_memory().available
    if needed > _MEMORY_SHARE * free:
        raise ModelError(
            f"freeze: activations of the frozen layers take {needed / 2**30:,.1f} GiB for all "
            f"photos and variants, and {free / 2**30:,.1f} GiB of memory are free. Freeze at a "
            "later stage, set augment=none (one variant of each photo) or fewer variants, or lower "
            "image_size."
        )


def split_model(model: ProductClassifier, freeze: str) -> SplitModel:
    """Split a model after the last stage to freeze.

    :param freeze: ``none``, ``backbone`` (all but the head), or a module of the backbone by its
        dotted name, such as ``features.5`` (EfficientNet) or ``layer3`` (ResNet): everything up
        to and including it is frozen.
    :raises ModelError: when there is no such stage, with the names of all stages.
    """
    if freeze == NOTHING:
        return SplitModel(None, model, model.backbone)
    if freeze == BACKBONE:
        return SplitModel(FrozenPrefix(model, model.backbone), model.head)
    stem, tail = _split_graph(model, freeze)
    return SplitModel(FrozenPrefix(model, stem), nn.Sequential(tail, model.head), tail)


def stages(model: ProductClassifier) -> list[str]:
    """Names of the stages at which the backbone can be cut, from its input to its output."""
    graph = _trace(model.backbone)
    names = dict.fromkeys(
        ".".join(_path(node).split(".")[:depth]) for node in graph.nodes for depth in (1, 2)
    )
    return [name for name in names if name and _cut_node(graph, name) is not None]


class _StageTracer(fx.Tracer):
    """Traces down to layers. Layers of torchvision.ops and timm.layers are leaves, as torch's own
    layers are, since they depend on the training mode."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        library = m.__module__.startswith(("torchvision.ops", "timm.layers"))
        return library or super().is_leaf_module(m, module_qualified_name)


def _trace(backbone: nn.Module) -> fx.Graph:
    try:
        graph = _StageTracer().trace(backbone)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"This architecture cannot be cut at a stage ({error}). Use freeze=none or "
            "freeze=backbone."
        ) from error
    for node in list(graph.nodes)[1:]:
        if node.op == "placeholder":
            _set_to_default(graph, node)
    return graph


def _set_to_default(graph: fx.Graph, optional: fx.Node) -> None:
    """Replace an optional input of the network by its default value."""
    default = optional.args[0]

    def replaced(value: Any) -> Any:
        return default if value is optional else value

    for user in list(optional.users):
        user.args = fx.node.map_aggregate(user.args, replaced)
        user.kwargs = fx.node.map_aggregate(user.kwargs, replaced)
    graph.erase_node(optional)


def _path(node: fx.Node) -> str:
    """The dotted name of the module to which a node belongs."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack), ""))


def _cut_node(graph: fx.Graph, stage: str) -> fx.Node | None:
    """The last node of the stage, if all later nodes depend on no earlier one."""
    nodes = list(graph.nodes)
    inside = [i for i, n in enumerate(nodes) if f"{_path(n)}.".startswith(f"{stage}.")]
    if not inside or nodes[inside[-1]].op in ("placeholder", "get_attr"):
        return None
    before = set(nodes[: inside[-1]])
    for node in nodes[inside[-1] + 1 :]:
        if any(used in before and used.op != "get_attr" for used in node.all_input_nodes):
            return None
    return nodes[inside[-1]]


def _split_graph(model: ProductClassifier, stage: str) -> tuple[nn.Module, nn.Module]:
    graph = _trace(model.backbone)
    cut = _cut_node(graph, stage)
    if cut is None:
        names = ["none", BACKBONE, *stages(model)]
        close = f" Did you mean {' or '.join(found)}?" if (found := nearest(stage, names)) else ""
        raise ModelError(
            f"freeze={stage}: {model.architecture} cannot be cut there.{close} Allowed are "
            f"{', '.join(names)}."
        )
    nodes = list(graph.nodes)
    position = nodes.index(cut)
    first = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes[: position + 1]:
        copies[node] = first.node_copy(node, copies.__getitem__)
    first.output(copies[cut])
    second = fx.Graph()
    copies = {cut: second.placeholder("activations")}
    for node in nodes[:position]:
        if node.op == "get_attr":
            copies[node] = second.node_copy(node)
    for node in nodes[position + 1 :]:
        copies[node] = second.node_copy(node, copies.__getitem__)
    parts = fx.GraphModule(model.backbone, first), fx.GraphModule(model.backbone, second)
    for part in parts:
        part.graph.eliminate_dead_code()
        part.recompile()
    return parts
