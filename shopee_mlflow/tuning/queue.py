"""The trials of a study as a queue that any number of workers empty together, and may die at.

A study has a total of trials. Which worker runs the next one is decided by the storage alone: the
number that it gives a trial is unique, so each worker can tell whether its trial is within the
total. A trial whose worker is gone does not count; its values are queued again.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import optuna
import psutil
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from ..console import say
from .storage import FAULTS, reachable

_log = logging.getLogger(__name__)

# What a trial remembers of itself, beside what Optuna keeps.
FAILURE, OWNER, PLANNED, REPEATS, CRASHES = "failure", "owner", "planned", "repeats", "crashes"
_SURPLUS = "surplus"
_COPIED = ("baseline", "fixed", PLANNED)
# A trial that has ended two processes of a machine is not given to a third.
_MOST_CRASHES = 2
_WAIT_SECONDS = 1.0
_CLOCK_SECONDS = 5.0
# Between a trial's start and its owner's name lie milliseconds.
_NAMELESS = timedelta(seconds=60)


def process_name(pid: int | None = None) -> str:
    """Names a process on any machine for all time: host, process id, start time."""
    process = psutil.Process(pid)
    return f"{platform.node()}:{process.pid}:{process.create_time():.2f}"


def is_gone(name: str) -> bool:
    """Whether a process of this machine is no more; of other machines' processes nobody knows."""
    host, pid, started = name.rsplit(":", 2)
    if host != platform.node():
        return False
    try:
        process = psutil.Process(int(pid))
        # The system's notion of when it was started moves a little with its clock.
        another = abs(process.create_time() - float(started)) > _CLOCK_SECONDS
        return another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the total: all but those cut short from outside.

    A trial that failed by itself says why; one whose process was ended cannot.
    """
    return trial.state != TrialState.FAIL or FAILURE in trial.user_attrs


def is_final(trial: FrozenTrial) -> bool:
    """Whether a trial counts and has ended."""
    return counts(trial) and trial.state.is_finished()


@dataclass
class TrialQueue:
    """A study with a total of trials.

    :ivar total: of trials that count, whoever ran them and when.
    """

    study: optuna.Study
    storage: BaseStorage
    total: int

    def __post_init__(self) -> None:
        self._me = process_name()

    def all_trials(self) -> list[FrozenTrial]:
        """Every trial there is, in the order of their numbers."""
        with reachable(self.study):
            return self.study.get_trials(deepcopy=False)

    def trials(self, deadline: float | None = None) -> Iterator[Trial]:
        """Trials for this worker to run, until the total has ended, wherever it was run.

        While only others' trials are under way, waits: one of them may have to be taken up again.

        :param deadline: in ``time.time()``; no trial is begun after it.
        """
        told = False
        while True:
            self.take_up_lost()
            there = [t for t in self.all_trials() if counts(t)]
            late = deadline is not None and time.time() >= deadline
            running = any(t.state == TrialState.RUNNING for t in there)
            if sum(is_final(t) for t in there) >= self.total or (late and not running):
                return
            waiting = any(t.state == TrialState.WAITING for t in there)
            if not late and (waiting or len(there) < self.total):
                trial = self._claim()
                if trial is not None:
                    with self._beating(trial):
                        yield trial
                continue
            if not told:
                say("waiting for trials of other processes")
                told = True
            time.sleep(_WAIT_SECONDS)

    def enqueue(self, values: Mapping[str, Any], **about: Any) -> None:
        """Queue a trial with these values before all that the sampler will choose."""
        with reachable(self.study):
            self.study.enqueue_trial(dict(values), user_attrs={PLANNED: dict(values), **about})

    def end(
        self,
        trial: Trial,
        state: TrialState,
        value: float | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> bool:
        """Tell the study how a trial has ended; with ``failure`` in ``about``, by itself.

        :returns: False when it was given to another process meanwhile, since this one was taken
            for dead; what it found then does not count.
        """
        with reachable(self.study):
            try:
                for name, value_of in (about or {}).items():
                    trial.set_user_attr(name, value_of)
                self.study.tell(trial, value, state=state)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                return False
            return True

    def complete(self, trial: Trial, value: float, about: Mapping[str, Any] | None = None) -> bool:
        """Tell the study what a trial has found; see :meth:`end`."""
        return self.end(trial, TrialState.COMPLETE, value, about)

    def interrupt(self, trial: Trial) -> None:
        """Give a trial back that was cut short: it does not count, and is queued again."""
        with reachable(self.study):
            self._give_up(trial.number)

    def take_up_lost(self) -> None:
        """Queue again what was under way in processes that are no more."""
        with reachable(self.study), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # On machines whose processes we cannot see, those whose heart has stopped.
            fail_stale_trials(self.study)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if _is_lost(trial):
                    self._give_up(trial.number)

    def repeat_unrepeated(self) -> None:
        """Queue again what was cut short when even the worker that noticed it was ended.

        For the beginning of a session: workers that call this at once might queue a trial twice.
        """
        trials = self.all_trials()
        repeated = {t.user_attrs.get(REPEATS) for t in trials}
        for trial in trials:
            cut_short = not counts(trial) and _SURPLUS not in trial.user_attrs
            if cut_short and trial.number not in repeated:
                queue_again(self.study, trial)

    def crashed(self, owner: str) -> None:
        """A worker process of ours has ended by itself: its trial gets one more chance."""
        with reachable(self.study):
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get(OWNER) == owner:
                    self._give_up(trial.number, crashes=trial.user_attrs.get(CRASHES, 0) + 1)

    def _claim(self) -> Trial | None:
        """A trial of our own, or None when others have taken the last one meanwhile."""
        with reachable(self.study):
            trial = self.study.ask()
            trial.set_user_attr(OWNER, self._me)
            earlier = [t for t in self.all_trials() if t.number < trial.number]
            if sum(map(counts, earlier)) < self.total:
                return trial
            trial.set_user_attr(_SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None

    def _give_up(self, number: int, crashes: int = 0) -> None:
        trial = self.study.trials[number]
        if crashes >= _MOST_CRASHES:
            reason = f"its process ended {crashes} times; out of memory, perhaps"
            self.storage.set_trial_user_attr(trial._trial_id, FAILURE, reason)
        try:
            self.study.tell(number, state=TrialState.FAIL)
        except ValueError:  # another worker was faster, and has queued it again
            return
        if crashes < _MOST_CRASHES:
            queue_again(self.study, trial, crashes)

    @contextmanager
    def _beating(self, trial: Trial) -> Iterator[None]:
        """While a trial runs, tell a storage that machines share that this one is alive."""
        storage = self.storage
        if not isinstance(storage, RDBStorage):
            yield
            return
        over = threading.Event()
        interval = storage.get_heartbeat_interval() or 0

        def beat() -> None:
            while True:
                try:
                    storage.record_heartbeat(trial._trial_id)
                except FAULTS as error:  # the database may be back for the next beat
                    _log.warning("No heartbeat of trial %s: %s", trial.number, error)
                if over.wait(interval):
                    return

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(interval)


def queue_again(study: optuna.Study, trial: FrozenTrial, crashes: int = 0) -> None:
    """Queue the values of a trial that was cut short, and what was said about it, once more."""
    values = {**trial.user_attrs.get(PLANNED, {}), **trial.params}
    about = {name: trial.user_attrs[name] for name in _COPIED if name in trial.user_attrs}
    about |= {PLANNED: values, REPEATS: trial.number, CRASHES: crashes}
    # Without values nothing had been chosen yet, and nothing need be repeated.
    if values or "baseline" in about:
        study.enqueue_trial(values, user_attrs=about)


def _is_lost(trial: FrozenTrial) -> bool:
    owner = trial.user_attrs.get(OWNER)
    if owner is not None:
        return is_gone(owner)
    started = trial.datetime_start
    return started is not None and datetime.now() - started > _NAMELESS


def worker_seed(seed: int, number: int, shared: bool) -> int:
    """A seed for the sampler's choice of one trial.

    It follows from the trial's number, so that a study that goes on does not choose the values
    again that it began with; and from the process, where several might ask at once.
    """
    own = os.getpid() if shared else 0
    return (seed * 1_000_003 + number * 7919 + own) % 2**32
