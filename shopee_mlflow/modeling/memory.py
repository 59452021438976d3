"""Out-of-memory errors: detect them, and compute a batch in smaller parts."""

from __future__ import annotations

import gc
import logging

import torch

from ..errors import TrainingError
from .device import Machine

_log = logging.getLogger(__name__)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU or the CPU, whose allocator has no error class, ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def smaller_part(part: int, batch: int, reason: str) -> int:
    """Halve the number of photos per pass, with a warning. A step still covers the whole batch.

    :param part: the number of photos per pass that did not fit into memory.
    :raises TrainingError: when a single photo did not fit.
    """
    if part == 1:
        raise TrainingError(
            f"Not even a single photo fits into memory ({reason}). Lower image_size, freeze "
            "more layers, use a smaller model, or close other programs."
        )
    half = (part + 1) // 2
    _log.warning(
        "Out of memory with %d photos at a time: now using %d, and accumulating the gradients of "
        "a batch of %d. Batch norm layers see only %d photos. batch_size=%d fits without this.",
        part,
        half,
        batch,
        half,
        half,
    )
    return half


def free_memory(machine: Machine) -> None:
    """Free the memory of a failed step."""
    gc.collect()
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
