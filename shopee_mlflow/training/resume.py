"""Resume an interrupted training: find it, compare its options, end stale runs."""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..config import ConfigT, TrainConfig, as_params, resolve
from ..console import say
from ..data_config import NONE
from ..errors import CheckpointError, ConfigError, TrackingError
from ..modeling.checkpoint import BEST, LAST
from ..modeling.epochs import Epoch
from ..options import Role, with_role
from ..tracking.experiment_choice import experiment_in_use
from ..tracking.finding import RUN_ID, find_run, running_runs
from ..tracking.flavor import save_in_folder
from ..tracking.names import (
    CROSS_VALIDATE,
    FAILURE_TAG,
    FOLD,
    KIND_TAG,
    PARENT_TAG,
    PROCESS_TAG,
    REFIT,
    STUDY_TAG,
    TRAIN,
    TRIAL_TAG,
)
from ..tracking.processes import is_gone, process_name
from ..tracking.runs import Run, close_run
from ..tracking.store import STORE_ERRORS, connect, quieten, store_error
from .checkpoints import ResumeState, checkpoint_folder, checkpoints_of
from .session import TrainingSession

_log = logging.getLogger(__name__)

LATEST = "last"
# Lock file in a run's checkpoint folder, held by the process that resumes the run.
_LOCK = "resume.lock"
# What trainings did that began before these options existed.
_BEFORE = {"near_bits": "0"}
# Tags of searches and their trials. The command tune ends their stale runs.
_SEARCH_TAGS = {STUDY_TAG, TRIAL_TAG}


def find_resume_state(
    config: TrainConfig, cli_options: Mapping[str, str], held: ExitStack
) -> ResumeState:
    """Load the training that ``config.resume`` names, with its original options.

    :param held: holds a lock; until it is closed, no other process can resume this training.
    :raises ConfigError: when there is no such training, it is running, or an option differs.
    :raises CheckpointError: when its checkpoint cannot be read.
    """
    quieten()
    run_id = _latest() if config.resume == LATEST else config.resume
    if not RUN_ID.fullmatch(run_id):
        raise ConfigError([f"resume={run_id}: must be a run id (32 hexadecimal digits) or last"])
    checkpoints = checkpoints_of(run_id)
    if checkpoints.is_there():
        held.enter_context(only_resumed_here(run_id, checkpoints.folder))
    run = find_run(run_id)
    if (kind := run.data.tags.get(KIND_TAG, "")) in (CROSS_VALIDATE, FOLD, REFIT):
        whole = run.data.tags.get(PARENT_TAG, run_id)
        raise ConfigError(
            [
                f"resume={run_id}: this run ({kind}) is no training of its own; "
                f"{resume_hint(whole, CROSS_VALIDATE)}"
            ]
        )
    if run.info.status == "FINISHED" and not checkpoints.is_there():
        raise ConfigError(
            [
                f"resume={run_id}: this run has finished; there is nothing to resume. To train its "
                f"model further, start a new run with weights={run_id}"
            ]
        )
    owner = living_owner(run)
    # A process on another machine cannot be checked. The user who gives the id has to.
    if owner and owner.startswith(f"{platform.node()}:"):
        raise ConfigError([f"resume={run_id}: it is running in process {owner}"])
    last, best = checkpoints.load()
    began = original_options(last["params"], config, cli_options, run_id)
    history = [Epoch.from_state(state) for state in last["history"]]
    return ResumeState(run_id, began, history, last, best)


