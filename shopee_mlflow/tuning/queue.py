"""The trials of a study as a queue that workers share; any worker may be killed at any time.

A study has a total of trials. The storage gives each trial a unique number, so each worker can
tell on its own whether its trial is within the total. A trial whose process was ended from outside
is interrupted: it is not part of the total, its values are queued again, and its slot stays
reserved for the retry. Every worker requeues the interrupted trials that it finds; of several
retries of one trial, the first is used.

Optuna's heartbeats are used (``record_heartbeat``, ``fail_stale_trials``). Three other parts of
Optuna 5 were tested with real SIGKILLs and are not used:

- ``Study.optimize`` with ``MaxTrialsCallback`` checks the total only after a trial, so each call
  and each further worker adds one: 9 instead of 6 trials after five kills
  (``test_killed_five_times_nothing_is_lost``, ``test_two_workers_share_the_total``). It ends with
  an AssertionError when another worker has retried its trial
  (``test_a_late_result_of_a_retried_trial_is_ignored``).
- ``RetryHeartbeatStaleTrialCallback`` needs heartbeats, which a file does not have. In a database,
  trials are lost when a worker is killed between failing a trial and the callback
  (``test_an_interrupted_trial_that_was_not_requeued_is_requeued``) or before the first heartbeat
  (``test_the_first_heartbeat_comes_before_the_owner``).
- ``HeartbeatThread`` ends at the first write that fails, and the trial is then retried although it
  runs (``test_heartbeats_continue_after_a_failed_write_until_the_trial_ends``).
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from ..console import say
from ..tracking.processes import is_gone, process_name
from ..tracking.signals import defer_stop
from .storage import FAULTS, reachable

_log = logging.getLogger(__name__)

# User attributes of a trial.
FAILURE, OWNER, PLANNED, REPEATS, CRASHES = "failure", "owner", "planned", "repeats", "crashes"
_SURPLUS = "surplus"
_REFERENCES = ("baseline", "default")
_KEPT_IN_RETRIES = (*_REFERENCES, "fixed", CRASHES)
_MAX_CRASHES = 2
_POLL_SECONDS = 1.0
# Milliseconds pass between a trial's start and the record of its owner.
OWNERLESS = timedelta(seconds=60)


def is_interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial's process was ended from outside; a trial that fails has a reason."""
    return trial.state == TrialState.FAIL and FAILURE not in trial.user_attrs


def _unique(trials: Sequence[FrozenTrial]) -> Iterator[FrozenTrial]:
    """All trials but those beyond the total and second retries of one trial."""
    retried = set()
    for trial in trials:
        number = trial.user_attrs.get(REPEATS)
        if number not in retried and _SURPLUS not in trial.user_attrs:
            yield trial
        if number is not None:
            retried.add(number)


def _slots(trials: Sequence[FrozenTrial]) -> int:
    """How many slots of the total are taken; a trial and its retries share one."""
    first = (t for t in _unique(trials) if REPEATS not in t.user_attrs)
    return sum(not is_interrupted(t) or _has_values(t) for t in first)


def _has_values(trial: FrozenTrial) -> bool:
    """Whether there is something to retry: any value was chosen or planned."""
    attrs = trial.user_attrs
    return bool(trial.params or attrs.get(PLANNED) or any(name in attrs for name in _REFERENCES))


