"""Log what a training produces: data, scores, tables, figures, the report page, the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from ..config import TrainConfig, as_params
from ..console import duration
from ..data.dataset import Dataset
from ..data.fold_splits import copy_sets
from ..data.splits import SPLITS, TEST, has_copy_in_train
from ..data_config import SAMPLE
from ..modeling.grad_cam import grad_cam
from ..modeling.metrics import (
    calibration,
    class_report,
    confusion,
    score,
    softmax,
    with_label_names,
)
from ..modeling.models import ProductClassifier
from ..modeling.strangers import StrangerResult
from ..modeling.temperature import calibration_facts
from ..reports.training import training_page
from ..reports.training_facts import ExplainFn, StrangerFacts, TrainingFacts
from ..reports.training_figures import confusion_figure, learning_curves
from ..tracking.links import report_link
from ..tracking.names import (
    CALIBRATION_FILE,
    CLEANING_FILE,
    CORRECTIONS_FILE,
    DESCRIPTION_TAG,
    DIGEST_TAG,
    HISTORY_FILE,
    LEFT_OUT_FILE,
    MANIFEST_FILE,
    PREDICTIONS_FILE,
    PROFILE_FILE,
    REPORT_FILE,
    STRANGER_CURVE_FILE,
    STRANGER_PHOTOS_FILE,
    STRANGERS_FILE,
)
from ..tracking.run_log import RunLog
from .naming import changed_options
from .session import TestResult, TrainingSession

# Batch size of Grad-CAM. It is small, since each photo needs as much memory as in training.
_EXPLAIN_BATCH = 4

_log = logging.getLogger(__name__)


def log_data(run: RunLog, dataset: Dataset, config: TrainConfig) -> None:
    """Log the manifest, the record of cleaning, and the dataset with its fingerprint and counts."""
    # With phashes, by which evaluate finds copies of training photos.
    phashes = dataset.frame[["image", "image_phash"]]
    manifest = dataset.manifest().merge(phashes, on="image", validate="one_to_one")
    run.log_table(manifest, MANIFEST_FILE)
    run.log_text("\n".join(dataset.lines()) + "\n", CLEANING_FILE)
    run.log_table(dataset.cleaning.left_out_table(), LEFT_OUT_FILE)
    if dataset.cleaning.corrections is not None:
        run.log_table(dataset.cleaning.corrections, CORRECTIONS_FILE)
    counts = {**dataset.cleaning.counts(), "label_groups": len(dataset.classes)}
    counts |= {f"{name}_images": count for name, count in dataset.split_sizes().items()}
    counts["leaks"] = dataset.leaks
    run.log_text(json.dumps(counts, indent=1) + "\n", PROFILE_FILE)
    name = _dataset_name(dataset, config)
    run.log_dataset(manifest, str(dataset.source), name, dataset.digest, counts)
    run.log_tags({DIGEST_TAG: dataset.digest, "classes": str(len(dataset.classes))})


def log_training(session: TrainingSession, test: TestResult, seconds: float) -> str:
    """Log the model and all results of a training that has ended; returns the model's id.

    :param seconds: what the training has taken, for the description.
    :raises: one of ``STORE_ERRORS`` when the store is not available.
    """
    run, config = session.run, session.config
    run.wait_for_store()
    # The model first: training takes hours, but the report can be redrawn in seconds.
    model_id = run.log_model(session.model, test.scores, config.serialization)
    history = session.history_table()
    custom = session.context.custom.params(config)
    log_results(run, session.context.dataset, session.model, config, history, test, custom)
    run.log_tags({DESCRIPTION_TAG: _description(session, test, seconds)})
    run.flush()
    return model_id


def log_results(
    run: RunLog,
    dataset: Dataset,
    model: ProductClassifier,
    config: TrainConfig,
    history: pd.DataFrame,
    test: TestResult,
    custom: Mapping[str, str] | None = None,
) -> None:
    """Log scores, curves, confusion matrix, class report, test predictions and the report page.

    :param model: the model that computed the test logits.
    :param history: one row per epoch.
    :param custom: values of options that objects of the caller replace.
    """
    labels, logits, scores = test.labels, test.logits, test.scores
    run.log_metrics(scores)
    predicted = logits.argmax(axis=1)
    counts = confusion(labels, predicted, dataset.classes)
    run.log_table(history, HISTORY_FILE)
    best_epoch = int(scores["best_epoch"])
    run.log_figure(learning_curves(history, best_epoch), "training/learning_curves.png")
    title = f"Test accuracy {scores['test_accuracy']:.1%} of {len(labels)} photos"
    run.log_figure(confusion_figure(counts, title, model.label_names), "test/confusion_matrix.png")
    run.log_table(counts, "test/confusion_matrix.csv", index=True)
    report = with_label_names(class_report(labels, predicted, dataset.classes), model.label_names)
    run.log_table(report, "test/report.csv")
    run.log_table(predictions_table(dataset, logits), PREDICTIONS_FILE)
    certainty = calibration(labels, logits)
    run.log_table(certainty, "test/calibration.csv")
    calibrated = calibration_facts(
        labels, logits * np.float32(test.temperature.value), logits, test.temperature
    )
    run.log_text(json.dumps(calibrated, indent=1) + "\n", CALIBRATION_FILE)
    rows = dataset.rows(TEST)
    facts = TrainingFacts(
        title=f"Training of {config.model}",
        lead=f"Run {run.run_id}, data {dataset.digest}, {dataset.source.name}",
        options={**as_params(config), **(custom or {})},
        data_lines=dataset.lines(),
        scores=scores,
        history=history,
        photos=lambda chosen: dataset.photos(rows[chosen]),
        names=dataset.frame.loc[rows].reset_index(drop=True),
        labels=labels,
        probabilities=softmax(logits),
        classes=dataset.classes,
        class_scores=report,
        counts=counts,
        calibration=certainty,
        calibrated=calibrated,
        strangers=log_strangers(run, test.strangers),
        subsets=_with_and_without_copy(dataset, labels, logits),
        label_names=list(model.label_names),
    )
    run.log_text(training_page(facts, _explain_fn(model)), REPORT_FILE)


def log_strangers(
    run: RunLog,
    found: StrangerResult,
    facts_file: str = STRANGERS_FILE,
    curve_file: str = STRANGER_CURVE_FILE,
) -> StrangerFacts | None:
    """Log the measurement of a detector of strangers; returns what the page shows of it."""
    if not found.words:
        return None
    facts = {**found.facts, "words": found.words}
    run.log_text(json.dumps(facts, indent=1) + "\n", facts_file)
    if len(found.photos):
        run.log_table(found.photos, STRANGER_PHOTOS_FILE)
    if len(found.curve):
        run.log_table(found.curve, curve_file)
    return StrangerFacts(found.words, found.curve, found.facts.get("strangers_accepted"))


def _with_and_without_copy(
    dataset: Dataset, labels: np.ndarray, logits: np.ndarray
) -> dict[str, tuple[int, float, float, float]]:
    """Accuracy of test photos with and without a copy in train.

    :returns: words -> number of photos, accuracy, lower and upper bound of its interval.
    """
    copied = has_copy_in_train(dataset.frame, dataset.frame["copy_set"])[
        dataset.rows(TEST)
    ].to_numpy()
    parts = {"with a copy in train": copied, "without": ~copied}
    result = {}
    for name, chosen in parts.items():
        if chosen.any():
            s = score(labels[chosen], logits[chosen])
            low, high = s["accuracy_low"], s["accuracy_high"]
            result[name] = (int(chosen.sum()), s["accuracy"], low, high)
    return result


def _explain_fn(model: ProductClassifier) -> ExplainFn:
    """A function from photos and predicted classes to Grad-CAM maps, or None without maps."""

    def explain(photos: np.ndarray, predicted: np.ndarray) -> np.ndarray | None:
        maps = []
        for start in range(0, len(photos), _EXPLAIN_BATCH):
            part = slice(start, start + _EXPLAIN_BATCH)
            images = torch.from_numpy(np.ascontiguousarray(photos[part])).permute(0, 3, 1, 2)
            try:
                batch_maps = grad_cam(model, images, torch.from_numpy(predicted[part]))
            except torch.OutOfMemoryError as error:
                _log.warning("The report has no Grad-CAM maps: %s", error)
                return None
            if batch_maps is None:
                return None
            maps.append(batch_maps.numpy())
        return np.concatenate(maps)

    return explain


def _description(session: TrainingSession, test: TestResult, seconds: float) -> str:
    """The result in a few lines of Markdown, which MLflow's UI shows above the metrics."""
    config, data, s = session.config, session.context.dataset, test.scores
    photos, groups = len(data.frame), len(data.classes)
    sizes = " / ".join(f"{len(data.rows(name)):,} {name}" for name in SPLITS)
    other = changed_options(config)
    report = report_link(session.run.experiment_id, session.run.run_id, REPORT_FILE)
    lines = [
        f"Test accuracy {s['test_accuracy']:.1%}, 95 % interval {s['test_accuracy_low']:.1%} "
        f"to {s['test_accuracy_high']:.1%}, {len(test.labels):,} photos. Validation accuracy "
        f"{s['best_val_accuracy']:.1%} in epoch {s['best_epoch']:.0f} of {len(session.history)}.",
        f"{config.model}, freeze={config.freeze}; {_dataset_name(data, config)}: {photos:,} photos "
        f"of {groups:,} label groups ({sizes}); {duration(seconds)} on {session.context.machine}.",
        f"Not default: {', '.join(other) or 'nothing'}. Report: {report}",
    ]
    # Two spaces end a line in Markdown; the UI shows four lines before "Show more".
    return "  \n".join(lines)


def _dataset_name(dataset: Dataset, config: TrainConfig) -> str:
    """The name of the catalogue's folder, since most CSV files are called train.csv."""
    name = dataset.source.absolute().parent.name
    return SAMPLE if config.data == SAMPLE else name or "catalogue"


def predictions_table(dataset: Dataset, logits: np.ndarray) -> pd.DataFrame:
    """One row per test photo: true and predicted label group, probability, set of copies."""
    return predictions_of(dataset, dataset.rows(TEST), logits)


def predictions_of(dataset: Dataset, rows: np.ndarray, logits: np.ndarray) -> pd.DataFrame:
    """The same for any rows: image, label_group, predicted, probability, copy_set."""
    probabilities = softmax(logits)
    table = dataset.frame.loc[rows, ["image", "label_group"]].copy()
    table["predicted"] = [dataset.classes[i] for i in probabilities.argmax(axis=1)]
    table["probability"] = probabilities.max(axis=1).round(6)
    table["copy_set"] = copy_sets(dataset.frame)[rows]
    return table
