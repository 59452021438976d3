"""The run that stands for a whole study, and the runs of trials whose processes are no more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..config import AUTO
from ..console import say
from ..errors import ShopeeError
from ..tracking.names import PROCESS_TAG
from ..tracking.processes import is_gone, process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import (
    FAILURE_TAG,
    child_runs,
    close_run,
    find_run,
    join_run,
    open_run,
    running_runs,
)
from ..tracking.store import STORE_ERRORS
from .study import Search
from .trials import STATE_TAG, TRIAL_TAG

STUDY_TAG = "study"
_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


@contextmanager
def parent_run(search: Search) -> Iterator[RunLog]:
    """The run of the whole study: a new one, the one gone on with, or one that another process
    holds open, whose end is then that process's to tell."""
    config = search.plan.config
    name = search.name if config.run_name == AUTO else config.run_name
    mine = {PROCESS_TAG: process_name(), STUDY_TAG: search.name}
    parent = None if search.created else search.await_parent() or _left_behind(search)
    if parent is None:
        with open_run(name, config.experiment, tags=mine) as run:
            search.parent = run.run_id
            yield run
    elif _is_held(parent):
        say(f"joining the study {search.name}, which another process has begun")
        with join_run(parent, lambda: _is_held(parent) and not _is_over(search)) as run:
            yield run
    else:
        say(f"going on with the study {search.name} in run {parent}")
        with open_run(name, config.experiment, resume=parent, tags=mine) as run:
            search.parent = parent
            yield run


@contextmanager
def lost_runs_closed(search: Search, run: RunLog) -> Iterator[None]:
    """Before the block and after it, however it is left, no run of a lost trial stays open."""
    _close_lost_runs(search, run)
    try:
        yield
    except BaseException:
        with suppress(ShopeeError, *STORE_ERRORS):
            _close_lost_runs(search, run)
        raise
    _close_lost_runs(search, run)


def _is_held(run_id: str) -> bool:
    """Whether the process that has opened a run is still there, as far as can be seen."""
    run = find_run(run_id)
    holder = run.data.tags.get(PROCESS_TAG)
    return run.info.status == "RUNNING" and holder is not None and not is_gone(holder)


def _is_over(search: Search) -> bool:
    """Whether the study has its total: then whoever leaves last, of several, ends the run."""
    with suppress(ShopeeError):
        return search.finished() >= search.plan.config.n_trials
    return False


def _left_behind(search: Search) -> str | None:
    """The run of a study whose creator was ended before it could write down which one it is."""
    for run in running_runs(search.plan.config.experiment, STUDY_TAG, search.name):
        holder = run.data.tags.get(PROCESS_TAG)
        if holder is not None and is_gone(holder):
            return run.info.run_id
    return None


def _close_lost_runs(search: Search, run: RunLog) -> None:
    """End the runs of trials whose processes were ended from outside, as their trials have."""
    search.queue.take_up_lost()
    for child in child_runs(run):
        number = child.data.tags.get(TRIAL_TAG)
        state, why = search.state_of(int(number or -1))
        if state == "running":
            continue
        tags = {STATE_TAG: state}
        if why:
            tags[FAILURE_TAG] = why
        close_run(child.info.run_id, _STATUS.get(state, "KILLED"), tags)
