"""A training as a job: its processes, device and MLflow run, from start to cleanup."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..config import NONE, TrainConfig, as_params
from ..console import mute, say
from ..data.dataset import Dataset
from ..errors import CheckpointError, ConfigError, TrainingError
from ..modeling.architectures import check_architecture
from ..modeling.device import Machine, choose_machine
from ..modeling.distributed import Group, backend_for, joined_group
from ..modeling.epochs import EPOCH_METRICS
from ..modeling.metrics import FINAL_METRICS
from ..options import Role, with_role
from ..tracking.environment import machine_tags
from ..tracking.follow import follow_run
from ..tracking.names import PROCESS_TAG
from ..tracking.processes import process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run
from .checkpoints import ResumeState, checkpoint_folder, checkpoints_of
from .context import TrainingContext
from .results import log_data
from .resume import close_stale_runs, find_resume_state, resume_hint
from .session import TrainingSession

# Files beside the checkpoints that hold the run id of a group of processes.
_GROUP_PREFIX = "group-"


@dataclass(frozen=True)
class TrainingJob:
    """A training under way in this process.

    :ivar config: its options; when resuming, those that it began with.
    :ivar run: its MLflow run; in processes other than the first one, a log that stores nothing.
    :ivar leads: whether this process tracks, prints and saves.
    """

    config: TrainConfig
    run: RunLog
    machine: Machine
    group: Group
    resume: ResumeState | None

    @property
    def leads(self) -> bool:
        return self.group.leads

    def session(self, dataset: Dataset) -> TrainingSession:
        """The training of this job on a dataset, which is logged first."""
        if self.resume is None:
            log_data(self.run, dataset, self.config)
        session = TrainingSession(
            self.config,
            TrainingContext(dataset, self.machine, self.group),
            self.run,
            resume=self.resume,
            checkpoints=True,
        )
        parameters = sum(p.numel() for p in session.model.parameters())
        say(
            f"{self.config.model} on {self.machine}, {parameters:,} parameters, "
            f"freeze={self.config.freeze}"
        )
        compiled = session.inputs.compiled is not None
        self.run.log_tags({"compiled": str(compiled).lower()})
        if compiled:
            say("compiling the training step, which takes a minute or two")
        return session


@contextmanager
def training_job(
    config: TrainConfig,
    cli_options: Mapping[str, str],
    parent: RunLog | None = None,
    name: str | None = None,
) -> Iterator[TrainingJob]:
    """Join the processes of a training, choose the device, find what to resume, open the run.

    :param cli_options: options as they were typed; logged in that spelling.
    :param parent: the run to make this one a child of.
    :param name: of the run; by default the option run_name, else the model's name.
    :raises ShopeeError: for what the user can correct.
    """
    with joined_group(backend_for(config.device)) as group, ExitStack() as held:
        mute(not group.leads)
        state = None
        if group.leads:
            config = resumed_after_restart(config, group)
            if config.resume != NONE:
                state = find_resume_state(config, cli_options, held)
        state = group.broadcast(state)
        config = state.config if state else config
        machine = choose_machine(config.device, config.precision, group.local_rank)
        check_group(config, group, machine)
        check_architecture(config.model)
        with _open_run(name or run_name(config), config, parent, state, group) as run:
            if state is None:
                run.log_params({**as_params(config), **cli_options})
            else:
                run.skip_logged_metrics([*EPOCH_METRICS, *FINAL_METRICS])
                run.delete_logged_models()
            run.log_tags({**machine_tags(str(machine)), "processes": str(group.size)})
            yield TrainingJob(config, run, machine, group, state)


def run_name(config: TrainConfig) -> str:
    """The run's name in MLflow: the option run_name, else the model's name."""
    return config.model if config.run_name == "auto" else config.run_name


@contextmanager
def _open_run(
    name: str,
    config: TrainConfig,
    parent: RunLog | None,
    state: ResumeState | None,
    group: Group,
) -> Iterator[RunLog]:
    """The run of a training; when it is interrupted, the command that resumes it is printed."""
    if not group.leads:
        with follow_run(group.broadcast("")) as run:
            yield run
        return
    if state is None and parent is None:
        close_stale_runs(config.experiment)
    run_id = state.run_id if state else None
    try:
        with open_run(
            name,
            config.experiment,
            parent=parent,
            resume=run_id,
            tags={PROCESS_TAG: process_name()},
            shared=group.size > 1,
        ) as run:
            run_id = group.broadcast(run.run_id)
            remember_run(run_id, group)
            yield run
    except BaseException as error:
        # A training that diverged would diverge again.
        if run_id and not isinstance(error, TrainingError) and checkpoints_of(run_id).is_there():
            say(resume_hint(run_id))
        raise


def check_group(config: TrainConfig, group: Group, machine: Machine) -> None:
    """:raises ConfigError: when the options do not fit the processes that were started, or differ
    between them; in every process."""
    problems = []
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if group.size > 1 else 1
    if config.nproc not in (1, here):
        problems.append(
            f"nproc={config.nproc}: this training has {here} process(es) on this machine. Only the "
            "command line starts processes by this option; leave it out under torchrun"
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
            f"device={config.device}: {group.size} processes need the CPU, or a GPU each; use "
            "device=cpu or device=cuda"
        )
    if problems:
        raise ConfigError(problems)
    options, free = as_params(config), with_role(TrainConfig, Role.SETUP)
    compared = {name: value for name, value in options.items() if name not in free}
    device = {"precision": machine.precision, "device": machine.device.type}
    group.check_equal({**compared, **device})


def _run_file() -> Path | None:
    """Where a group's first process stores its run id, for the group when it is restarted.

    A group is known by torchrun's ``--rdzv-id``, else by its torchrun process; None where that
    cannot be seen.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if name == "none":
        try:
            name = process_name(os.getppid())
        except psutil.Error:
            return None
    return checkpoint_folder() / f"{_GROUP_PREFIX}{re.sub(r'[^0-9A-Za-z.-]', '_', name)}"


def remember_run(run_id: str, group: Group) -> None:
    """Store the run id for a restart of this group.

    :raises CheckpointError: when nothing can be written where checkpoints are.
    """
    if group.size == 1:
        return
    checkpoints_of(run_id).prepare()
    if file := _run_file():
        try:
            file.write_text(run_id)
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be written ({error.strerror or error})."
            ) from error


def resumed_after_restart(config: TrainConfig, group: Group) -> TrainConfig:
    """When torchrun or a cluster has restarted this group, resume the run that it had."""
    if config.resume != NONE or group.size == 1:
        return config
    file = _run_file()
    with suppress(OSError):
        run_id = file.read_text().strip() if file else ""
        if run_id and checkpoints_of(run_id).is_there():
            say(
                f"this group was started before and had run {run_id}",
                "  another --rdzv-id of torchrun begins another run",
            )
            return dataclasses.replace(config, resume=run_id)
    return config


@contextmanager
def cleanup(run_id: str, group: Group) -> Iterator[None]:
    """Around the last steps after a run has ended: its checkpoints are deleted.

    Several processes delete them after these steps, so that a restart after a failure repeats the
    steps and not the training.
    """
    if group.size > 1:
        yield
    for file in checkpoint_folder().glob(f"{_GROUP_PREFIX}*"):
        with suppress(OSError):
            if file.read_text().strip() == run_id:
                file.unlink()
    checkpoints_of(run_id).delete()
    if group.size == 1:
        yield
