"""Processes that train one model together: who this one is among them, and what they do in common.

How they have met is in rendezvous.py. A process alone is a group of one, for which nothing here
costs anything.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError, GroupLostError

_log = logging.getLogger(__name__)

T = TypeVar("T")

_PLACE = re.compile(r"^\[[^\]]*\]\s*")


@dataclass(frozen=True)
class Group:
    """Who this process is: ``rank`` of ``size``, the ``local_rank``-th on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """The first process tracks, prints and saves; the others only compute."""
        return self.rank == 0

    def wrap(
        self, module: nn.Module, device: torch.device, sync_batchnorm: bool = False
    ) -> nn.Module:
        """The module whose gradients are the mean over the group.

        :param sync_batchnorm: let batch norms see all processes' photos.
        :raises ConfigError: when they cannot, since only GPUs do that.
        """
        if self.size == 1:
            return module
        if sync_batchnorm and device.type != "cuda":
            raise ConfigError([f"sync_batchnorm=true: needs GPUs, and this is device={device}"])
        if sync_batchnorm:
            module = _synchronised(module)
        elif self.leads and _has_batch_norm(module):
            _log.warning(
                "Batch norms see one of %d shares of each batch, so the history is not that of one "
                "process. On GPUs sync_batchnorm=true shows them the whole.",
                self.size,
            )
        places = [device] if device.type == "cuda" else None
        with _together():
            net = DistributedDataParallel(module, device_ids=places)
        # Statistics of batch norms are given on once an epoch. The argument of this name is called
        # another in newer versions; the attribute is there in all.
        net.broadcast_buffers = False
        return net

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            values = values.clone()
            with _together():
                dist.all_reduce(values)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the first one's statistics of batch norms; each has made its own."""
        if self.size == 1:
            return
        with _together():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, places: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
        """Each column put together from the parts that the processes hold.

        :param places: (n,) int64, where each row of this part belongs; all places of all processes
            make 0, 1, ... without gap.
        """
        parts: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(parts, (places, columns))
        parts = [part for part in parts if len(part[0])]
        order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")
        return [
            np.concatenate([part[1][number] for part in parts])[order]
            for number in range(len(columns))
        ]

    def from_leader(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        with _together():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, facts: Mapping[str, object]) -> None:
        """Stop all processes where they do not start from the same.

        :raises ConfigError: in every process, naming what differs and where.
        """
        if self.size == 1:
            return
        all_facts: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(all_facts, dict(facts))
        problems = [
            f"{name}: process 0 has {all_facts[0][name]}, process {rank} has {other[name]}. All "
            "processes need the same data, weights and options."
            for rank, other in enumerate(all_facts)
            for name in all_facts[0]
            if other[name] != all_facts[0][name]
        ]
        if problems:
            raise ConfigError(problems)

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many shares of the work is this process's."""
        return self.rank, self.size

    def any(self, mine: bool) -> bool:
        """Whether it is so for any of the processes; asked by all of them."""
        return mine if self.size == 1 else bool(self.sum(torch.tensor(float(mine))) > 0)


ALONE = Group()


@contextmanager
def _together() -> Iterator[None]:
    """Around what all processes do: where one is gone, the others say so."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: RuntimeError) -> GroupLostError:
    """The error for people when the processes cannot talk to each other any more."""
    return GroupLostError(
        f"Another process of the group is gone or does not answer ({first_line(error)})."
    )


def is_lost(error: RuntimeError) -> bool:
    """Whether it tells of the connection to the others; backends have no error class in common."""
    words = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")
    return isinstance(error, dist.DistError) or any(sign in words for sign in signs)


def first_line(error: Exception) -> str:
    """What an error says, without the trace of the library that it comes from."""
    line = str(error).strip().split("\n")[0]
    # Before it: where in the library; behind it: what that may mean.
    return _PLACE.sub("", line).split(". ")[0]


def _has_batch_norm(module: nn.Module) -> bool:
    """Whether its answers in training depend on which photos are computed together."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def _synchronised(module: nn.Module) -> nn.Module:
    """Another module of the same parameters and statistics, whose batch norms see all processes'
    photos; the module itself stays one that any machine can run."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module, shared))
