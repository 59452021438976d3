"""Process groups that train one model: how processes connect, and collective operations.

A process that trains alone is a group of one, for which these operations cost nothing.
"""

from __future__ import annotations

import copy
import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data_config import AUTO
from ..errors import ConfigError, GroupLostError, TrainingError

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SOURCE_LOCATION = re.compile(r"^\[[^\]]*\]\s*")


@dataclass(frozen=True)
class Group:
    """This process in its group: ``rank`` of ``size``, and ``local_rank`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which tracks, prints and saves."""
        return self.rank == 0

    def wrap(
        self, module: nn.Module, device: torch.device, sync_batchnorm: bool = False
    ) -> nn.Module:
        """Wrap a module so that its gradients are averaged over the group.

        :param sync_batchnorm: compute batch norm statistics over all processes' photos.
        :raises ConfigError: for ``sync_batchnorm`` without GPUs.
        """
        if self.size == 1:
            return module
        if sync_batchnorm and device.type != "cuda":
            raise ConfigError([f"sync_batchnorm=true: needs GPUs, and this is device={device}"])
        if sync_batchnorm:
            module = _synchronised(module)
        elif self.leads and _has_batch_norm(module):
            _log.warning(
                "Batch norms see one of %d shares of each batch, so metrics differ from those of "
                "one process. On GPUs, sync_batchnorm=true uses the whole batch.",
                self.size,
            )
        devices = [device] if device.type == "cuda" else None
        with _collective():
            net = DistributedDataParallel(module, device_ids=devices)
        # Statistics of batch norms are broadcast once an epoch (share_buffers). Newer versions of
        # torch renamed the argument, but not the attribute.
        net.broadcast_buffers = False
        return net

    def synchronised(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[None]:
        """A context for one of a step's backward passes; the last one exchanges all gradients.

        :param wrapped: the result of :meth:`wrap`.
        """
        if last or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], wrapped.no_sync())

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            values = values.clone()
            with _collective():
                dist.all_reduce(values)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Broadcast the batch norm statistics of the first process to all others."""
        if self.size == 1:
            return
        with _collective():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def gather(self, positions: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
        """Assemble columns from the parts that the processes hold.

        :param positions: (n,) int64, position of each row of this part in the whole; over all
            processes they are 0, 1, ... without a gap.
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
        """Check that all processes start from the same facts.

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

    def any(self, condition: bool) -> bool:
        """Whether a condition holds in any of the processes; all of them must call it."""
        return condition if self.size == 1 else bool(self.sum(torch.tensor(float(condition))) > 0)


ALONE = Group()


@contextmanager
def _collective() -> Iterator[None]:
    """Run a collective operation; raise GroupLostError if another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: RuntimeError) -> GroupLostError:
    """The error to raise when the connection to the other processes is lost."""
    return GroupLostError(
        f"Another process of the group is gone or does not respond ({first_line(error)})."
    )


def is_lost(error: RuntimeError) -> bool:
    """Whether an error is a lost connection. The backends have no error class in common."""
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
    """A copy with synchronized batch norms that shares parameters and statistics with the module.

    The module itself is unchanged and still runs on any machine.
    """
    shared = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module, shared))


# Environment variables that torchrun sets in each process.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT_VARIABLE = "SHOPEE_MLFLOW_GROUP_MINUTES"
# A file through which the processes of one machine connect, instead of at MASTER_PORT.
STORE_VARIABLE = "SHOPEE_MLFLOW_GROUP_STORE"
# Minutes until a process that does not respond counts as lost. A dead process is noticed at once,
# but a process that decodes photos while the others wait may take long.
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
    """Join the group that torchrun started this process in, else a group of one; then leave it.

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
            f"Process {rank} did not connect to the other {size - 1} of its group at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({first_line(error)}). "
            "Check that all of them were started and reach this address, and that its port is free."
        ) from error
    try:
        yield Group(rank, size, int(os.environ["LOCAL_RANK"])) if size > 1 else ALONE
    finally:
        dist.destroy_process_group()


def _started_by_torchrun() -> bool:
    """Whether torchrun's environment variables are set."""
    missing = [name for name in _TORCHRUN if name not in os.environ]
    values = {name: os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK")}
    values["WORLD_SIZE"] = os.environ.get("WORLD_SIZE", "1")
    # Otherwise each process would silently train a model of its own.
    if missing and (values["WORLD_SIZE"] != "1" or values["RANK"] != "0"):
        raise ConfigError(
            [
                f"RANK={values['RANK']}, WORLD_SIZE={values['WORLD_SIZE']} in the environment "
                f"indicate several processes, but {', '.join(missing)} is not set; start them with "
                "torchrun"
            ]
        )
    wrong = [
        f"{name}={text}: must be a number" for name, text in values.items() if not text.isdigit()
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

    When torchrun restarts processes, its store keeps the addresses of the dead ones, and no
    environment variable identifies the attempt in all processes. So the first process draws a
    random prefix and sends it to each other process that asks with a new token.

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
            raise TimeoutError(f"no connection from process {who} within {timeout}")
        time.sleep(_POLL_SECONDS)
    return dist.PrefixStore(name, store)
