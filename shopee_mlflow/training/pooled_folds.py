"""The results of a cross-validation: the predictions of all folds together, as one test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from ..config import CrossValidateConfig, as_params
from ..data.dataset import Dataset
from ..data.fold_splits import copy_sets
from ..data.titles import without_formulas
from ..modeling.clustered import clustered_interval, macro_f1_interval
from ..modeling.metrics import (
    calibration,
    class_report,
    confusion,
    expected_calibration_error,
    score,
    softmax,
    with_label_names,
)
from ..modeling.strangers import StrangerResult
from ..modeling.temperature import Temperature, calibration_facts, fit_temperature
from ..reports.pages import Table
from ..reports.training import STILL_FALLING, still_falling, training_page
from ..reports.training_facts import TrainingFacts
from ..reports.training_figures import confusion_figure, learning_curves
from ..tracking.names import (
    CV_CALIBRATION_FILE,
    CV_FOLDS_FILE,
    CV_HISTORY_FILE,
    CV_ISSUES_FILE,
    CV_LOGITS_FILE,
    CV_PREDICTIONS_FILE,
    CV_STRANGER_CURVE_FILE,
    CV_STRANGERS_FILE,
    REPORT_FILE,
)
from ..tracking.run_log import RunLog
from .folds import FoldResult
from .label_issues import label_issues, label_review, open_issues
from .pooled_strangers import pool_strangers
from .results import log_strangers, predictions_of

# Metrics of the whole cross-validation; each fold's accuracy has its number as the step.
FOLD_METRIC = "cv_fold_accuracy"


@dataclass(frozen=True)
class PooledFolds:
    """Out-of-fold predictions: each photo is predicted by the model that has not seen its fold.

    :ivar logits: (N, C) float32, in the order of the dataset's rows.
    :ivar scores: cv_accuracy and cv_macro_f1, each with _low and _high, cv_loss,
        cv_top5_accuracy, cv_calibration_error; the folds' means cv_best_val_accuracy and
        cv_best_epoch.
    :ivar predictions: image, label_group, predicted, probability, copy_set, fold of each photo.
    :ivar issues: the labels that the predictions dispute, see :func:`.label_issues`.
    :ivar folds: one row per fold.
    :ivar history: one row per epoch, means over the folds that trained so long.
    :ivar temperature: of the final model, fitted on the predictions of all photos.
    :ivar calibrated: calibration errors before and after the temperatures of the folds.
    :ivar threshold: of the final model's detector of strangers, the mean of the folds; None unless
        all folds have one. ``strangers``: the measurement of all folds.
    """

    logits: np.ndarray = field(repr=False)
    scores: dict[str, float]
    predictions: pd.DataFrame = field(repr=False)
    issues: pd.DataFrame = field(repr=False)
    folds: pd.DataFrame = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    temperature: Temperature
    calibrated: dict[str, float | str] = field(repr=False)
    threshold: float | None = None
    strangers: StrangerResult = field(default_factory=StrangerResult, repr=False)


def pool(results: Sequence[FoldResult], data: Dataset) -> PooledFolds:
    """The results of all folds as those of one test on all photos.

    The intervals respect sets of copies, see :mod:`..modeling.clustered`.

    :param data: its splits are the folds.
    """
    logits = np.zeros((len(data), len(data.classes)), np.float32)
    uncalibrated = np.zeros_like(logits)
    for fold in results:
        logits[fold.rows] = fold.logits
        uncalibrated[fold.rows] = fold.logits * np.float32(fold.temperature)
    labels, predicted = data.frame["label"].to_numpy(np.int64), logits.argmax(axis=1)
    sets = copy_sets(data.frame).to_numpy()
    values = score(labels, logits)
    values["accuracy_low"], values["accuracy_high"] = clustered_interval(predicted == labels, sets)
    low, high = macro_f1_interval(labels, predicted, sets)
    values |= {"macro_f1_low": low, "macro_f1_high": high}
    values["calibration_error"] = expected_calibration_error(calibration(labels, logits))
    for name in ("best_val_accuracy", "best_epoch"):
        values[name] = float(np.mean([fold.scores[name] for fold in results]))
    temperature = fit_temperature(labels, uncalibrated)
    strangers = pool_strangers(
        [fold.strangers for fold in results], [fold.rows for fold in results], predicted == labels
    )
    values |= strangers.scores()
    thresholds = [fold.threshold for fold in results if fold.threshold is not None]
    histories = pd.concat([fold.history for fold in results])
    return PooledFolds(
        logits,
        {f"cv_{name}": value for name, value in values.items()},
        _predictions(data, logits),
        label_issues(data, logits, pd.concat([fold.nearest for fold in results])),
        pd.DataFrame([_fold_row(fold, data) for fold in results]),
        histories.groupby("epoch").mean().reset_index(),
        temperature,
        {
            **calibration_facts(labels, uncalibrated, logits, temperature),
            "words": "each fold has a temperature, fitted on its validation photos",
        },
        float(np.mean(thresholds)) if len(thresholds) == len(results) else None,
        strangers,
    )


def log_pooled(
    run: RunLog,
    pooled: PooledFolds,
    data: Dataset,
    config: CrossValidateConfig,
    label_names: Sequence[str],
) -> None:
    """Log scores, out-of-fold predictions and logits, tables, figures and the report page."""
    labels, logits = data.frame["label"].to_numpy(np.int64), pooled.logits
    predicted = logits.argmax(axis=1)
    run.log_metrics(pooled.scores)
    for number, accuracy in enumerate(pooled.folds["test_accuracy"], start=1):
        run.log_metrics({FOLD_METRIC: accuracy}, step=number)
    run.log_table(pooled.predictions, CV_PREDICTIONS_FILE)
    run.log_table(without_formulas(pooled.issues), CV_ISSUES_FILE)
    run.log_weights({"logits": torch.from_numpy(logits)}, CV_LOGITS_FILE)
    run.log_table(pooled.folds, CV_FOLDS_FILE)
    run.log_table(pooled.history, CV_HISTORY_FILE)
    best_epoch = round(pooled.scores["cv_best_epoch"])
    run.log_figure(learning_curves(pooled.history, best_epoch), "cv/learning_curves.png")
    counts = confusion(labels, predicted, data.classes)
    title = f"Cross-validated accuracy {pooled.scores['cv_accuracy']:.1%} of {len(data):,} photos"
    run.log_figure(confusion_figure(counts, title, label_names), "cv/confusion_matrix.png")
    run.log_table(counts, "cv/confusion_matrix.csv", index=True)
    report = with_label_names(class_report(labels, predicted, data.classes), label_names)
    run.log_table(report, "cv/report.csv")
    certainty = calibration(labels, logits)
    run.log_table(certainty, "cv/calibration.csv")
    calibrated = pooled.calibrated
    run.log_text(json.dumps(calibrated, indent=1) + "\n", CV_CALIBRATION_FILE)
    facts = TrainingFacts(
        title=f"Cross-validation of {config.model}",
        lead=f"Run {run.run_id}, data {data.digest}, {data.source.name}",
        options=as_params(config),
        data_lines=data.lines(),
        scores={"best_epoch": best_epoch},
        history=pooled.history,
        photos=data.photos,
        names=data.frame,
        labels=labels,
        probabilities=softmax(logits),
        classes=data.classes,
        class_scores=report,
        counts=counts,
        calibration=certainty,
        calibrated=calibrated,
        strangers=log_strangers(run, pooled.strangers, CV_STRANGERS_FILE, CV_STRANGER_CURVE_FILE),
        subsets={},
        label_names=list(label_names),
        headline=_headline(pooled, data),
        learned=_curves_text(pooled),
        folds=_folds_table(pooled.folds),
        review=label_review(pooled.issues, data, label_names),
    )
    # There is no map of where the network looked: each fold has a network of its own.
    run.log_text(training_page(facts, lambda *_: None), REPORT_FILE)


def summary(pooled: PooledFolds, data: Dataset) -> list[str]:
    """The result in words."""
    s = pooled.scores
    accuracies, disputed = pooled.folds["test_accuracy"], len(open_issues(pooled.issues))
    return [
        f"cross-validated accuracy {s['cv_accuracy']:.1%} of {len(data):,} photos, 95 % interval "
        f"{s['cv_accuracy_low']:.1%} to {s['cv_accuracy_high']:.1%}; {len(pooled.folds)} folds "
        f"from {accuracies.min():.1%} to {accuracies.max():.1%}",
        f"macro F1 {s['cv_macro_f1']:.1%}, 95 % interval {s['cv_macro_f1_low']:.1%} to "
        f"{s['cv_macro_f1_high']:.1%}; mean best epoch {s['cv_best_epoch']:.1f}",
        f"disputed labels: {disputed:,}, listed for a review in {CV_ISSUES_FILE} of the run",
        *pooled.strangers.words[-1:],
    ]


def _predictions(data: Dataset, logits: np.ndarray) -> pd.DataFrame:
    table = predictions_of(data, np.arange(len(data)), logits)
    return table.assign(fold=data.frame["split"])


def _fold_row(fold: FoldResult, data: Dataset) -> dict[str, object]:
    labels = data.frame["label"].to_numpy(np.int64)[fold.rows]
    values = score(labels, fold.logits)
    return {
        "fold": fold.name,
        "photos": len(fold.rows),
        **{f"test_{name}": values[name] for name in ("accuracy", "accuracy_low", "accuracy_high")},
        "test_macro_f1": values["macro_f1"],
        "best_val_accuracy": fold.scores["best_val_accuracy"],
        "best_epoch": int(fold.scores["best_epoch"]),
        "epochs": len(fold.history),
        "run_id": fold.run_id,
    }


def _headline(pooled: PooledFolds, data: Dataset) -> list[tuple[str, str]]:
    s = pooled.scores
    return [
        ("Cross-validated accuracy", f"{s['cv_accuracy']:.1%}"),
        ("95 % interval", f"{s['cv_accuracy_low']:.1%} to {s['cv_accuracy_high']:.1%}"),
        ("Photos, each tested once", f"{len(data):,} of {len(data.classes):,} groups"),
        ("Macro F1", f"{s['cv_macro_f1']:.1%}"),
        ("Mean best epoch", f"{s['cv_best_epoch']:.1f} of {len(pooled.history)}"),
    ]


def _curves_text(pooled: PooledFolds) -> str:
    numbers = ", ".join(str(number) for number in pooled.folds["best_epoch"])
    words = f"The curves are means over the folds. Their best epochs are {numbers}."
    falling = still_falling(pooled.history["val_loss"])
    return f"{words} {STILL_FALLING}" if falling else words


def _folds_table(folds: pd.DataFrame) -> Table:
    shares = ["test_accuracy", "test_macro_f1", "best_val_accuracy"]
    shown = folds.assign(**{name: folds[name].map("{:.1%}".format) for name in shares})
    low, high = folds["test_accuracy_low"], folds["test_accuracy_high"]
    intervals = [f"{a:.1%} to {b:.1%}" for a, b in zip(low, high, strict=True)]
    caption = (
        "Each fold was tested by a model that was trained on the others. The overall interval "
        "counts copies of a photo as dependent. It describes the choice of photos, not that of "
        "seeds. Probabilities come from a different model in each fold."
    )
    columns = ["fold", "photos", "test_accuracy", "test_macro_f1", "best_val_accuracy"]
    table = shown[columns].assign(best_epoch=folds["best_epoch"])
    table.insert(3, "95 % interval", intervals)
    table.columns = [name.replace("_", " ").replace("f1", "F1") for name in table.columns]
    return Table("Folds", caption, table)
