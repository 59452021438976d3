"""Run a training job: start its process group, open its MLflow run, and clean up after it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil

from ..config import TrainConfig, as_params
from ..console import mute, say, watch
from ..data.catalog_forms import check_paths
from ..data.dataset import Dataset, load_dataset
from ..data.splits import TEST
from ..data_config import NONE
from ..errors import CheckpointError, ConfigError, TrainingError
from ..modeling.device import Machine, choose_machine
from ..modeling.distributed import Group, backend_for, joined_group
from ..modeling.epochs import EPOCH_METRICS
from ..modeling.initial_weights import InitialWeights
from ..modeling.metrics import FINAL_METRICS
from ..options import Role, with_role
from ..tracking.environment import machine_tags
from ..tracking.experiment_choice import check_experiment
from ..tracking.follow import follow_run
from ..tracking.names import PROCESS_TAG, SEEN_TEST_TAG, TRAIN, WEIGHTS_RUN_TAG
from ..tracking.processes import process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run
from ..tracking.signals import stop_on_signals
from .checkpoints import ResumeState, checkpoint_folder, checkpoints_of
from .context import TrainingContext, check_model
from .custom import OPTIONS_ONLY, CustomParts
from .naming import run_name
from .results import log_data
from .resume import close_stale_runs, find_resume_state, only_resumed_here, resume_hint
from .seen_photos import find_seen
from .session import TrainingSession
from .weights_source import initial_weights

# Prefix of the files in the checkpoint folder that store the run id of a process group.
_GROUP_PREFIX = "group-"


@dataclass(frozen=True)
class TrainingJob:
    """A training in progress in this process.

    :ivar config: its options; for a resumed training, see :class:`ResumeState`.
    :ivar run: its MLflow run; in all processes but the first one, a log that stores nothing.
    :ivar dataset: the data, loaded before the run was opened.
    :ivar weights: initial weights that are loaded already, by the option ``weights``.
    :ivar leads: whether this is the first process, which logs, prints and saves.
    """

    config: TrainConfig
    run: RunLog
    machine: Machine
    group: Group
    dataset: Dataset
    resume: ResumeState | None
    custom: CustomParts = OPTIONS_ONLY
    weights: Mapping[str, InitialWeights | None] = field(default_factory=dict)

    @property
    def leads(self) -> bool:
        return self.group.leads

    def session(self) -> TrainingSession:
        """Log the dataset, unless the run is resumed, and create the training session."""
        if self.resume is None:
            log_data(self.run, self.dataset, self.config)
        context = TrainingContext(
            self.dataset, self.machine, self.group, self.custom, {**self.weights}
        )
        session = TrainingSession(
            self.config,
            context,
            self.run,
            resume=self.resume,
            checkpoints=not self.custom,
        )
        parameters = sum(p.numel() for p in session.model.parameters())
        say(
            f"{self.config.model} on {self.machine}, {parameters:,} parameters, "
            f"freeze={self.config.freeze}"
        )
        compiled = session.inputs.compiled is not None
        self.run.log_tags({"compiled": str(compiled).lower()})
        if (start := context.initial_weights(self.config)) and start.run_id:
            log_weights_run(self.run, self.dataset.frame.loc[self.dataset.rows(TEST)], start.run_id)
        if compiled:
            say("compiling the training step, which takes a minute or two")
        return session


def log_weights_run(run: RunLog, tested: pd.DataFrame, run_id: str) -> None:
    """Log the run whose weights a training starts from, and how many test photos it has seen.

    :param tested: columns ``content`` and ``image_phash`` of the test photos.
    """
    seen = find_seen(tested, run_id)
    count = int(seen.mask.sum())
    known = count or not seen.unknown
    run.log_tags({WEIGHTS_RUN_TAG: run_id, SEEN_TEST_TAG: str(count) if known else "unknown"})
    if count:
        say(
            f"WARNING: {count:,} of {len(seen.split):,} test photos were in the train or val "
            f"split of run {run_id}, whose weights this training starts from. The test "
            "accuracy will be too high for new photos. Use the split of that run."
        )
    elif not known:
        say(
            f"WARNING: it cannot be checked whether run {run_id}, whose weights this training "
            f"starts from, has seen test photos ({seen.unknown}). If it has, the test accuracy is "
            "too high for new photos."
        )


@contextmanager
def training_job(
    config: TrainConfig,
    cli_options: Mapping[str, str],
    parent: RunLog | None = None,
    name: str | None = None,
    custom: CustomParts = OPTIONS_ONLY,
    dataset: Dataset | None = None,
) -> Iterator[TrainingJob]:
    """Join the processes of a training, choose the device, load the data, open the run.

    The run is opened last, so that a mistake of the user leaves no failed run.

    :param cli_options: command-line options, which are logged as they were typed.
    :param parent: the parent run, if any.
    :param name: name of the run; by default that of :func:`run_name`.
    :param custom: objects of the caller, already checked. The name of its model is in ``config``.
    :param dataset: data that the caller has already loaded, if any.
    :raises ShopeeError: for errors that the user can correct.
    """
    with joined_group(backend_for(config.device)) as group, stop_on_signals(), ExitStack() as held:
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
        if dataset is None:
            # Before the check of the model, which may download weights.
            check_paths(config)
        if group.leads:
            check_experiment(config.experiment)
        weights = {}
        if custom.model is None:
            say(f"checking {config.model} and its weights")
            weights[config.weights] = initial_weights(config.weights)
            check_model(config, weights[config.weights])
        if dataset is None:
            say(f"reading the catalogue ({config.data})")
            dataset = load_dataset(config, watch)
        say(*dataset.lines())
        with _open_run(name or run_name(config), config, parent, state, group) as run:
            if state is None:
                run.log_params({**as_params(config), **custom.params(config), **cli_options})
            else:
                run.skip_logged_metrics([*EPOCH_METRICS, *FINAL_METRICS])
                run.delete_logged_models()
            run.log_tags({**machine_tags(str(machine)), "processes": str(group.size)})
            yield TrainingJob(config, run, machine, group, dataset, state, custom, weights)
            checkpoints = checkpoints_of(run.run_id)
            if group.size == 1 and state is None and checkpoints.is_there():
                # Between the end of the run and this deletion, no other process may resume it.
                held.enter_context(only_resumed_here(run.run_id, checkpoints.folder))
        if group.size == 1:
            delete_checkpoints(run.run_id)


@contextmanager
def _open_run(
    name: str,
    config: TrainConfig,
    parent: RunLog | None,
    state: ResumeState | None,
    group: Group,
) -> Iterator[RunLog]:
    """Open the run of a training. If it is interrupted, print the command that resumes it."""
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
            kind=TRAIN,
            tags={PROCESS_TAG: process_name()},
            shared=group.size > 1,
        ) as run:
            run_id = group.broadcast(run.run_id)
            remember_run(run_id, group)
            yield run
    except BaseException as error:
        # No hint after divergence, since a resumed training would diverge again.
        if run_id and not isinstance(error, TrainingError) and checkpoints_of(run_id).is_there():
            say(resume_hint(run_id))
        raise


def check_group(config: TrainConfig, group: Group, machine: Machine) -> None:
    """Check that the options fit the number of processes and are equal in all of them.

    :raises ConfigError: in every process, if they are not.
    """
    problems = []
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if group.size > 1 else 1
    if config.nproc not in (1, local_size):
        problems.append(
            f"nproc={config.nproc}: this training has {local_size} process(es) on this machine. "
            "Only the command line starts processes for this option; omit it under torchrun"
        )
    if group.size > config.batch_size:
        problems.append(
            f"batch_size={config.batch_size}: must be at least the number of processes, "
            f"{group.size}, so that each process has a photo of each batch"
        )
    if group.size > 1 and config.compile == "true":
        problems.append("compile=true: is not supported with several processes")
    if group.size > 1 and (machine.device.type == "mps" or ":" in config.device):
        problems.append(
            f"device={config.device}: {group.size} processes need the CPU, or one GPU each; use "
            "device=cpu or device=cuda"
        )
    if problems:
        raise ConfigError(problems)
    options, may_differ = as_params(config), with_role(TrainConfig, Role.SETUP)
    compared = {name: value for name, value in options.items() if name not in may_differ}
    device = {"precision": machine.precision, "device": machine.device.type}
    group.check_equal({**compared, **device})


def _run_file() -> Path | None:
    """The file in which a group's first process stores the run id, for a restarted group.

    A group is identified by torchrun's ``--rdzv-id``, else by its torchrun process. None if that
    process cannot be inspected.
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

    :raises CheckpointError: when the checkpoint folder cannot be written to.
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
    """If torchrun or a cluster has restarted this group, set ``resume`` to its earlier run."""
    if config.resume != NONE or group.size == 1:
        return config
    file = _run_file()
    with suppress(OSError):
        run_id = file.read_text().strip() if file else ""
        if run_id and checkpoints_of(run_id).is_there():
            say(
                f"this process group was restarted; resuming its run {run_id}",
                "  to start a new run, use another --rdzv-id of torchrun",
            )
            return dataclasses.replace(config, resume=run_id)
    return config


def delete_checkpoints(run_id: str) -> None:
    """Delete what a finished training has left for its resumption.

    A single process does it when the run has ended. A group does it after the registration, so that
    a restart after a failure repeats the registration but not the training.
    """
    for file in checkpoint_folder().glob(f"{_GROUP_PREFIX}*"):
        with suppress(OSError):
            if file.read_text().strip() == run_id:
                file.unlink()
    checkpoints_of(run_id).delete()
