"""One search in its storage: opened or gone on with, its sampler and pruner, its best trial."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from ..config import NONE
from ..errors import ConfigError, StudyError
from .queue import FAILURE, REPEATS, TrialQueue, counts, is_final, queue_again
from .space import Range, SearchPlan
from .storage import is_database, open_storage, reachable, study_file

BASELINE, FIXED, RUN_ID = "baseline", "fixed", "run_id"
VAL_LOSS, BEST_EPOCH, SECONDS = "val_loss", "best_epoch", "seconds"
_PLAN, _PARENT, _DATA, _LOOKS = "plan", "parent_run", "data_digest", "tested_trials"
_NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
# The creator of a study says within this time which run is its parent.
_PARENT_SECONDS = 20.0


@dataclass(frozen=True)
class TrialResult:
    """What a trial found, or how far it came.

    :ivar state: complete, pruned, failed, running or waiting.
    :ivar values: of the searched options.
    :ivar val_accuracy: of its best epoch; of a pruned trial, of its last.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    val_accuracy: float | None
    val_loss: float | None
    best_epoch: int | None
    epochs: int
    seconds: float | None
    failure: str
    baseline: bool
    run_id: str | None


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
        self.storage = open_storage(where, file, queue_again)
        self.created = True
        pruner = _pruner(plan)
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
        if self.created:
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
        until = time.monotonic() + _PARENT_SECONDS
        while not (parent := self.parent) and time.monotonic() < until:
            time.sleep(0.5)
        return parent

    def check_data(self, digest: str) -> None:
        """:raises StudyError: when the study was begun with other photos, labels or splits."""
        with reachable(self.study):
            before = self.study.user_attrs.get(_DATA)
            if before is None:
                self.study.set_user_attr(_DATA, digest)
            elif before != digest:
                raise StudyError(
                    f"study={self.name}: was begun with other data (data_digest {before}, now "
                    f"{digest}); its trials cannot be compared with new ones. Give this search a "
                    "name of its own with study=NAME."
                )

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
            with reachable(self.study):
                values = self._values(trial)
            yield trial, values
            self._seed_sampler()

    def should_stop(self, trial: Trial, epoch: int, val_accuracy: float) -> bool:
        """Report an epoch; says whether the pruner gives the trial up. It never does a baseline."""
        with reachable(self.study), warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial.report(val_accuracy, epoch)
            return BASELINE not in trial.user_attrs and trial.should_prune()

    def is_best(self, val_accuracy: float, val_loss: float) -> bool:
        """Whether a result is better than those of all complete trials so far."""
        best = self.best()
        if best is None or best.val_accuracy is None or best.val_loss is None:
            return True
        return (val_accuracy, -val_loss) > (best.val_accuracy, -best.val_loss)

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
        return [self._result(t) for t in self.queue.all_trials() if counts(t)]

    def finished(self) -> int:
        """How many trials have ended, cut-short ones not counted."""
        return sum(is_final(t) for t in self.queue.all_trials())

    def table(self) -> pd.DataFrame:
        """A row a trial."""
        rows = [
            {
                "trial": t.number,
                "state": t.state,
                **t.values,
                "val_accuracy": t.val_accuracy,
                "val_loss": t.val_loss,
                "best_epoch": t.best_epoch,
                "epochs": t.epochs,
                "seconds": t.seconds,
                "baseline": t.baseline,
                "failure": t.failure,
                "run_id": t.run_id,
            }
            for t in self.results()
        ]
        return pd.DataFrame(rows)

    def state_of(self, number: int) -> str:
        """A trial's state in words; a cut-short one is interrupted."""
        trials = self.queue.all_trials()
        if number >= len(trials):
            return "interrupted"
        trial = trials[number]
        return _NAMES[trial.state] if counts(trial) else "interrupted"

    # --- inside ---

    def _begin(self) -> None:
        with reachable(self.study):
            self.study.set_user_attr(_PLAN, self.plan.identity())
        for values in self.plan.baselines():
            inside = {k: v for k, v in values.items() if v in self.plan.space[k]}
            # Values outside the space are tried all the same, past the sampler.
            outside = {k: v for k, v in values.items() if k not in inside}
            self.queue.enqueue(inside, **{BASELINE: True, FIXED: outside})

    def _compare(self) -> None:
        with reachable(self.study):
            before = self.study.user_attrs.get(_PLAN)
        if before is None:
            raise StudyError(
                f"study={self.name}: is there already, and is none of this project's; choose "
                "another name with study=NAME"
            )
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
            name: fixed[name] if name in fixed else _suggest(trial, name, where)
            for name, where in self.plan.space.items()
        }

    def _seed_sampler(self) -> None:
        """Let a trial's values follow from its number, so that a study that goes on does not
        choose again what it began with; and from the process, where several might ask at once."""
        shared = is_database(self.plan.config.storage) or self.plan.config.jobs > 1
        own = os.getpid() if shared else 0
        number = len(self.queue.all_trials())
        seed = (self.plan.config.seed * 1_000_003 + number * 7919 + own) % 2**32
        self.study.sampler = _sampler(self.plan, seed)

    def _result(self, trial: FrozenTrial) -> TrialResult:
        about = trial.user_attrs
        values = {**trial.params, **about.get(FIXED, {})}
        ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        return TrialResult(
            number=trial.number,
            state=_NAMES[trial.state],
            values={k: values.get(k) for k in self.plan.space},
            val_accuracy=trial.value if ended else None,
            val_loss=about.get(VAL_LOSS),
            best_epoch=about.get(BEST_EPOCH),
            epochs=len(trial.intermediate_values),
            seconds=about.get(SECONDS),
            failure=about.get(FAILURE, ""),
            baseline=BASELINE in about,
            run_id=about.get(RUN_ID),
        )

    @staticmethod
    def _optuna_quiet() -> None:
        """Optuna tells of every trial; so do we, in our words."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)


def repeats(trial: Trial) -> int | None:
    """The number of the cut-short trial that this one repeats."""
    return trial.user_attrs.get(REPEATS)


def _suggest(trial: Trial, name: str, where: Any) -> Any:
    if not isinstance(where, Range):
        return trial.suggest_categorical(name, list(where.values))
    if where.whole:
        low, high = int(where.low), int(where.high)
        return trial.suggest_int(name, low, high, step=where.step or 1, log=where.log)
    return trial.suggest_float(name, where.low, where.high, log=where.log)


def _sampler(plan: SearchPlan, seed: int) -> BaseSampler:
    kinds = {"tpe": TPESampler, "random": RandomSampler}
    return _make(kinds[plan.config.sampler], "sampler_settings", plan.sampler_settings, seed=seed)


def _pruner(plan: SearchPlan) -> BasePruner:
    if plan.config.pruner == NONE:
        return NopPruner()
    if plan.config.pruner == "hyperband":
        given = {"max_resource": plan.config.epochs, **plan.pruner_settings}
        return _make(HyperbandPruner, "pruner_settings", given)
    return _make(MedianPruner, "pruner_settings", plan.pruner_settings)


def _make(kind: Any, section: str, settings: Mapping[str, Any], **ours: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**{**settings, **ours})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            [f"{section}: {kind.__name__} of Optuna does not take {dict(settings)}: {error}"]
        ) from error
