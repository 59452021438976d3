"""The end of a search: the test of the best trial and of the original's settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pandas as pd
import yaml

from ..config import TrainConfig
from ..modeling.metrics import mcnemar, scores_of_test
from ..modeling.models import ProductClassifier
from ..options import as_text
from ..tracking.mlflow_run_log import read_table, read_weights
from ..tracking.names import TRIAL_HISTORY_FILE, TRIAL_WEIGHTS_FILE
from ..training.context import TrainingContext
from ..training.session import TestResult
from .space import SearchPlan
from .study import Search
from .trial_results import TrialResult
from .trials import in_words

_SIGNIFICANT = 0.05


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


def score_trial(plan: SearchPlan, context: TrainingContext, trial: TrialResult) -> Tested:
    """Load the weights of a trial's best epoch and score the test split."""
    assert trial.run_id is not None
    config = plan.trial_config(trial.values)
    model = context.new_model(config)
    model.load_state_dict(read_weights(trial.run_id, TRIAL_WEIGHTS_FILE))
    model.tta = config.tta
    labels, logits = context.test(model)
    history = read_table(trial.run_id, TRIAL_HISTORY_FILE).apply(pd.to_numeric)
    best = history[history["epoch"] == trial.best_epoch].iloc[0]
    names = ("epoch", "val_accuracy", config.monitor)
    scores = {f"best_{name}": float(best[name]) for name in names}
    test = TestResult(labels, logits, {**scores, **scores_of_test(labels, logits)})
    return Tested(trial, config, model.eval(), history, test)


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


def summarize(search: Search, best: Tested, baseline: Tested | None, times: int) -> list[str]:
    """The summary of a study, as lines of Markdown."""
    results = search.results()
    states = pd.Series([t.state for t in results]).value_counts()
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [
        f"Study {search.name}: {len(results)} trials, {counted}.",
        "",
        f"- **Best: trial {best.trial.number}** ({in_words(best.trial.values)}): {_scores(best)}.",
    ]
    if baseline is None:
        lines.append("- The original's settings did not complete, so there is no comparison.")
    elif baseline.trial.number == best.trial.number:
        lines.append("- These are the original's settings: the search found nothing better.")
    else:
        lines += [
            f"- Original's settings: trial {baseline.trial.number} "
            f"({in_words(baseline.trial.values)}): {_scores(baseline)}.",
            f"- {_difference(best, baseline)}",
        ]
    lines += _by_architecture(results, _in_words(search.plan.config.monitor))
    lines += [
        f"- Trial {t.number} failed: {t.failure.splitlines()[0]}" for t in results if t.failure
    ]
    often = "once" if times == 1 else f"{times} times, for {times} best trials"
    lines += [
        "",
        f"The best trial was chosen by its {_in_words(search.plan.config.monitor)}, which is "
        "therefore biased upwards. "
        f"The test split was used {often}, after the choice.",
    ]
    return lines


def _scores(tested: Tested) -> str:
    s = tested.test.scores
    return (
        f"validation accuracy {s['best_val_accuracy']:.1%} in epoch {s['best_epoch']:.0f}, test "
        f"accuracy {s['test_accuracy']:.1%} of {len(tested.test.labels)} photos, 95 % interval "
        f"{s['test_accuracy_low']:.1%} to {s['test_accuracy_high']:.1%}"
    )


def compare(best: Tested, baseline: Tested) -> tuple[int, int, float]:
    """McNemar's test of the best trial and the original's settings on the test photos."""
    mine, other = (tested.test.logits.argmax(axis=1) for tested in (best, baseline))
    return mcnemar(best.test.labels, mine, other)


def _difference(best: Tested, baseline: Tested) -> str:
    only_best, only_baseline, p = compare(best, baseline)
    verdict = "significant" if p < _SIGNIFICANT else "not significant"
    return (
        f"Of the test photos, {only_best} are classified correctly only by the best trial and "
        f"{only_baseline} only with the original's settings: {verdict} (McNemar's exact test, "
        f"p = {p:.2g})."
    )


def _in_words(monitor: str) -> str:
    words = monitor.removeprefix("val_").replace("_", " ")
    return "validation " + words.replace("f1", "F1").replace("top5", "top-5")


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
