"""The end of a search: the test of the best trial, of the default and the original's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import yaml

from ..config import TrainConfig
from ..console import EpochBar, say
from ..data.fold_splits import copy_sets
from ..data.splits import TEST
from ..modeling.metrics import holm, mcnemar, scores_of_test
from ..modeling.models import ProductClassifier
from ..modeling.strangers import StrangerResult
from ..options import as_text
from ..reports.comparison_statistics import chance_line
from ..reports.figure_text import measure_name
from ..tracking.mlflow_run_log import read_table, read_weights
from ..tracking.names import TRIAL_HISTORY_FILE, TRIAL_WEIGHTS_FILE
from ..tracking.run_log import NullRunLog
from ..training.context import TrainingContext
from ..training.refusal import attach_detector
from ..training.session import TestResult, TrainingSession
from .space import SearchPlan
from .study import Search
from .trial_results import TrialResult
from .trials import in_words


@dataclass(frozen=True)
class Tested:
    """A trial's best weights and their test.

    :ivar history: one row an epoch.
    """

    trial: TrialResult
    config: TrainConfig
    model: ProductClassifier
    history: pd.DataFrame
    test: TestResult


@dataclass(frozen=True)
class Reference:
    """Settings that the best trial is compared with.

    :ivar name: default or original; a prefix of metrics.
    :ivar tested: None if no trial with these settings completed.
    :ivar only_best: test photos that only the best trial classifies correctly; ``only_reference``
        only the reference.
    :ivar p: of McNemar's exact test; ``adjusted`` by Holm for all references.
    """

    name: str
    tested: Tested | None
    only_best: int = 0
    only_reference: int = 0
    p: float = 1.0
    adjusted: float = 1.0

    @property
    def metrics(self) -> dict[str, float]:
        """Its test accuracy with the interval, and the p value; nothing without a test."""
        if self.tested is None:
            return {}
        names = ("test_accuracy", "test_accuracy_low", "test_accuracy_high")
        scores = {f"{self.name}_{name}": self.tested.test.scores[name] for name in names}
        return {**scores, f"{self.name}_mcnemar_p": self.p}


def score_references(search: Search, context: TrainingContext, best: Tested) -> list[Reference]:
    """Score the default and the original's settings, and compare the best trial with both."""
    trials = {"default": search.best(default=True), "original": search.best(baseline=True)}
    known = {best.trial.number: best}
    for trial in trials.values():
        if trial and trial.number not in known:
            known[trial.number] = score_trial(search.plan, context, trial)
    tested = {name: known[trial.number] for name, trial in trials.items() if trial}
    counted = {name: _compare(context, best, reference) for name, reference in tested.items()}
    adjusted = dict(zip(counted, holm([p for _, _, p in counted.values()]), strict=True))
    return [
        Reference(name, tested[name], *counted[name], adjusted[name])
        if name in tested
        else Reference(name, None)
        for name in trials
    ]


def score_trial(
    plan: SearchPlan, context: TrainingContext, trial: TrialResult, *, final: bool = False
) -> Tested:
    """Load the weights of a trial's best epoch and score the test split.

    Each fold of a trial has a model of its own, so one is trained on train then.

    :param final: whether the model will be logged; it then gets a detector of strangers.
    """
    config = plan.trial_config(trial.values)
    context = context.with_resize(config.resize)
    if plan.config.folds:
        return _train_and_test(config, context, trial)
    assert trial.run_id is not None
    model = context.new_model(config)
    model.load_state_dict(read_weights(trial.run_id, TRIAL_WEIGHTS_FILE))
    model.tta = config.tta
    labels, logits, temperature = context.test(model)
    history = read_table(trial.run_id, TRIAL_HISTORY_FILE).apply(pd.to_numeric)
    best = history[history["epoch"] == trial.best_epoch].iloc[0]
    names = ("epoch", "val_accuracy", config.monitor)
    scores = {f"best_{name}": float(best[name]) for name in names}
    strangers = attach_detector(config, context, model) if final else StrangerResult()
    scores |= {**scores_of_test(labels, logits), **strangers.scores()}
    test = TestResult(labels, logits, scores, temperature, strangers)
    return Tested(trial, config, model.eval(), history, test)


def _train_and_test(config: TrainConfig, context: TrainingContext, trial: TrialResult) -> Tested:
    say(f"training with the values of trial {trial.number} on train, for the test")
    session = TrainingSession(config, context, NullRunLog())
    session.fit(EpochBar(f"trial {trial.number}", config.epochs))
    test = session.test()
    return Tested(trial, config, session.model, session.history_table(), test)


