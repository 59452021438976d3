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

    :param group: each of its processes predicts a share of ``batches`` and receives all results.
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
        # All processes must call it equally often, but some have no photo of a small last batch.
        for _ in range(len(batches) - len(labels)):
            after_batch()
    if not labels:
        share = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    else:
        share = torch.cat(labels).cpu().numpy(), torch.cat(logits).cpu().numpy()
    if group.size == 1:
        return share
    all_labels, all_logits = group.gather(batches.positions(), *share)
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
