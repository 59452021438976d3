"""The trials of a study as a queue that any number of workers empty together, and may die at.

A study has a total of trials. Which worker runs the next one is decided by the storage alone: the
number that it gives a trial is unique, so each worker can tell whether its trial is within the
total. A trial whose worker is gone does not count; its values are queued again, and keep its place
in the total. Whoever sees one that has not been queued again does that, so none is lost with the
worker that should have; where several did it at once, the first counts.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from ..console import say
from ..tracking.processes import is_gone, process_name
from .storage import FAULTS, reachable

_log = logging.getLogger(__name__)

# What a trial remembers of itself, beside what Optuna keeps.
FAILURE, OWNER, PLANNED, REPEATS, CRASHES = "failure", "owner", "planned", "repeats", "crashes"
_SURPLUS = "surplus"
_COPIED = ("baseline", "fixed", CRASHES)
# A trial that has ended two processes of a machine is not given to a third.
_MOST_CRASHES = 2
_WAIT_SECONDS = 1.0
# Between a trial's start and its owner's name lie milliseconds.
_NAMELESS = timedelta(seconds=60)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the total: all but those cut short from outside.

    A trial that failed by itself says why; one whose process was ended cannot.
    """
    return trial.state != TrialState.FAIL or FAILURE in trial.user_attrs


def is_final(trial: FrozenTrial) -> bool:
    """Whether a trial counts and has ended."""
    return counts(trial) and trial.state.is_finished()


def counting(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those of a study's trials that count."""
    return [t for t in _without_doubles(trials) if counts(t)]


def _without_doubles(trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    """All but those beyond the total, and those that repeat what an earlier one repeats."""
    repeated = set()
    for trial in trials:
        number = trial.user_attrs.get(REPEATS)
        if number not in repeated and _SURPLUS not in trial.user_attrs:
            yield trial
        if number is not None:
            repeated.add(number)


def _places(trials: Sequence[FrozenTrial]) -> int:
    """How many of the total are taken: a trial that is repeated keeps its place."""
    begun = (t for t in _without_doubles(trials) if REPEATS not in t.user_attrs)
    return sum(counts(t) or _can_be_repeated(t) for t in begun)


def _process(trial: FrozenTrial) -> str:
    """Host and id of a trial's process, without its start, which moves a little with the clock."""
    return trial.user_attrs.get(OWNER, "").rpartition(":")[0]


def _can_be_repeated(trial: FrozenTrial) -> bool:
    """Without values nothing had been chosen yet, and nothing need be repeated."""
    return bool(trial.params or trial.user_attrs.get(PLANNED)) or "baseline" in trial.user_attrs


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
            trials = self.all_trials()
            there = counting(trials)
            late = deadline is not None and time.time() >= deadline
            running = [t for t in there if t.state == TrialState.RUNNING]
            if sum(map(is_final, there)) >= self.total or (late and not running):
                return
            # What was queued beyond the total stays queued, for a greater one.
            begun = [t for t in trials if t.state != TrialState.WAITING]
            waiting = [t for t in there if t.state == TrialState.WAITING]
            repeats = any(REPEATS in t.user_attrs for t in waiting)
            if not late and (repeats or _places(begun) < self.total):
                trial = self._claim()
                if trial is not None:
                    with self._beating(trial):
                        yield trial
                continue
            if running and not told:
                names = [f"{t.number} of {t.user_attrs.get(OWNER, '?')}" for t in running]
                say(f"waiting for trials of other processes: {', '.join(names)}")
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
            except (ValueError, UpdateFinishedTrialError):
                return False
            return True

    def complete(self, trial: Trial, value: float, about: Mapping[str, Any] | None = None) -> bool:
        """Tell the study what a trial has found; see :meth:`end`."""
        return self.end(trial, TrialState.COMPLETE, value, about)

    def interrupt(self, trial: Trial) -> None:
        """Give a trial back that was cut short: it does not count, and is queued again."""
        self._give_up(trial.number)

    def take_up_lost(self) -> None:
        """Queue again what was under way in processes that are no more.

        For a worker between two trials: one of its own that seems to run was cut short, too.
        """
        with reachable(self.study), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # On machines whose processes we cannot see, those whose heart has stopped.
            fail_stale_trials(self.study)
        for trial in self.all_trials():
            if trial.state == TrialState.RUNNING and self._is_lost(trial):
                self._give_up(trial.number)
        self.repeat_unrepeated()

    def repeat_unrepeated(self) -> None:
        """Queue again what was cut short, unless that has been done."""
        trials = self.all_trials()
        repeated = {t.user_attrs.get(REPEATS) for t in trials}
        for trial in _without_doubles(trials):
            if not counts(trial) and trial.number not in repeated and _can_be_repeated(trial):
                self._queue_again(trial, **{REPEATS: trial.number})

    def crashed(self, owner: str) -> None:
        """A worker process of ours has ended by itself: its trial gets one more chance."""
        for trial in self.all_trials():
            if trial.state == TrialState.RUNNING and _process(trial) == owner.rpartition(":")[0]:
                crashes = trial.user_attrs.get(CRASHES, 0) + 1
                reason = f"its process ended {crashes} times; out of memory, perhaps"
                failure = {FAILURE: reason} if crashes >= _MOST_CRASHES else {}
                self._give_up(trial.number, {CRASHES: crashes, **failure})

    def _claim(self) -> Trial | None:
        """A trial of our own, or None when others have taken the last one meanwhile."""
        with reachable(self.study), suppress(UpdateFinishedTrialError):
            with warnings.catch_warnings():
                # That heartbeats are for Study.optimize; ours are in _beating.
                warnings.simplefilter("ignore", UserWarning)
                trial = self.study.ask()
            if isinstance(self.storage, RDBStorage):
                # Before it has an owner, who might be on a machine that goes off now.
                self.storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr(OWNER, self._me)
            trials = self.all_trials()
            if REPEATS in trial.user_attrs:
                within = trial.number in (t.number for t in _without_doubles(trials))
            else:
                within = _places(trials[: trial.number]) < self.total
            if within:
                return trial
            trial.set_user_attr(_SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            if PLANNED in trial.user_attrs and REPEATS not in trial.user_attrs:
                self._queue_again(trial)
        return None

    def _queue_again(self, trial: FrozenTrial | Trial, **more: Any) -> None:
        about = {name: value for name, value in trial.user_attrs.items() if name in _COPIED}
        values = {**trial.user_attrs.get(PLANNED, {}), **trial.params}
        self.enqueue(values, **about, **more)

    def _give_up(self, number: int, about: Mapping[str, Any] | None = None) -> None:
        """End a trial as cut short, unless another worker was faster; queue it again."""
        trial_id = self.all_trials()[number]._trial_id
        with reachable(self.study), suppress(UpdateFinishedTrialError):
            for name, value in (about or {}).items():
                self.storage.set_trial_user_attr(trial_id, name, value)
            self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        self.repeat_unrepeated()

    def _is_lost(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER)
        if owner is not None:
            return owner == self._me or is_gone(owner)
        started = trial.datetime_start
        return started is not None and datetime.now() - started > _NAMELESS

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
