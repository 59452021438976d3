"""Out-of-memory errors: detect them, and compute a batch in smaller parts."""

from __future__ import annotations

import gc
import logging

import torch

from ..errors import TrainingError
from .device import Machine
from .distributed import Group, is_lost, lost

_log = logging.getLogger(__name__)

# torch's message for a batch that batch normalisation cannot use.
_ONE_VALUE = "Expected more than 1 value per channel"


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU or the CPU, whose allocator has no error class, ran out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def out_of_memory_reason(error: Exception, photos: int, group: Group) -> str:
    """Return the first line of an out-of-memory error of a training step; raise any other error.

    :param photos: number of photos in the step of this process.
    :raises TrainingError: for a step that cannot be repeated in smaller parts.
    """
    if _ONE_VALUE in str(error):
        # The batch, or this process's share of it, is a single photo.
        raise TrainingError(
            "Batch norm cannot learn from a single photo whose features have shrunk to one "
            "pixel. Raise image_size or batch_size, or start fewer processes."
        ) from error
    if not isinstance(error, RuntimeError):
        raise error
    if group.size > 1 and is_lost(error):
        raise lost(error) from error
    if not is_out_of_memory(error):
        raise error
    reason = str(error).split("\n")[0]
    if group.size > 1:
        # The other processes wait for exactly one gradient of this step.
        raise TrainingError(
            f"Out of memory with {photos} photos at a time ({reason}). Several "
            "processes cannot split a batch: start more of them, or lower batch_size."
        ) from error
    return reason


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
