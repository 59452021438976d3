"""Processes that train one model together: how they meet, and what they do together.

A process that trains alone is a group of one, for which nothing here costs anything.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..config import AUTO
from ..errors import ConfigError, GroupLostError, TrainingError

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SOURCE_LOCATION = re.compile(r"^\[[^\]]*\]\s*")


@dataclass(frozen=True)
class Group:
    """Who this process is: ``rank`` of ``size``, the ``local_rank``-th on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which tracks, prints and saves; the others compute."""
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
        devices = [device] if device.type == "cuda" else None
        with _collective():
            net = DistributedDataParallel(module, device_ids=devices)
        # Statistics of batch norms are broadcast once an epoch (share_buffers). Newer versions of
        # torch renamed the argument, but not the attribute.
        net.broadcast_buffers = False
        return net

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            values = values.clone()
            with _collective():
                dist.all_reduce(values)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Broadcast the first process's batch norm statistics; each one has computed its own."""
        if self.size == 1:
            return
        with _collective():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, positions: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
        """Each column, assembled from the parts that the processes hold.

        :param positions: (n,) int64, position of each row of this part in the whole; those of all
            processes are 0, 1, ... without a gap.
        """
        parts: list[Any] = [None] * self.size
        with _collective():
            dist.all_gather_object(parts, (positions, columns))
        parts = [part for part in parts if len(part[0])]
        order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")
        return [
            np.concatenate([part[1][number] for part in parts])[order]
            for number in range(len(columns))
        ]

    def broadcast(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.size == 1:
            return value
        box = [value]
        with _collective():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def check_equal(self, facts: Mapping[str, object]) -> None:
        """Stop all processes when they do not start from the same facts.

        :raises ConfigError: in every process, naming the difference and the process.
        """
        if self.size == 1:
            return
        all_facts: list[Any] = [None] * self.size
        with _collective():
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

    def any(self, mine: bool) -> bool:
        """Whether a condition holds in any of the processes; all of them must call it."""
        return mine if self.size == 1 else bool(self.sum(torch.tensor(float(mine))) > 0)


ALONE = Group()


@contextmanager
def _collective() -> Iterator[None]:
    """Around a collective operation: when a process is gone, the others raise GroupLostError."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: RuntimeError) -> GroupLostError:
    """The error for people when the connection to the other processes is lost."""
    return GroupLostError(
        f"Another process of the group is gone or does not answer ({first_line(error)})."
    )


def is_lost(error: RuntimeError) -> bool:
    """Whether an error comes from the connection to the others; backends share no error class."""
    words = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe")
    return isinstance(error, dist.DistError) or any(sign in words for sign in signs)


def first_line(error: Exception) -> str:
    """An error's message without the library's source location and explanations."""
    line = str(error).strip().split("\n")[0]
    return _SOURCE_LOCATION.sub("", line).split(". ")[0]


def _has_batch_norm(module: nn.Module) -> bool:
    """Whether the module has batch norms, whose outputs depend on the other photos of a batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def _synchronised(module: nn.Module) -> nn.Module:
    """A module that shares parameters and statistics, with batch norms over all processes; the
    original stays one that any machine can run."""
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module, shared))


# Environment variables that torchrun sets in each process.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT_VARIABLE = "SHOPEE_MLFLOW_GROUP_MINUTES"
# Names a file by which the processes of one machine meet; without it they meet at MASTER_PORT.
STORE_VARIABLE = "SHOPEE_MLFLOW_GROUP_STORE"
# Minutes until a process that no longer answers counts as lost. A dead one is noticed at once; one
# that decodes photos while the others wait may take long.
_TIMEOUT_MINUTES = 30.0
# Minutes until processes that never connect count as lost; all start at about the same time.
_CONNECT_MINUTES = 5.0
_POLL_SECONDS = 0.05


def backend_for(device: str) -> str:
    """The backend between the processes: ``nccl`` between GPUs, else ``gloo``."""
    wants_gpu = device == AUTO or device.startswith("cuda")
    return "nccl" if wants_gpu and torch.cuda.is_available() else "gloo"


@contextmanager
def joined_group(backend: str) -> Iterator[Group]:
    """The group that torchrun started this process in, else a group of one; left at the end.

    :param backend: ``gloo`` on CPUs, ``nccl`` on GPUs; CPU tensors use gloo in any case.
    :raises ConfigError: when torchrun's environment variables are incomplete.
    :raises TrainingError: when the other processes do not connect.
    """
    if not _started_by_torchrun():
        yield ALONE
        return
    timeout, connect = _minutes(_TIMEOUT_MINUTES), _minutes(_CONNECT_MINUTES)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        if file := os.environ.get(STORE_VARIABLE):
            store: dist.Store = dist.FileStore(file)
        else:
            store = next(dist.rendezvous("env://", timeout=connect))[0]
        dist.init_process_group(
            f"cpu:gloo,cuda:{backend}" if backend == "nccl" else backend,
            store=_fresh_store(store, rank, size, connect),
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise TrainingError(
            f"Process {rank} did not meet the other {size - 1} of its group at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({first_line(error)}). "
            "Were all of them started, do they see that address, and is its port free?"
        ) from error
    try:
        yield Group(rank, size, int(os.environ["LOCAL_RANK"])) if size > 1 else ALONE
    finally:
        dist.destroy_process_group()


def _started_by_torchrun() -> bool:
    """Whether torchrun's environment variables are set."""
    missing = [name for name in _TORCHRUN if name not in os.environ]
    said = {name: os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK")}
    said["WORLD_SIZE"] = os.environ.get("WORLD_SIZE", "1")
    # Otherwise each process would silently train a model of its own.
    if missing and (said["WORLD_SIZE"] != "1" or said["RANK"] != "0"):
        raise ConfigError(
            [
                f"RANK={said['RANK']}, WORLD_SIZE={said['WORLD_SIZE']} in the environment tell of "
                f"several processes, and {', '.join(missing)} is not set; start them with torchrun"
            ]
        )
    wrong = [
        f"{name}={text}: must be a number" for name, text in said.items() if not text.isdigit()
    ]
    if wrong:
        raise ConfigError(wrong)
    return not missing


def _minutes(default: float) -> timedelta:
    text = os.environ.get(TIMEOUT_VARIABLE, str(default))
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise ConfigError([f"{TIMEOUT_VARIABLE}={text}: must be a number of minutes above 0"])
    return timedelta(minutes=minutes)


def _fresh_store(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A prefix of the store that no earlier attempt has written to.

    torchrun keeps its store when it restarts processes, with the addresses of the dead ones, and
    no variable identifies the attempt in all of them. So the first process draws a name and sends
    it to each other process that asks with a new token.

    :raises TimeoutError: when a process does not connect.
    """
    store = dist.PrefixStore("shopee_mlflow", store)
    store.set_timeout(timeout)
    if rank:
        token = uuid.uuid4().hex
        store.set(f"here/{rank}", token)
        name = store.get(f"welcome/{token}").decode()
        store.set(f"met/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    name, deadline = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    awaited = set(range(1, size))
    while awaited := {other for other in awaited if not store.check([f"met/{name}/{other}"])}:
        for other in awaited:
            if store.check([f"here/{other}"]):
                store.set(f"welcome/{store.get(f'here/{other}').decode()}", name)
        if time.monotonic() > deadline:
            who = ", ".join(map(str, sorted(awaited)))
            raise TimeoutError(f"no sign of {who} after {timeout}")
        time.sleep(_POLL_SECONDS)
    return dist.PrefixStore(name, store)