def best_yaml(plan: SearchPlan, best: Tested, run_id: str) -> str:
    """The best trial's options as a file for ``train`` with ``config=``."""
    chosen = {
        field.name: getattr(best.config, field.name)
        for field in dataclasses.fields(TrainConfig)
        if field.name in plan.space or getattr(best.config, field.name) != field.default
    }
    for name in ("config", "register", "promote", "run_name"):
        chosen.pop(name, None)
    header = (
        f"# Best of study {plan.study_name()}, trial {best.trial.number}, run {run_id}.\n"
        "# mlflow run . -e train -P config=best.yaml\n"
    )
    return header + yaml.safe_dump(chosen, sort_keys=False)


def summarize(
    search: Search, best: Tested, references: Sequence[Reference], times: int
) -> list[str]:
    """The summary of a study, as lines of Markdown."""
    results = search.results()
    states = pd.Series([t.state for t in results]).value_counts()
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [
        f"Study {search.name}: {len(results)} trials, {counted}.",
        "",
        f"- **Best: trial {best.trial.number}** ({in_words(best.trial.values)}): {_scores(best)}.",
    ]
    lines += [f"- {_reference_line(best, reference)}" for reference in references]
    lines += _by_architecture(results, measure_name(search.plan.config.monitor))
    lines += [
        f"- Trial {t.number} failed: {t.failure.splitlines()[0]}" for t in results if t.failure
    ]
    often = "once" if times == 1 else f"{times} times, for {times} best trials"
    lines += [
        "",
        f"The best trial was chosen by its {measure_name(search.plan.config.monitor)}"
        f"{_over_folds(search, best)}, which is therefore biased upwards. "
        f"The test split was used {often}, after the choice.",
    ]
    return lines


def _over_folds(search: Search, best: Tested) -> str:
    folds, score = search.plan.config.folds, best.trial.score or 0.0
    return f" of all photos outside test, in {folds} folds ({score:.1%})" if folds else ""


def _scores(tested: Tested) -> str:
    s = tested.test.scores
    return (
        f"validation accuracy {s['best_val_accuracy']:.1%} in epoch {s['best_epoch']:.0f}, test "
        f"accuracy {s['test_accuracy']:.1%} of {len(tested.test.labels)} photos, 95 % interval "
        f"{s['test_accuracy_low']:.1%} to {s['test_accuracy_high']:.1%}"
    )


def _compare(context: TrainingContext, best: Tested, other: Tested) -> tuple[int, int, float]:
    """McNemar's test of the best trial and another one on the test photos, copies together."""
    first, second = (tested.test.logits.argmax(axis=1) for tested in (best, other))
    sets = copy_sets(context.dataset.frame)[context.dataset.rows(TEST)].to_numpy()
    return mcnemar(best.test.labels, first, second, sets)


def _reference_line(best: Tested, reference: Reference) -> str:
    """What the best trial gains over the default or the original's settings."""
    title, tested = _TITLES[reference.name], reference.tested
    if tested is None:
        return f"{title}: no trial with them has completed, so there is no comparison."
    if tested.trial.number == best.trial.number:
        return f"{title}: they are the best trial; the search found nothing better."
    gain = best.test.scores["test_accuracy"] - tested.test.scores["test_accuracy"]
    return (
        f"{title}: trial {tested.trial.number} ({in_words(tested.trial.values)}): "
        f"{_scores(tested)}. The best trial's test accuracy is {_points(gain)}: "
        f"{reference.only_best} test photos are right only with the best trial, "
        f"{reference.only_reference} only with these settings. "
        + chance_line(reference.p, reference.adjusted)
    )


def _points(gain: float) -> str:
    if gain == 0:
        return "the same"
    return f"{100 * abs(gain):.1f} points {'higher' if gain > 0 else 'lower'}"


_TITLES = {"default": "Default settings", "original": "Original's settings"}


def _by_architecture(results: list[TrialResult], measure: str) -> list[str]:
    if not any("model" in t.values for t in results):
        return []
    lines = ["", f"| model | trials | complete | best {measure} | trial |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in sorted({as_text(t.values["model"]) for t in results}):
        mine = [t for t in results if t.values["model"] == name]
        done = [t for t in mine if t.state == "complete"]
        top = max(done, key=lambda t: t.rank, default=None)
        score = f"{top.score:.1%} | {top.number}" if top else " | "
        lines.append(f"| {name} | {len(mine)} | {len(done)} | {score} |")
    return [*lines, ""]
