"""Out of memory: recognised, and answered by computing a batch in smaller parts."""

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
    """Half as many photos at a time, with a warning; the step stays one of the whole batch.

    :param part: photos at a time that did not fit into the memory.
    :raises TrainingError: when it was a single photo.
    """
    if part == 1:
        raise TrainingError(
            f"Not even a single photo fits into memory ({reason}). Lower image_size, freeze "
            "more layers, take a smaller model, or close other programs."
        )
    half = (part + 1) // 2
    _log.warning(
        "Out of memory with %d photos at a time: from here on %d, with the gradients of a batch of "
        "%d added up. Batch norm layers see %d photos instead. batch_size=%d fits as it is.",
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