@contextmanager
def only_resumed_here(run_id: str, folder: Path) -> Iterator[None]:
    """Hold a lock that is released when this process dies.

    The tag with the owner of a run is not enough: two processes may read it at the same time.

    :raises ConfigError: when another process has the lock.
    """
    # No soft lock: its file would outlive a killed process.
    lock = FileLock(folder / _LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError([f"resume={run_id}: another process is resuming it"]) from error
    except (OSError, NotImplementedError) as error:
        _log.warning(
            "%s: files cannot be locked in this folder (%s). Make sure that no other process "
            "resumes this run at the same time.",
            folder,
            type(error).__name__,
        )
    try:
        yield
    finally:
        lock.release()


def original_options(
    params: Mapping[str, str], config: ConfigT, cli_options: Mapping[str, str], run_id: str
) -> ConfigT:
    """The original options of the training, with the current values of those that may change.

    :raises CheckpointError: when this version does not know the original options.
    :raises ConfigError: when an option that may not change differs.
    """
    may_change = with_role(type(config), Role.SETUP)
    fields = dataclasses.fields(config)
    given = {f.name for f in fields if getattr(config, f.name) != f.default} | set(cli_options)
    now = as_params(config)
    # The number of processes always has its current value.
    changed = {name: now[name] for name in given & may_change | {"nproc"}}
    try:
        began = resolve(
            type(config), {**_BEFORE, **params, **changed, "resume": run_id, "config": NONE}
        )
    except ConfigError as error:
        raise CheckpointError(
            f"Run {run_id} was begun by another version, whose options differ: {error}"
        ) from error
    before = as_params(began)
    problems = [
        f"{name}={now[name]}: the training began with {name}={before[name]}; omit {name} to "
        "resume, or omit resume to start a new training"
        for name in sorted(given - may_change)
        if now[name] != before[name]
    ]
    if problems:
        raise ConfigError(problems)
    return began


def _latest() -> str:
    found = sorted(checkpoint_folder().glob(f"*/{LAST}"), key=lambda file: file.stat().st_mtime)
    running = 0
    for file in reversed(found):
        run = _run_in_store(file.parent.name)
        if run is None:
            continue
        if living_owner(run) is None:
            return str(run.info.run_id)
        running += 1
    where = checkpoint_folder().parent.resolve()
    running_too = f"; {running} running" if running else ""
    raise ConfigError([f"resume=last: there is no interrupted training in {where}{running_too}"])


def _run_in_store(run_id: str) -> Run | None:
    """The run of a checkpoint; None, with a warning, if it was deleted or is not in the store."""
    if not RUN_ID.fullmatch(run_id):
        return None
    try:
        run = find_run(run_id)
    except TrackingError:
        _log.warning("run %s has a checkpoint but is not in the store; passed over", run_id)
        return None
    if run.info.lifecycle_stage == "deleted":
        _log.warning("run %s was deleted; passed over (restore it to resume it)", run_id)
        return None
    return run


def living_owner(run: Run) -> str | None:
    """The name of another process that may be training this run; None if there is none."""
    owner = run.data.tags.get(PROCESS_TAG, "")
    if run.info.status != "RUNNING" or not owner or owner == process_name() or is_gone(owner):
        return None
    return str(owner)


@contextmanager
def saved_on_disk(session: TrainingSession) -> Iterator[None]:
    """Run a block that logs the results. If the store fails, save them next to the checkpoint.

    :raises TrackingError: instead of the store's error, with the folder of the results.
    """
    session.save_checkpoint()
    try:
        yield
    except (*STORE_ERRORS, TrackingError, RuntimeError) as error:
        # torch raises RuntimeError when the disk is full while it writes the model.
        reason = error if isinstance(error, TrackingError) else store_error(error)
        run_id = session.run.run_id
        folder = _save_results(session, checkpoints_of(run_id).folder)
        later = (
            "Classifier.load loads the folder model in it."
            if session.context.custom
            else f"When the store is available again, {resume_hint(run_id)}"
        )
        raise TrackingError(
            f"{reason}\nThe training has ended, and nothing is lost: its model and history are in "
            f"{folder.resolve()}. {later}"
        ) from error


def _save_results(session: TrainingSession, folder: Path) -> Path:
    """Write the model as a folder that MLflow can load, and the history as a CSV file."""
    try:
        save_in_folder(session.model, folder / "model")
        session.history_table().to_csv(folder / "history.csv", index=False)
    except (OSError, RuntimeError) as error:  # torch reports a full disk by the latter
        raise CheckpointError(
            f"The tracking store is not available, and the model could not be written to {folder} "
            f"({str(error).splitlines()[0]}); its weights are in {BEST} in that folder."
        ) from error
    return folder


def close_stale_runs(experiment: str) -> None:
    """End runs of this machine whose processes are gone, and print how to resume them.

    :raises TrackingError: when the store is not available.
    """
    try:
        connect()
        for run in running_runs(experiment_in_use(experiment), "host", platform.node()):
            owner = run.data.tags.get(PROCESS_TAG, "")
            if not owner or _SEARCH_TAGS & run.data.tags.keys() or not is_gone(owner):
                continue
            run_id = run.info.run_id
            # Its process may have ended it since it was found.
            if find_run(run_id).info.status != "RUNNING":
                continue
            close_run(run_id, "KILLED", {FAILURE_TAG: f"its process {owner} is gone"})
            say(f"run {run_id} belonged to a process that is gone; it is marked as KILLED")
            if checkpoints_of(run_id).is_there():
                say(f"  {resume_hint(run_id)}")
            elif run.data.tags.get(KIND_TAG) == CROSS_VALIDATE:
                say(f"  {resume_hint(run_id, CROSS_VALIDATE)}")
    except STORE_ERRORS as error:
        raise store_error(error) from error


def resume_hint(run_id: str, command: str = TRAIN) -> str:
    """A message with the command that resumes a run."""
    return f"resume with: python -m shopee_mlflow {command} --resume {run_id}"
