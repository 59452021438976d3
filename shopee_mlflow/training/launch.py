"""Several processes that train one model: started by torchrun, and found again after a restart."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import psutil

from ..config import NONE, TrainConfig, as_params
from ..console import fail, say
from ..errors import CheckpointError, ConfigError
from ..modeling.checkpoint import Checkpoints
from ..modeling.device import Machine
from ..modeling.group import Group
from ..tracking.processes import process_name
from .resume import FREE, checkpoints_of

_INTERRUPTED = 130
_GROUP = "group-"


def start_group(nproc: int, arguments: Sequence[str]) -> NoReturn:
    """Be torchrun: start a command ``nproc`` times, watch over it, and end with its exit code.

    :param arguments: of the command, as they were cli_options.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Otherwise torchrun allows each process one thread, whatever the machine has.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    # What our processes have to say they say themselves.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # What follows -- is ours: torchrun would take --nproc for an abbreviation of its own options.
    options = ["--standalone", "--nproc-per-node", str(nproc), "-m", "--"]
    command = [*options, __package__.split(".")[0], *arguments]
    try:
        torchrun.run(torchrun.parse_args(command))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        # A process that was killed, which nobody has told of yet.
        if code < 0:
            fail(f"one of {nproc} processes was ended by {signal.Signals(-code).name}")
        sys.exit(code if code > 0 else 1)
    except SignalException:
        sys.exit(_INTERRUPTED)
    sys.exit(0)


def check_group(config: TrainConfig, group: Group, machine: Machine) -> None:
    """:raises ConfigError: where options and the processes that were started do not go together, or
    the processes have other options than the first of them; in every process."""
    problems = []
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if group.size > 1 else 1
    if config.nproc not in (1, here):
        problems.append(
            f"nproc={config.nproc}: {here} of this training's processes were started here. Only "
            "the command line starts them by this option; in torchrun's place leave it out"
        )
    if group.size > config.batch_size:
        problems.append(
            f"batch_size={config.batch_size}: must be at least the number of processes, "
            f"{group.size}, so that each has a photo of each batch"
        )
    if group.size > 1 and config.compile == "true":
        problems.append("compile=true: several processes train uncompiled")
    if group.size > 1 and (machine.device.type == "mps" or ":" in config.device):
        problems.append(
            f"device={config.device}: {group.size} processes need the CPU, or a GPU each, which "
            "device=cpu and device=cuda say"
        )
    if problems:
        raise ConfigError(problems)
    options = as_params(config)
    compared = {name: options[name] for name in options if name not in FREE}
    group.agree({**compared, "precision": machine.precision, "device": machine.device.type})


def _run_of_this_group() -> Path | None:
    """Where the first process of a group leaves the id of its run, for the group started again.

    A group has the name that torchrun was given (``--rdzv-id``); without one its processes are
    known by torchrun's own, and where that cannot be seen they cannot be found again.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name == "none":
        try:
            name = process_name(os.getppid())
        except psutil.Error:
            return None
    return checkpoints_of(f"{_GROUP}{re.sub(r'[^0-9A-Za-z.-]', '_', name)}").folder


def make_known(run_id: str, group: Group) -> None:
    """Let the group find its run when it is started again.

    :raises CheckpointError: when nothing can be written where checkpoints are.
    """
    if group.size == 1 or not group.leads:
        return
    checkpoints_of(run_id).prepare()
    if note := _run_of_this_group():
        try:
            note.write_text(run_id)
        except OSError as error:
            raise CheckpointError(
                f"{note} cannot be written ({error.strerror or error})."
            ) from error


@contextmanager
def cleanup(run_id: str, checkpoints: Checkpoints, group: Group) -> Iterator[None]:
    """Around what is left to do after a training: its checkpoints are needed no more. A group that
    fails here may be started again, and then does this once more."""
    if group.size > 1:
        yield
    for note in checkpoints.folder.parent.glob(f"{_GROUP}*"):
        with suppress(OSError):
            if note.read_text().strip() == run_id:
                note.unlink()
    checkpoints.delete()
    if group.size == 1:
        yield


def resumed_after_restart(config: TrainConfig, group: Group) -> TrainConfig:
    """What is started again under the same name, by torchrun or by a cluster, goes on in the run
    that it had; from its first epoch where there was no checkpoint yet."""
    if config.resume != NONE or group.size == 1:
        return config
    note = _run_of_this_group()
    with suppress(OSError):
        run_id = note.read_text().strip() if note else ""
        if run_id and checkpoints_of(run_id).is_there():
            say(
                f"this group was started before, and had run {run_id}",
                "  another --rdzv-id of torchrun begins another run",
            )
            return dataclasses.replace(config, resume=run_id)
    return config