@dataclass
class TrialQueue:
    """A study with a total of trials.

    :ivar total: number of trials that are not interrupted, over all workers and calls.
    :ivar owner: name of the process that takes trials from this queue.
    """

    study: optuna.Study
    storage: BaseStorage
    total: int
    owner: str = field(default_factory=process_name)

    def all_trials(self) -> list[FrozenTrial]:
        """Every trial of the study, ordered by number."""
        with reachable(self.study):
            return self.study.get_trials(deepcopy=False)

    def counted(self) -> list[FrozenTrial]:
        """The trials that are part of the total: all but interrupted and surplus ones."""
        return [t for t in _unique(self.all_trials()) if not is_interrupted(t)]

    def finished(self) -> list[FrozenTrial]:
        """The trials of the total that have ended."""
        return [t for t in self.counted() if t.state.is_finished()]

    def trials(self, deadline: float | None = None) -> Iterator[Trial]:
        """Yield trials for this worker until the total has ended in any process.

        While only other processes have running trials, waits: one may have to be retried.

        :param deadline: in ``time.time()``; no trial starts after it.
        """
        announced = False
        while True:
            self.requeue_lost()
            late = deadline is not None and time.time() >= deadline
            running = [t for t in self.counted() if t.state == TrialState.RUNNING]
            if len(self.finished()) >= self.total or (late and not running):
                return
            if not late and self._has_work():
                if trial := self.claim():
                    with _heartbeat(self.storage, trial):
                        yield trial
                continue
            if running and not announced:
                names = [f"{t.number} of {t.user_attrs.get(OWNER, '?')}" for t in running]
                say(f"waiting for trials of other processes: {', '.join(names)}")
                announced = True
            time.sleep(_POLL_SECONDS)

    def enqueue(self, values: Mapping[str, Any], **attrs: Any) -> None:
        """Queue a trial with these values and user attributes."""
        with reachable(self.study):
            self.study.enqueue_trial(dict(values), user_attrs={PLANNED: dict(values), **attrs})

    def end(
        self,
        trial: Trial,
        value: float | None,
        attrs: Mapping[str, Any] | None = None,
        state: TrialState = TrialState.COMPLETE,
    ) -> bool:
        """End a trial. A failed one counts if ``attrs`` holds its ``failure``.

        :returns: False if the trial was given to another process; the result is then ignored.
        """
        with reachable(self.study):
            try:
                for name, attr in (attrs or {}).items():
                    trial.set_user_attr(name, attr)
                self.study.tell(trial, value, state=state)
            except (ValueError, UpdateFinishedTrialError):
                return False
            return True

    def interrupt(self, trial: Trial | FrozenTrial, attrs: Mapping[str, Any] | None = None) -> None:
        """End a trial as interrupted, unless it has ended, and queue its values again."""
        with reachable(self.study), suppress(UpdateFinishedTrialError):
            for name, value in (attrs or {}).items():
                self.storage.set_trial_user_attr(trial._trial_id, name, value)
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        self.requeue_interrupted()

    def requeue_lost(self) -> None:
        """Requeue the trials of dead processes, and those that this process left running.

        Call it between two trials of this process.
        """
        with reachable(self.study), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Processes of other machines are known by their heartbeats alone.
            fail_stale_trials(self.study)
        for trial in self.all_trials():
            if trial.state == TrialState.RUNNING and self._is_lost(trial):
                self.interrupt(trial)
        self.requeue_interrupted()

    def requeue_interrupted(self) -> None:
        """Requeue interrupted trials that no worker has requeued yet."""
        trials = self.all_trials()
        retried = {t.user_attrs.get(REPEATS) for t in trials}
        for trial in _unique(trials):
            if is_interrupted(trial) and trial.number not in retried and _has_values(trial):
                self._queue_again(trial, **{REPEATS: trial.number})

    def crashed(self, owner: str) -> None:
        """Handle the death of a worker process: its trial is retried once, then fails."""
        for trial in self.all_trials():
            # The start time in a process's name changes slightly with the clock.
            same = trial.user_attrs.get(OWNER, "").rpartition(":")[0] == owner.rpartition(":")[0]
            if trial.state == TrialState.RUNNING and same:
                crashes = trial.user_attrs.get(CRASHES, 0) + 1
                reason = f"its process died {crashes} times, possibly out of memory"
                failure = {FAILURE: reason} if crashes >= _MAX_CRASHES else {}
                self.interrupt(trial, {CRASHES: crashes, **failure})

    def claim(self) -> Trial | None:
        """Start a trial, or return None if other workers have taken the last one."""
        with reachable(self.study), suppress(UpdateFinishedTrialError):
            # A stop waits: others would wait for a trial without an owner.
            with defer_stop():
                trial = self._ask()
            trials = self.all_trials()
            if REPEATS in trial.user_attrs:
                within = trial.number in (t.number for t in _unique(trials))
            else:
                within = _slots(trials[: trial.number]) < self.total
            if within:
                return trial
            trial.set_user_attr(_SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            if PLANNED in trial.user_attrs and REPEATS not in trial.user_attrs:
                self._queue_again(trial)
        return None

    def _ask(self) -> Trial:
        """Start a trial, and record its owner."""
        with warnings.catch_warnings():
            # "Heartbeat is supposed to be used with Study.optimize"; see _heartbeat.
            warnings.simplefilter("ignore", UserWarning)
            trial = self.study.ask()
        if isinstance(self.storage, RDBStorage):
            # Recorded before the owner, since the machine may go down in between.
            self.storage.record_heartbeat(trial._trial_id)
        trial.set_user_attr(OWNER, self.owner)
        return trial

    def _has_work(self) -> bool:
        """Whether a trial may start; trials queued beyond the total wait until it is increased."""
        trials = self.all_trials()
        waiting = [t for t in _unique(trials) if t.state == TrialState.WAITING]
        started = [t for t in trials if t.state != TrialState.WAITING]
        return any(REPEATS in t.user_attrs for t in waiting) or _slots(started) < self.total

    def _queue_again(self, trial: FrozenTrial | Trial, **more: Any) -> None:
        attrs = {k: v for k, v in trial.user_attrs.items() if k in _KEPT_IN_RETRIES}
        self.enqueue({**trial.user_attrs.get(PLANNED, {}), **trial.params}, **attrs, **more)

    def _is_lost(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER)
        if owner is not None:
            return owner == self.owner or is_gone(owner)
        started = trial.datetime_start
        return started is not None and datetime.now() - started > OWNERLESS


@contextmanager
def _heartbeat(storage: BaseStorage, trial: Trial) -> Iterator[None]:
    """Record heartbeats of a trial while the block runs, if the storage supports them."""
    if not isinstance(storage, RDBStorage):
        yield
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(storage.get_heartbeat_interval()):
            try:
                storage.record_heartbeat(trial._trial_id)
            except FAULTS as error:  # the database may respond to the next one
                _log.warning("No heartbeat of trial %s: %s", trial.number, error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(storage.get_heartbeat_interval())
