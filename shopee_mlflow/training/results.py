"""What every training leaves in its run, however it came about: data, scores, tables, the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from ..config import TrainConfig, as_params
from ..data.dataset import Dataset
from ..data.splits import TEST, TRAIN, VAL, has_copy_in_train
from ..modeling.grad_cam import grad_cam
from ..modeling.metrics import (
    calibration,
    chance_calibration_error,
    class_report,
    confusion,
    expected_calibration_error,
    score,
    softmax,
)
from ..modeling.models import ProductClassifier
from ..reports.training import ExplainFn, TrainingFacts, training_page
from ..reports.training_figures import confusion_figure, learning_curves
from ..tracking.run_log import RunLog
from ..tracking.runs import MANIFEST_FILE
from .context import TrainingContext

REPORT_FILE = "report.html"
# Few, since each takes the memory of a training step.
_LOOKED_AT_ONCE = 4

_log = logging.getLogger(__name__)


def log_data(run: RunLog, dataset: Dataset, config: TrainConfig) -> None:
    """The manifest, the record of cleaning and the dataset's fingerprint."""
    manifest = dataset.manifest()
    run.log_table(manifest, MANIFEST_FILE)
    run.log_text("\n".join(dataset.lines()) + "\n", "data/cleaning.txt")
    run.log_dataset(manifest, str(dataset.source), _dataset_name(config), dataset.digest)
    run.log_tags({"data_digest": dataset.digest, "classes": str(len(dataset.classes))})
    counts = {**dataset.cleaning.counts(), "leaks": dataset.leaks}
    counts |= {f"{name}_images": len(dataset.rows(name)) for name in (TRAIN, VAL, TEST)}
    run.log_metrics({f"data/{name}": float(count) for name, count in counts.items()})


def log_results(
    run: RunLog,
    bench: TrainingContext,
    model: ProductClassifier,
    config: TrainConfig,
    history: pd.DataFrame,
    labels: np.ndarray,
    logits: np.ndarray,
    scores: Mapping[str, float],
) -> None:
    """Scores, curves, confusion matrix, report by class, every test prediction, and the page that
    shows them.

    :param model: with the weights that gave the logits.
    :param labels: (T,) int64, and ``logits`` (T, C), in the order of the test split.
    """
    dataset = bench.dataset
    run.log_metrics(scores)
    predicted = logits.argmax(axis=1)
    counts = confusion(labels, predicted, dataset.classes)
    run.log_table(history, "training/history.csv")
    best_epoch = int(scores["best_epoch"])
    run.log_figure(learning_curves(history, best_epoch), "training/learning_curves.png")
    title = f"Test accuracy {scores['test_accuracy']:.1%} of {len(labels)} photos"
    run.log_figure(confusion_figure(counts, title), "test/confusion_matrix.png")
    run.log_table(counts, "test/confusion_matrix.csv", index=True)
    report = class_report(labels, predicted, dataset.classes)
    run.log_table(report, "test/report.csv")
    run.log_table(_predictions(dataset, logits), "test/predictions.csv")
    certainty = calibration(labels, logits)
    run.log_table(certainty, "test/calibration.csv")
    test = dataset.rows(TEST)
    names = dataset.frame.loc[test].reset_index(drop=True)
    facts = TrainingFacts(
        title=f"Training of {config.model}",
        lead=f"Run {run.run_id}, data {dataset.digest}, {dataset.source.name}",
        options=as_params(config),
        data_lines=dataset.lines(),
        scores=scores,
        history=history,
        photos=lambda rows: dataset.photos(test[rows]),
        names=names,
        labels=labels,
        probabilities=softmax(logits),
        classes=dataset.classes,
        class_scores=report,
        counts=counts,
        calibration=certainty,
        calibration_error=expected_calibration_error(certainty),
        chance_error=chance_calibration_error(certainty),
        subsets=_with_and_without_copy(dataset, labels, logits),
    )
    run.log_text(training_page(facts, _look(model)), REPORT_FILE)


def _with_and_without_copy(
    dataset: Dataset, labels: np.ndarray, logits: np.ndarray
) -> dict[str, tuple[int, float, float, float]]:
    """Accuracy with interval of test photos that have a copy in train, and of those without."""
    copied = has_copy_in_train(dataset.frame)[dataset.rows(TEST)].to_numpy()
    parts = {"with a copy in train": copied, "without": ~copied}
    result = {}
    for name, chosen in parts.items():
        if chosen.any():
            s = score(labels[chosen], logits[chosen])
            low, high = s["accuracy_low"], s["accuracy_high"]
            result[name] = (int(chosen.sum()), s["accuracy"], low, high)
    return result


def _look(model: ProductClassifier) -> ExplainFn:
    def look(photos: np.ndarray, predicted: np.ndarray) -> np.ndarray | None:
        parts = []
        for start in range(0, len(photos), _LOOKED_AT_ONCE):
            part = slice(start, start + _LOOKED_AT_ONCE)
            images = torch.from_numpy(np.ascontiguousarray(photos[part])).permute(0, 3, 1, 2)
            try:
                maps = grad_cam(model, images, torch.from_numpy(predicted[part]))
            except torch.OutOfMemoryError as error:
                _log.warning("The report does not show where the network looked: %s", error)
                return None
            if maps is None:
                return None
            parts.append(maps.numpy())
        return np.concatenate(parts)

    return look


def _dataset_name(config: TrainConfig) -> str:
    return "sample" if config.data == "sample" else "catalogue"


def _predictions(dataset: Dataset, logits: np.ndarray) -> pd.DataFrame:
    """Each test photo with its true and predicted label group and the probability."""
    probabilities = softmax(logits)
    predicted = probabilities.argmax(axis=1)
    table = dataset.frame.loc[dataset.rows(TEST), ["image", "label_group"]].copy()
    table["predicted"] = [dataset.classes[i] for i in predicted]
    table["probability"] = probabilities.max(axis=1).round(6)
    return table
