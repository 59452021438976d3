"""One search in its storage: opened or gone on with, its sampler and pruner, its best trial."""

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
from .queue import (
    FAILURE,
    PLANNED,
    TrialQueue,
    counting,
    counts,
    is_final,
)
from .sampling import make_pruner, make_sampler, suggest
from .space import SearchPlan
from .storage import is_database, open_storage, reachable, study_file
from .trial_results import BASELINE, FIXED, NAMES, TrialResult, as_table, read_result

_CREATOR = "creator"
_PLAN, _PARENT, _DATA, _LOOKS = "plan", "parent_run", "data_digest", "tested_trials"
# The creator of a study says within this time what it is about, and which run is its parent.
_CREATOR_SECONDS = 20.0


class Search:
    """A study, the queue of its trials, and what its workers agree on."""

    def __init__(self, plan: SearchPlan, folder: Path) -> None:
        """Open the study of a plan, or begin it.

        :param folder: of the tracking store, where the study is kept unless ``storage`` says else.
        :raises StudyError: when it was begun with other options, or cannot be reached.
        """
        self.plan = plan
        self._optuna_quiet()
        self.name = plan.study_name()
        where = plan.config.storage
        file = study_file(where, self.name, folder)
        self.storage = open_storage(where, file)
        make_sampler(plan, plan.config.seed)  # a mistake in its settings leaves nothing behind
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
            self._compare()

    # --- what all workers of a study agree on ---

    @property
    def parent(self) -> str | None:
        """The run that stands for the whole study."""
        with reachable(self.study):
            return self.study.user_attrs.get(_PARENT)

    @parent.setter
    def parent(self, run_id: str) -> None:
        with reachable(self.study):
            self.study.set_user_attr(_PARENT, run_id)

    def await_parent(self) -> str | None:
        """The parent run, which the study's creator names soon; None if it died before."""
        return self._await(_PARENT)

    def check_data(self, digest: str) -> None:
        """:raises StudyError: when the study was begun with other photos, labels or splits."""
        with reachable(self.study):
            before = self.study.user_attrs.get(_DATA, digest)
        if before != digest:
            raise StudyError(
                f"study={self.name}: was begun with other data (data_digest {before}, now "
                f"{digest}); its trials cannot be compared with new ones. Give this search a "
                "name of its own with study=NAME."
            )

    def keep_data(self, digest: str) -> None:
        """Remember what data the study is about, when they have been logged."""
        with reachable(self.study):
            self.study.set_user_attr(_DATA, digest)

    @property
    def has_data(self) -> bool:
        """Whether the data that the study is about have been read before."""
        with reachable(self.study):
            return _DATA in self.study.user_attrs

    def finishing(self) -> TrialQueue:
        """A queue of one: the end of the study as it stands, for one of its workers to do.

        As with trials, it is taken up again where the worker dies at it.
        """
        with reachable(self.study):
            study = optuna.create_study(
                storage=self.storage,
                study_name=f"{self.name}, the end after {self.finished()}",
                direction="maximize",
                load_if_exists=True,
            )
        return TrialQueue(study, self.storage, 1)

    def count_look(self, number: int) -> int:
        """Remember that this trial has been tested; returns how many different ones have been."""
        with reachable(self.study):
            looks = sorted({*self.study.user_attrs.get(_LOOKS, []), number})
            self.study.set_user_attr(_LOOKS, looks)
            return len(looks)

    # --- trials ---

    def trials(self, deadline: float | None = None) -> Iterator[tuple[Trial, dict[str, Any]]]:
        """Trials for this worker with the values to try; see :meth:`TrialQueue.trials`."""
        self._seed_sampler()
        for trial in self.queue.trials(deadline):
            try:
                with reachable(self.study):
                    values = self._values(trial)
            except UpdateFinishedTrialError:
                continue  # taken for dead, and given to another
            yield trial, values
            self._seed_sampler()

    def should_stop(self, trial: Trial, epoch: int, val_accuracy: float) -> bool:
        """Report an epoch; says whether the pruner gives the trial up. It never does a baseline."""
        with reachable(self.study), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial.report(val_accuracy, epoch)
            return BASELINE not in trial.user_attrs and bool(trial.should_prune())

    def is_best(self, val_accuracy: float, val_loss: float) -> bool:
        """Whether no complete trial is better so far.

        Of equal ones any may be the best at last: that goes by numbers, not by which ended first.
        """
        best = self.best()
        if best is None or best.val_accuracy is None or best.val_loss is None:
            return True
        return (val_accuracy, -val_loss) >= (best.val_accuracy, -best.val_loss)

    def best(self, *, baseline: bool = False) -> TrialResult | None:
        """The complete trial of highest val_accuracy; of equal ones, of lowest val_loss.

        :param baseline: among those with the original's settings alone.
        """
        done = [t for t in self.results() if t.state == "complete" and t.baseline >= baseline]
        return max(
            done, key=lambda t: (t.val_accuracy, -(t.val_loss or 0.0), -t.number), default=None
        )

    def results(self) -> list[TrialResult]:
        """Every trial that counts."""
        return [read_result(t, self.plan.space) for t in counting(self.queue.all_trials())]

    def finished(self) -> int:
        """How many trials have ended, cut-short ones not counted."""
        return sum(map(is_final, counting(self.queue.all_trials())))

    def table(self) -> pd.DataFrame:
        """A row a trial."""
        return as_table(self.results())

    def state_of(self, number: int) -> tuple[str, str]:
        """A trial's state in words, and why it is so; a cut-short one is interrupted."""
        for trial in self.queue.all_trials():
            if trial.number == number and counts(trial):
                return NAMES[trial.state], trial.user_attrs.get(FAILURE, "")
        return "interrupted", "its process was ended; the trial is repeated"

    # --- inside ---

    def _await(self, name: str) -> Any:
        """What the study's creator writes down soon; None if it died before."""
        until = time.monotonic() + _CREATOR_SECONDS
        while True:
            with reachable(self.study):
                known = self.study.user_attrs
            died = _CREATOR in known and is_gone(known[_CREATOR])
            if name in known or died or time.monotonic() >= until:
                return known.get(name)
            time.sleep(0.2)

    def _is_begun(self) -> bool:
        """Whether a study that is there has all that it begins with; its creator may have died.

        :raises StudyError: when it is none of this project's.
        """
        foreign = any(PLANNED not in t.user_attrs for t in self.queue.all_trials())
        with reachable(self.study):
            known = _PLAN in self.study.user_attrs
            foreign = foreign or self.study.direction != StudyDirection.MAXIMIZE
        if foreign and not known:
            raise StudyError(
                f"study={self.name}: is there already, and is none of this project's; choose "
                "another name with study=NAME"
            )
        return known or self._await(_PLAN) is not None

    def _begin(self) -> None:
        """Queue the baselines; then say what the study is about, which tells that they are."""
        with reachable(self.study):
            self.study.set_user_attr(_CREATOR, process_name())
        there = [t.user_attrs for t in self.queue.all_trials()]
        for values in self.plan.baselines():
            inside = {k: v for k, v in values.items() if v in self.plan.space[k]}
            # Values outside the space are tried all the same, past the sampler.
            outside = {k: v for k, v in values.items() if k not in inside}
            if not any((t[PLANNED], t[FIXED]) == (inside, outside) for t in there):
                self.queue.enqueue(inside, **{BASELINE: True, FIXED: outside})
        with reachable(self.study):
            self.study.set_user_attr(_PLAN, self.plan.identity())

    def _compare(self) -> None:
        with reachable(self.study):
            before = self.study.user_attrs[_PLAN]
        now = self.plan.identity()
        differences = [
            f"{name}: was {before.get(name, 'not set')}, is {now.get(name, 'not set')}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if differences:
            raise StudyError(
                f"study={self.name}: was begun with another search. Name another study with "
                "study=NAME, or call it as it was begun:\n  " + "\n  ".join(differences)
            )

    def _values(self, trial: Trial) -> dict[str, Any]:
        """The values to try: chosen by the sampler, or fixed where they lie outside the space."""
        fixed = trial.user_attrs.get(FIXED, {})
        return {
            name: fixed[name] if name in fixed else suggest(trial, name, where)
            for name, where in self.plan.space.items()
        }

    def _seed_sampler(self) -> None:
        """Let a trial's values follow from its number, so that a study that goes on does not
        choose again what it began with; and from the process, where several might ask at once."""
        shared = is_database(self.plan.config.storage) or self.plan.config.jobs > 1
        own = os.getpid() if shared else 0
        number = len(self.queue.all_trials())
        seed = (self.plan.config.seed * 1_000_003 + number * 7919 + own) % 2**32
        self.study.sampler = make_sampler(self.plan, seed)

    @staticmethod
    def _optuna_quiet() -> None:
        """Optuna tells of every trial; so do we, in our words."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
