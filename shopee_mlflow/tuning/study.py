"""A search in its storage: study, sampler, pruner and best trial."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import Trial

from ..errors import StudyError
from ..tracking.processes import is_gone, process_name
from .queue import FAILURE, PLANNED, TrialQueue
from .sampling import make_pruner, make_sampler, suggest
from .space import SearchPlan
from .storage import is_database, open_storage, reachable, study_file
from .trial_results import BASELINE, DEFAULT, FIXED, NAMES, TrialResult, as_table, read_result

# User attributes of a study.
_CREATOR, _PLAN, _PARENT, _DATA = "creator", "plan", "parent_run", "data_digest"
_TESTED = "tested_trials"
# How long other processes wait for the records of the study's creator.
CREATOR_SECONDS = 20.0


class Search:
    """A study, the queue of its trials, and the state that its workers share."""

    def __init__(self, plan: SearchPlan, folder: Path) -> None:
        """Create the study of a plan, or load it.

        :param folder: of the tracking store; the study is kept there unless ``storage`` is given.
        :raises StudyError: if the study has other options, or cannot be reached.
        """
        self.plan = plan
        self.name = plan.study_name()
        where = plan.config.storage
        self.storage = open_storage(where, study_file(where, self.name, folder))
        make_sampler(plan, plan.config.seed)  # wrong settings must not leave a study behind
        pruner = make_pruner(plan)
        self.created = True
        try:
            self.study = optuna.create_study(
                storage=self.storage, study_name=self.name, direction="maximize", pruner=pruner
            )
        except optuna.exceptions.DuplicatedStudyError:
            self.created = False
            self.study = optuna.load_study(
                storage=self.storage, study_name=self.name, pruner=pruner
            )
        self.queue = TrialQueue(self.study, self.storage, plan.config.n_trials)
        if self.created or not self._is_begun():
            self.created = True
            self._begin()
        else:
            self._check_plan()

    # --- state that all workers of a study share ---

    def keep_parent(self, run_id: str) -> None:
        """Record the run of the whole study."""
        self._set_attr(_PARENT, run_id)

    def await_parent(self) -> str | None:
        """Wait for the creator to record the parent run; None if the creator died before."""
        return self._await(_PARENT)

    @property
    def has_data(self) -> bool:
        """Whether the digest of the data is recorded."""
        return _DATA in self._attrs()

    def check_data(self, digest: str) -> None:
        """:raises StudyError: if the study uses other photos, labels or splits."""
        before = self._attrs().get(_DATA, digest)
        if before != digest:
            raise StudyError(
                f"study={self.name}: uses other data (data_digest {before}, now {digest}); its "
                "trials cannot be compared with new ones. Start another study with study=NAME."
            )

    def keep_data(self, digest: str) -> None:
        """Record the digest of the data, once they have been logged."""
        self._set_attr(_DATA, digest)

    def finishing(self, run_id: str) -> TrialQueue:
        """A queue of one: the final test of the study in its current state, by one worker.

        :param run_id: the run that gets the results; a new one gets them again.

        As with trials, another worker repeats it if the first one dies.
        """
        with reachable(self.study):
            study = optuna.create_study(
                storage=self.storage,
                study_name=f"{self.name}, the end after {self.finished()} in {run_id}",
                direction="maximize",
                load_if_exists=True,
            )
        return TrialQueue(study, self.storage, 1)

    def count_tested(self, number: int) -> int:
        """Record that a trial was tested; returns how many different ones have been."""
        tested = sorted({*self._attrs().get(_TESTED, []), number})
        self._set_attr(_TESTED, tested)
        return len(tested)

    # --- trials ---

    def trials(self, deadline: float | None = None) -> Iterator[tuple[Trial, dict[str, Any]]]:
        """Yield trials for this worker and the values to try; see :meth:`TrialQueue.trials`."""
        self._seed_sampler()
        for trial in self.queue.trials(deadline):
            try:
                with reachable(self.study):
                    values = self._values(trial)
            except UpdateFinishedTrialError:
                continue  # another process has the trial now
            yield trial, values
            self._seed_sampler()

    def should_stop(self, trial: Trial, epoch: int, score: float) -> bool:
        """Report an epoch; returns whether to prune the trial.

        Trials with the original's or default settings are never pruned.
        """
        with reachable(self.study), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial.report(score, epoch)
            compared = not {BASELINE, DEFAULT}.isdisjoint(trial.user_attrs)
            return not compared and bool(trial.should_prune())

    def is_best(self, score: float, val_loss: float) -> bool:
        """Whether no complete trial is better so far.

        Of equal trials, the one with the lowest number is the best, and it may end last.
        """
        best = self.best()
        return best is None or (score, -val_loss) >= best.rank

    def best(self, *, baseline: bool = False, default: bool = False) -> TrialResult | None:
        """The complete trial with the highest score, then the lowest val_loss.

        :param baseline: look only at trials with the original's settings.
        :param default: look only at the trial with the package's defaults.
        """
        complete = [t for t in self.results() if t.state == "complete"]
        done = [t for t in complete if t.baseline >= baseline and t.default >= default]
        return max(done, key=lambda t: (*t.rank, -t.number), default=None)

    def results(self) -> list[TrialResult]:
        """The trials of the total."""
        return [read_result(t, self.plan.space) for t in self.queue.counted()]

    def finished(self) -> int:
        """How many trials of the total have ended."""
        return len(self.queue.finished())

    def table(self) -> pd.DataFrame:
        """One row a trial."""
        return as_table(self.results())

    def state_of(self, number: int) -> tuple[str, str]:
        """A trial's state and the reason for it."""
        for trial in self.queue.counted():
            if trial.number == number:
                return NAMES[trial.state], trial.user_attrs.get(FAILURE, "")
        return "interrupted", "its process was ended; the trial is repeated"

    # --- internal ---

    def _attrs(self) -> dict[str, Any]:
        with reachable(self.study):
            return self.study.user_attrs

    def _set_attr(self, name: str, value: Any) -> None:
        with reachable(self.study):
            self.study.set_user_attr(name, value)

    def _await(self, name: str) -> Any:
        """Wait for an attribute that the creator records; None if the creator died before."""
        until = time.monotonic() + CREATOR_SECONDS
        while True:
            attrs = self._attrs()
            died = _CREATOR in attrs and is_gone(attrs[_CREATOR])
            if name in attrs or died or time.monotonic() >= until:
                return attrs.get(name)
            time.sleep(0.2)

    def _is_begun(self) -> bool:
        """Whether an existing study has its plan and baselines; its creator may have died.

        :raises StudyError: if the study is not one of this project.
        """
        if _PLAN in self._attrs():
            return True
        foreign = any(PLANNED not in t.user_attrs for t in self.queue.all_trials())
        if foreign or self.study.direction != StudyDirection.MAXIMIZE:
            raise StudyError(
                f"study={self.name}: exists and does not belong to this project; choose another "
                "name with study=NAME"
            )
        return self._await(_PLAN) is not None

    def _begin(self) -> None:
        """Queue the first trials, then record the plan, which marks the study as complete."""
        self._set_attr(_CREATOR, process_name())
        queued = [(t.user_attrs[PLANNED], t.user_attrs[FIXED]) for t in self.queue.all_trials()]
        baselines, defaults = self.plan.baselines(), self.plan.defaults()
        first = baselines if defaults in baselines else [*baselines, defaults]
        # A total of so few trials has room for the baselines alone.
        for values in first[: max(self.plan.config.n_trials, len(baselines))]:
            marks = {BASELINE: values in baselines, DEFAULT: values == defaults}
            inside = {k: v for k, v in values.items() if v in self.plan.space[k]}
            # The sampler knows no values outside the space.
            outside = {k: v for k, v in values.items() if k not in inside}
            if (inside, outside) not in queued:
                true = {mark: True for mark, holds in marks.items() if holds}
                self.queue.enqueue(inside, **true, **{FIXED: outside})
        self._set_attr(_PLAN, self.plan.identity())

    def _check_plan(self) -> None:
        before, now = self._attrs()[_PLAN], self.plan.identity()
        differences = [
            f"{name}: was {before.get(name, 'not set')}, is {now.get(name, 'not set')}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if differences:
            raise StudyError(
                f"study={self.name}: is another search. Start another study with study=NAME, or "
                "repeat the original command:\n  " + "\n  ".join(differences)
            )

    def _values(self, trial: Trial) -> dict[str, Any]:
        """The values to try: the sampler's, or fixed ones that lie outside the space."""
        fixed = trial.user_attrs.get(FIXED, {})
        return {
            name: fixed[name] if name in fixed else suggest(trial, name, where)
            for name, where in self.plan.space.items()
        }

    def _seed_sampler(self) -> None:
        """Seed the sampler by the number of trials, so that a resumed study does not repeat its
        first values; also by the process, if several processes sample at once."""
        shared = is_database(self.plan.config.storage) or self.plan.config.jobs > 1
        own = os.getpid() if shared else 0
        number = len(self.queue.all_trials())
        seed = (self.plan.config.seed * 1_000_003 + number * 7919 + own) % 2**32
        self.study.sampler = make_sampler(self.plan, seed)
