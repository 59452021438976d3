"""What a network answers for every photo of a split, each looked at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batches import Batches
from .device import Machine
from .group import ALONE, Group
from .memory import free_memory, is_out_of_memory


@torch.inference_mode()
def predict_logits(
    module: nn.Module,
    batches: Batches,
    machine: Machine,
    group: Group = ALONE,
    between: Callable[[], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) int64 and logits (N, C) float32 of every photo, in order, in eval mode.

    :param group: each of its processes answers for its share of ``batches``, and gets all answers.
    :param between: called after each batch.
    """
    module.eval()
    labels, logits = [], []
    for inputs, targets in batches.epoch():
        with machine.autocast():
            logits.append(_answer(module, inputs, machine).float())
        labels.append(targets)
        if between:
            between()
    if between:
        # A group's processes stop at the same place; some have no photo of a last small batch.
        for _ in range(len(batches) - len(labels)):
            between()
    if not labels:
        mine = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    else:
        mine = torch.cat(labels).cpu().numpy(), torch.cat(logits).cpu().numpy()
    if group.size == 1:
        return mine
    all_labels, all_logits = group.gather(batches.positions(), *mine)
    return all_labels, all_logits


def _answer(module: nn.Module, inputs: Tensor, machine: Machine) -> Tensor:
    """A module's answer, asked for in halves where memory does not do."""
    try:
        answer: Tensor = module(inputs)
        return answer
    except RuntimeError as error:
        if not is_out_of_memory(error) or len(inputs) == 1:
            raise
    free_memory(machine)
    return torch.cat([_answer(module, half, machine) for half in inputs.chunk(2)])
