"""How processes that torchrun has started find each other and become a group."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from ..config import AUTO
from ..errors import ConfigError, TrainingError
from .group import ALONE, Group, first_line

# What torchrun, or another starter that speaks its language, sets in each process.
_STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE_VARIABLE = "SHOPEE_MLFLOW_GROUP_MINUTES"
# Until processes that no longer answer are given up: one that is dead is noticed at once, and one
# that still decodes its part while the others wait may take its time.
_PATIENCE_MINUTES = 30.0
# Until processes that never come are given up; all of them start at about the same time.
_MEETING_MINUTES = 5.0
_POLL_SECONDS = 0.05


def backend_for(device: str) -> str:
    """How processes talk to each other: ``nccl`` between GPUs, else ``gloo``."""
    wants_gpu = device == AUTO or device.startswith("cuda")
    return "nccl" if wants_gpu and torch.cuda.is_available() else "gloo"


@contextmanager
def joined_group(backend: str) -> Iterator[Group]:
    """The group that this process was started in, if it was; left at the end of the block.

    :param backend: ``gloo`` on CPUs, ``nccl`` on GPUs; what is not on a GPU goes by gloo anyway.
    :raises ConfigError: when the environment names a group in part only.
    :raises TrainingError: when the others do not come.
    """
    if not _is_started():
        yield ALONE
        return
    patience, meeting = _minutes(_PATIENCE_MINUTES), _minutes(_MEETING_MINUTES)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store = _meet(next(dist.rendezvous("env://", timeout=meeting))[0], rank, size, meeting)
        dist.init_process_group(
            f"cpu:gloo,cuda:{backend}" if backend == "nccl" else backend,
            store=store,
            rank=rank,
            world_size=size,
            timeout=patience,
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


def _is_started() -> bool:
    """Whether the environment tells of a group."""
    missing = [name for name in _STARTED if name not in os.environ]
    said = {name: os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK")}
    said["WORLD_SIZE"] = os.environ.get("WORLD_SIZE", "1")
    # Training alone without a word, once a process, would be the worst of answers.
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
    text = os.environ.get(PATIENCE_VARIABLE, str(default))
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise ConfigError([f"{PATIENCE_VARIABLE}={text}: must be a number of minutes above 0"])
    return timedelta(minutes=minutes)


def _meet(store: dist.Store, rank: int, size: int, patience: timedelta) -> dist.Store:
    """A part of the store that no earlier group has written to.

    torchrun keeps its store when it starts processes again, with the addresses of those that are
    gone, and tells nothing that all of them would know the new attempt by. So the first process
    draws a name for it, and tells each other one that asks with a new token.

    :raises TimeoutError: when somebody does not come.
    """
    store = dist.PrefixStore("shopee_mlflow", store)
    store.set_timeout(patience)
    if rank:
        token = uuid.uuid4().hex
        store.set(f"here/{rank}", token)
        name = store.get(f"welcome/{token}").decode()
        store.set(f"met/{name}/{rank}", "")
        return dist.PrefixStore(name, store)
    name, deadline = uuid.uuid4().hex, time.monotonic() + patience.total_seconds()
    awaited = set(range(1, size))
    while awaited := {other for other in awaited if not store.check([f"met/{name}/{other}"])}:
        for other in awaited:
            if store.check([f"here/{other}"]):
                store.set(f"welcome/{store.get(f'here/{other}').decode()}", name)
        if time.monotonic() > deadline:
            who = ", ".join(map(str, sorted(awaited)))
            raise TimeoutError(f"no sign of {who} after {patience}")
        time.sleep(_POLL_SECONDS)
    return dist.PrefixStore(name, store)
