"""The end of a search: the best trial's weights, tested once, beside the original's settings."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml

from ..config import TrainConfig
from ..modeling.metrics import mcnemar, scores_of_test
from ..modeling.models import ProductClassifier
from ..options import as_text
from ..tracking.mlflow_run_log import read_table, read_weights
from ..training.context import TrainingContext
from .space import SearchPlan
from .study import Search
from .trial_results import TrialResult
from .trials import HISTORY_FILE, WEIGHTS_FILE, in_words

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Tested:
    """A trial whose kept weights have been tested.

    :ivar history: one row an epoch.
    :ivar scores: best_val_accuracy, best_epoch, test_accuracy, test_accuracy_low,
        test_accuracy_high, test_loss.
    """

    trial: TrialResult
    config: TrainConfig
    model: ProductClassifier
    history: pd.DataFrame
    labels: np.ndarray
    logits: np.ndarray
    scores: dict[str, float]


def score_trial(plan: SearchPlan, context: TrainingContext, trial: TrialResult) -> Tested:
    """Build a trial's model with the weights of its best epoch and score the test split."""
    assert trial.run_id is not None
    assert trial.val_accuracy is not None
    assert trial.best_epoch is not None
    config = plan.trial_config(trial.values)
    model = context.new_model(config)
    model.load_state_dict(read_weights(trial.run_id, WEIGHTS_FILE))
    model.tta = config.tta
    labels, logits = context.test(model)
    scores = {
        "best_val_accuracy": trial.val_accuracy,
        "best_epoch": float(trial.best_epoch),
        **scores_of_test(labels, logits),
    }
    history = read_table(trial.run_id, HISTORY_FILE).apply(pd.to_numeric)
    return Tested(trial, config, model.eval(), history, labels, logits, scores)


def best_yaml(plan: SearchPlan, best: Tested, run_id: str) -> str:
    """The best trial's options as a file that ``train`` takes with ``config=``."""
    chosen = {
        field.name: getattr(best.config, field.name)
        for field in dataclasses.fields(TrainConfig)
        if field.name in plan.space or getattr(best.config, field.name) != field.default
    }
    for name in ("config", "register", "promote", "run_name"):
        chosen.pop(name, None)
    header = (
        f"# The best of study {plan.study_name()}, trial {best.trial.number}, run {run_id}.\n"
        "# mlflow run . -e train -P config=best.yaml\n"
    )
    return header + yaml.safe_dump(chosen, sort_keys=False)


def summarize(search: Search, best: Tested, baseline: Tested | None, looks: int) -> list[str]:
    """The study in words, as lines of Markdown."""
    results = search.results()
    states = pd.Series([t.state for t in results]).value_counts()
    counted = ", ".join(f"{count} {state}" for state, count in states.items())
    lines = [
        f"Study {search.name}: {len(results)} trials, {counted}.",
        "",
        f"- **Best: trial {best.trial.number}** ({in_words(best.trial.values)}): {_scores(best)}.",
    ]
    if baseline is None:
        lines.append("- The original's settings did not complete, so nothing stands beside it.")
    elif baseline.trial.number == best.trial.number:
        lines.append("- These are the original's settings: the search has found none better.")
    else:
        lines += [
            f"- Original's settings: trial {baseline.trial.number} "
            f"({in_words(baseline.trial.values)}): {_scores(baseline)}.",
            f"- {_difference(best, baseline)}",
        ]
    lines += _by_architecture(results)
    lines += [
        f"- Trial {t.number} failed: {t.failure.splitlines()[0]}" for t in results if t.failure
    ]
    often = "once" if looks == 1 else f"{looks} times, for {looks} best trials"
    lines += [
        "",
        "The validation accuracy has chosen the best trial, and so flatters it. The test split "
        f"was looked at {often}, after the choice.",
    ]
    return lines


def _scores(tested: Tested) -> str:
    s = tested.scores
    return (
        f"validation accuracy {s['best_val_accuracy']:.1%} in epoch {s['best_epoch']:.0f}, test "
        f"accuracy {s['test_accuracy']:.1%} of {len(tested.labels)} photos, 95 % interval "
        f"{s['test_accuracy_low']:.1%} to {s['test_accuracy_high']:.1%}"
    )


def compare(best: Tested, baseline: Tested) -> tuple[int, int, float]:
    """McNemar's test of the best trial against the original's settings on the test photos."""
    return mcnemar(best.labels, best.logits.argmax(axis=1), baseline.logits.argmax(axis=1))


def _difference(best: Tested, baseline: Tested) -> str:
    mine, its, p = compare(best, baseline)
    verdict = "more than chance" if p < _SIGNIFICANT else "no more than chance can explain"
    return (
        f"Of the test photos, {mine} are right only with the best and {its} only with the "
        f"original's settings: {verdict} (McNemar's exact test, p = {p:.2g})."
    )


def _by_architecture(results: list[TrialResult]) -> list[str]:
    if not any("model" in t.values for t in results):
        return []
    lines = ["", "| model | trials | complete | best validation accuracy | its trial |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in sorted({as_text(t.values["model"]) for t in results}):
        mine = [t for t in results if t.values["model"] == name]
        done = [t for t in mine if t.state == "complete" and t.val_accuracy is not None]
        top = max(done, key=lambda t: (t.val_accuracy, -(t.val_loss or 0.0)), default=None)
        accuracy = f"{top.val_accuracy:.1%} | {top.number}" if top else " | "
        lines.append(f"| {name} | {len(mine)} | {len(done)} | {accuracy} |")
    return [*lines, ""]
