"""MLflow runs: opened, adopted or resumed, and ended as FINISHED, FAILED or KILLED."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from ..errors import ReadOnlyStoreError, ShopeeError, TrackingError, disk_full
from ..masking import mask_passwords
from .experiment_choice import choose_experiment, enter_experiment
from .finding import find_run
from .mlflow_run_log import MlflowRunLog
from .names import (
    CONTINUES_TAG,
    DEFAULT_EXPERIMENT,
    FAILURE_TAG,
    KIND_TAG,
    LONGEST_REASON,
    TRAININGS,
)
from .run_log import NullRunLog, RunLog
from .signals import defer_stop, stop_on_signals
from .store import (
    STORE_ERRORS,
    check_artifacts,
    connect,
    defer_stop_if_local,
    quieten,
    store_error,
)
from .unopened_runs import delete_unopened_runs, used_by
from .views import save_view

_log = logging.getLogger(__name__)

_END_PAUSES = (0.0, 0.5, 2.0)
# Names that MLflow generates for unnamed runs, such as "amazing-shrike-12".
_UNNAMED = re.compile(r"[a-z]+-[a-z]+-\d+")


@contextmanager
def open_run(
    name: str,
    experiment: str = DEFAULT_EXPERIMENT,
    *,
    kind: str | None = None,
    parent: RunLog | None = None,
    resume: str | None = None,
    tags: Mapping[str, str] | None = None,
    shared: bool = False,
) -> Iterator[MlflowRunLog]:
    """Open a run, or adopt the one that ``mlflow run`` has created, and end it after the block.

    An exception ends the run as FAILED, a stop signal as KILLED, both with the reason in the tag
    ``failure``. The exception is then raised again. System metrics are logged if MLflow's setting
    is on: ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` or ``mlflow.enable_system_metrics_logging()``.

    :param name: name of the run; a ``--run-name`` of ``mlflow run`` overrides it.
    :param kind: the command that opens the run, one of the kinds in ``tracking.names``; set as a
        tag.
    :param parent: the parent run, if any.
    :param resume: id of a run to resume instead of opening a new one.
    :param tags: tags to set when the run is opened.
    :param shared: whether other processes take part; they store the reason in the run when they
        fail.
    :raises TrackingError: when the tracking store cannot be used.
    """
    quieten()
    with stop_on_signals(), ExitStack() as opening:
        try:
            connect()
            # A stop waits for the block that ends the run.
            opening.enter_context(defer_stop_if_local())
            named = {KIND_TAG: kind} if kind else {}
            run = _start(experiment, name, parent, resume, {**named, **(tags or {})})
        except STORE_ERRORS as error:
            raise store_error(error) from error
        log = MlflowRunLog(run.info.run_id, run.info.experiment_id)
        try:
            opening.close()
            if parent is None:
                check_artifacts(run.info.artifact_uri)
                delete_unopened_runs(run.info.experiment_id)
                if kind in TRAININGS:
                    save_view(run.info.experiment_id)
            yield log
            log.flush()
            # From here on, a stop does not change the status.
            log.ending = log.ending or ("FINISHED", "")
            with defer_stop_if_local():
                _set_ended(log, *log.ending)
        except BaseException as error:
            # Do not wait again for a store that is not available.
            unavailable = isinstance(error, (TrackingError, *STORE_ERRORS))
            # If a stop interrupted this block, MLflow would mark the run as FINISHED.
            with defer_stop():
                status, reason = log.ending or end_status(error)
                # The first process that fails has stored its reason. The others are only stopped,
                # or lose the connection to it.
                if shared and (stored := _failure_of(log.run_id)):
                    status, reason = "FAILED", stored
                _end(log, status, reason, pauses=_END_PAUSES[:1] if unavailable else _END_PAUSES)
            full = isinstance(error, (OSError, RuntimeError)) and disk_full(error)
            if full or isinstance(error, MlflowException):
                raise store_error(error) from error
            raise
        finally:
            log.close()


@contextmanager
def open_run_if_writable(
    name: str, experiment: str, *, kind: str | None = None
) -> Iterator[RunLog]:
    """Open a run. If the store is read-only, log a warning and use a log that stores nothing.

    :raises TrackingError: when the tracking store cannot be used.
    """
    with ExitStack() as stack:
        log: RunLog
        try:
            log = stack.enter_context(open_run(name, experiment, kind=kind))
        except ReadOnlyStoreError as error:
            _log.warning("%s. The results are printed, but not logged.", error)
            log = NullRunLog()
        yield log


@contextmanager
def join_run(run_id: str, is_held: Callable[[], bool]) -> Iterator[MlflowRunLog]:
    """Log to a run that another process has opened; end it if that process is gone.

    :param is_held: returns whether the process that opened the run is still there to end it.
    :raises TrackingError: when the tracking store cannot be used.
    """
    log = MlflowRunLog(run_id, find_run(run_id).info.experiment_id)
    try:
        mark_adopted_as_continued(run_id)
        # Without an active run MLflow would log models to another experiment.
        enter_experiment(experiment_id=log.experiment_id)
        yield log
        log.flush()
        if not is_held():
            log.ending = ("FINISHED", "")
            with defer_stop_if_local():
                close_run(run_id, "FINISHED", {})
    except BaseException as error:
        if not is_held():
            with defer_stop():
                _end(log, *(log.ending or end_status(error)))
        if isinstance(error, MlflowException):
            raise store_error(error) from error
        raise
    finally:
        log.close()


def _failure_of(run_id: str) -> str:
    """The reason that another process of the group has stored; empty if there is none."""
    with suppress(*STORE_ERRORS):
        return str(MlflowClient().get_run(run_id).data.tags.get(FAILURE_TAG, ""))
    return ""


def end_status(error: BaseException) -> tuple[str, str]:
    """The final status of a run that an exception ends, and the reason."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", str(error) or "interrupted"
    if isinstance(error, MlflowException):
        return "FAILED", mask_passwords(error.message)
    reason = str(error) if isinstance(error, ShopeeError) else repr(error)
    return "FAILED", mask_passwords(reason)


def _start(
    experiment: str,
    name: str,
    parent: RunLog | None,
    resume: str | None,
    tags: dict[str, str],
) -> Run:
    if parent is not None:
        return mlflow.start_run(
            experiment_id=parent.experiment_id,
            run_name=name,
            nested=True,
            parent_run_id=parent.run_id,
            tags=tags,
        )
    if resume is not None:
        mark_adopted_as_continued(resume)
        _forget_failure(resume)
        # MLflow refuses to resume a run while another experiment is active, as in a notebook.
        where = MlflowClient().get_run(resume).info.experiment_id
        enter_experiment(experiment_id=where)
        run = mlflow.start_run(run_id=resume)
        mlflow.set_tags(tags)
        return run
    adopted = os.environ.get("MLFLOW_RUN_ID")
    if not adopted:
        outer = mlflow.active_run()
        if outer is None:
            choose_experiment(experiment)
        # If the caller has opened a run, the new run is its child.
        return mlflow.start_run(run_name=name, tags=tags, nested=outer is not None)
    _check_adoptable(adopted)
    run = mlflow.start_run(run_id=adopted)
    # torchrun may have restarted the group after a failure.
    _forget_failure(adopted)
    # Otherwise MLflow would use the same run again for the first nested run.
    del os.environ["MLFLOW_RUN_ID"]
    if _UNNAMED.fullmatch(run.info.run_name or ""):
        mlflow.set_tag("mlflow.runName", name)
    mlflow.set_tags(tags)
    where = mlflow.get_experiment(run.info.experiment_id).name
    if where != experiment:
        _log.warning(
            "This run is in the experiment %r, which mlflow run has chosen. To log to %r, call: "
            "mlflow run --experiment-name %s ...",
            where,
            experiment,
            experiment,
        )
    return run


def _check_adoptable(run_id: str) -> None:
    """Check that the run that MLFLOW_RUN_ID names is new.

    :raises TrackingError: when it has ended or was used before.
    """
    # torchrun restarts a group with the same environment variables.
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return
    used = used_by(find_run(run_id))
    if used:
        raise TrackingError(
            f"MLFLOW_RUN_ID={run_id}: this run {used}, and its results would be overwritten. Unset "
            "the variable (for mlflow run: omit --run-id) to log to a new run."
        )


def mark_adopted_as_continued(run_id: str) -> None:
    """Mark the run that ``mlflow run`` has created as continued in the run ``run_id``."""
    adopted = os.environ.pop("MLFLOW_RUN_ID", None)
    if adopted and adopted != run_id:
        client = MlflowClient()
        client.set_tag(adopted, CONTINUES_TAG, run_id)
        client.set_tag(adopted, "mlflow.runName", f"continued in {run_id[:8]}")


def _forget_failure(run_id: str) -> None:
    client = MlflowClient()
    if FAILURE_TAG in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, FAILURE_TAG)


def _end(
    log: MlflowRunLog, status: str, reason: str, pauses: Sequence[float] = _END_PAUSES
) -> None:
    """Mark a run as ended. Retry if that fails, since a signal may have interrupted a request.

    If all attempts fail, only log a warning, so that the error that ended the run is not hidden.
    """
    for pause in pauses:
        time.sleep(pause)
        try:
            _set_ended(log, status, reason)
            return
        except STORE_ERRORS as error:
            failure = error
    if _is_active(log):
        # Otherwise the run would stay active and could not be resumed in this process.
        with suppress(*STORE_ERRORS):
            mlflow.end_run(status)
    reason = str(failure).split("\n")[0]
    _log.warning("Run %s could not be marked as %s: %s", log.run_id, status, reason)


def _set_ended(log: MlflowRunLog, status: str, reason: str) -> None:
    """Set the final status of a run, and the reason if there is one."""
    client = MlflowClient()
    if reason:
        client.set_tag(log.run_id, FAILURE_TAG, mask_passwords(reason)[:LONGEST_REASON])
    log.flush()
    if _is_active(log):
        mlflow.end_run(status)
    else:  # after an attempt that failed, and for a run that another process has opened
        client.set_terminated(log.run_id, status)


def _is_active(log: MlflowRunLog) -> bool:
    """Whether the run is MLflow's active run."""
    active = mlflow.active_run()
    return active is not None and active.info.run_id == log.run_id


def close_run(run_id: str, status: str, tags: Mapping[str, str]) -> None:
    """End a run whose process is gone, or correct the status of one that has ended."""
    client = MlflowClient()
    ended = client.get_run(run_id).info
    if status == "FINISHED":
        _forget_failure(run_id)
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    client.set_terminated(run_id, status, None if ended.status == "RUNNING" else ended.end_time)
