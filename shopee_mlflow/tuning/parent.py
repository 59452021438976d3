"""The run of a whole study, and the runs of trials whose processes have died."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..console import say
from ..data_config import AUTO
from ..errors import ShopeeError, TrackingError
from ..tracking.finding import find_run, running_runs, runs_with_tag
from ..tracking.names import (
    FAILURE_TAG,
    PARENT_TAG,
    PROCESS_TAG,
    STATE_TAG,
    STUDY_TAG,
    TRIAL_TAG,
    TUNE,
)
from ..tracking.processes import is_gone, process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import Run, close_run, join_run, open_run
from ..tracking.store import STORE_ERRORS
from .study import Search
from .trial_results import RUN_STATUS


@contextmanager
def parent_run(search: Search) -> Iterator[RunLog]:
    """Open the run of the whole study: a new run, the resumed run, or the run of another process,
    which will end it."""
    config = search.plan.config
    name = search.name if config.run_name == AUTO else config.run_name
    mine = {PROCESS_TAG: process_name(), STUDY_TAG: search.name}
    parent = None if search.created else search.await_parent() or _orphaned_run(search)
    if parent and not _is_in_store(parent):
        say(f"run {parent} of study {search.name} was deleted; the study continues in a new run")
        parent = None
    if parent and _is_held(parent):
        say(f"joining study {search.name}, started by another process")
        with join_run(parent, lambda: _is_held(parent) and not _is_over(search)) as run:
            yield run
        return
    if parent:
        say(f"resuming study {search.name} in run {parent}")
    with open_run(name, config.experiment, kind=TUNE, resume=parent, tags=mine) as run:
        search.keep_parent(run.run_id)
        yield run


@contextmanager
def lost_runs_closed(search: Search, run: RunLog) -> Iterator[None]:
    """End the runs of lost trials before the block and after it, even after an error."""
    _close_lost_runs(search, run)
    hidden: tuple[type[BaseException], ...] = (ShopeeError, *STORE_ERRORS)
    try:
        yield
        hidden = ()
    finally:
        with suppress(*hidden):  # by the error that ended the block
            _close_lost_runs(search, run)


def _is_in_store(run_id: str) -> bool:
    """Whether a run is there and was not deleted."""
    try:
        return bool(find_run(run_id).info.lifecycle_stage != "deleted")
    except TrackingError:
        return False


def _is_held(run_id: str) -> bool:
    """Whether the process that opened a run may still be alive."""
    run = find_run(run_id)
    holder = run.data.tags.get(PROCESS_TAG)
    return run.info.status == "RUNNING" and holder is not None and not is_gone(holder)


def _is_over(search: Search) -> bool:
    """Whether the study has its total; if so, the last process ends the run."""
    with suppress(ShopeeError):
        return search.finished() >= search.plan.config.n_trials
    return False


def _orphaned_run(search: Search) -> str | None:
    """The run of a study whose creator died before it could record the run's id."""
    for run in running_runs(search.plan.config.experiment, STUDY_TAG, search.name):
        holder = run.data.tags.get(PROCESS_TAG)
        if holder is not None and is_gone(holder):
            return run.info.run_id
    return None


def _close_lost_runs(search: Search, run: RunLog) -> None:
    """Give the runs of ended trials the status and the state of their trial, where they differ."""
    search.queue.requeue_lost()
    # A run is FINISHED only if the study has the result of its trial.
    rest = "attributes.status != 'FINISHED'"
    for listed in runs_with_tag(run.experiment_id, PARENT_TAG, run.run_id, rest):
        if (number := listed.data.tags.get(TRIAL_TAG)) is None:
            continue
        state, why = search.state_of(int(number))
        # Its process may have ended it since it was listed.
        child = find_run(listed.info.run_id)
        if state == "running" or _agrees(child, state):
            continue
        tags = {STATE_TAG: state}
        # The process of an interrupted trial may have given a reason.
        if why and (state in RUN_STATUS or FAILURE_TAG not in child.data.tags):
            tags[FAILURE_TAG] = why
        close_run(child.info.run_id, RUN_STATUS.get(state, "KILLED"), tags)


def _agrees(child: Run, state: str) -> bool:
    """Whether the run of an ended trial has ended and has the trial's state."""
    statuses = {RUN_STATUS[state]} if state in RUN_STATUS else {"KILLED", "FAILED"}
    return child.info.status in statuses and child.data.tags.get(STATE_TAG) == state
