"""Predict every photo of a split once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import Batches
from .device import Machine
from .distributed import ALONE, Group
from .memory import free_memory, is_out_of_memory


@torch.inference_mode()
def predict_logits(
    module: nn.Module,
    batches: Batches,
    machine: Machine,
    group: Group = ALONE,
    after_batch: Callable[[], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) int64 and logits (N, C) float32 of every photo, in order, in eval mode.

    :param group: each of its processes predicts its share of ``batches``, and gets all results.
    :param after_batch: called after each batch.
    """
    module.eval()
    labels, logits = [], []
    for batch in batches.epoch():
        with machine.autocast():
            logits.append(_forward(module, batch.inputs, machine).float())
        labels.append(batch.labels)
        if after_batch:
            after_batch()
    if after_batch:
        # All processes call it equally often; some have no photo of a small last batch.
        for _ in range(len(batches) - len(labels)):
            after_batch()
    if not labels:
        own = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    else:
        own = torch.cat(labels).cpu().numpy(), torch.cat(logits).cpu().numpy()
    if group.size == 1:
        return own
    all_labels, all_logits = group.gather(batches.positions(), *own)
    return all_labels, all_logits


def _forward(module: nn.Module, inputs: Tensor, machine: Machine) -> Tensor:
    """A module's logits, computed in halves after running out of memory."""
    try:
        logits: Tensor = module(inputs)
        return logits
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(inputs) == 1:
            raise
    free_memory(machine)
    return torch.cat([_forward(module, half, machine) for half in inputs.chunk(2)])
