"""The trainings of a cross-validation: one for each fold, and the final one on all photos."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from ..config import CrossValidateConfig, as_params, check_epoch
from ..console import EpochBar, say
from ..data.dataset import Dataset
from ..data.fold_splits import fold_names, fold_split
from ..data.splits import TEST, TRAIN
from ..data_config import NONE
from ..errors import TrackingError
from ..modeling.models import ProductClassifier
from ..modeling.strangers import StrangerResult
from ..tracking.finding import runs_with_tag
from ..tracking.mlflow_run_log import read_json, read_table, read_weights
from ..tracking.names import (
    DIGEST_TAG,
    FAILURE_TAG,
    FOLD,
    FOLD_LOGITS_FILE,
    FOLD_NEAREST_FILE,
    FOLD_TAG,
    HISTORY_FILE,
    PARENT_TAG,
    PREDICTIONS_FILE,
    PROCESS_TAG,
    REFIT,
    STRANGERS_FILE,
)
from ..tracking.processes import process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import Run, close_run, open_run
from .context import TrainingContext
from .nearest_photos import nearest_photos
from .refusal import attach_final_detector
from .results import log_data, log_strangers, predictions_table
from .session import TestResult, TrainingSession

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoldResult:
    """A finished fold.

    :ivar name: fold1, fold2, ...
    :ivar rows: (T,) int64, the rows of its photos; ``logits`` (T, C) float32, of these photos.
    :ivar nearest: the training photos nearest to each of them, see :func:`.nearest_photos`.
    :ivar temperature: by which the logits are divided.
    :ivar threshold: of its detector of strangers; None without one. ``strangers``: its measurement.
    :ivar scores: best_val_accuracy, best_epoch, test_accuracy, test_loss and others.
    :ivar history: one row per epoch.
    """

    name: str
    run_id: str
    rows: np.ndarray = field(repr=False)
    logits: np.ndarray = field(repr=False)
    nearest: pd.DataFrame = field(repr=False)
    scores: Mapping[str, float]
    history: pd.DataFrame = field(repr=False)
    temperature: float = 1.0
    threshold: float | None = None
    strangers: StrangerResult = field(default_factory=StrangerResult, repr=False)


def fold_datasets(data: Dataset, config: CrossValidateConfig) -> dict[str, Dataset]:
    """For each fold the photos with it as the test split.

    :param data: has the folds as splits.
    :raises CatalogError: when the photos are too few, or their copies too many, for such splits.
    :raises ConfigError: when a training step would be longer than an epoch of a fold.
    """
    datasets = {
        name: data.with_splits(fold_split(data.frame, name, config))
        for name in fold_names(config.folds)
    }
    check_epoch(config, min(len(dataset.rows(TRAIN)) for dataset in datasets.values()))
    return datasets


def run_folds(
    config: CrossValidateConfig,
    context: TrainingContext,
    datasets: Mapping[str, Dataset],
    parent: RunLog,
) -> list[FoldResult]:
    """Train and test each fold in a child run; finished folds of an earlier attempt are kept.

    :param context: what the trainings of ``datasets`` share.
    :param datasets: from :func:`fold_datasets`.
    """
    found = _finished(parent, datasets)
    if found:
        say(f"{len(found)} of {config.folds} folds are finished already: {', '.join(found)}")
    return [
        found.get(name) or _run_fold(config, context.with_dataset(dataset), name, parent)
        for name, dataset in datasets.items()
    ]


def train_on_all(
    config: CrossValidateConfig,
    context: TrainingContext,
    epochs: int,
    parent: RunLog,
    threshold: float | None = None,
) -> ProductClassifier:
    """Train the final model on all photos, without validation, in a child run.

    :param threshold: of its detector of strangers; None: it gets none.

    The learning rate follows the schedule of ``config.epochs``, as in the folds.

    :param epochs: after so many epochs training ends.
    """
    data = context.dataset
    everything = data.with_splits(pd.Series(TRAIN, data.frame.index))
    config = dataclasses.replace(config, patience=0)
    with open_run("final model", parent=parent, kind=REFIT, tags=_owner()) as run:
        run.log_params(as_params(config))
        session = TrainingSession(config, context.with_dataset(everything), run)
        session.fit(EpochBar("final model", epochs), lambda epoch: epoch.number >= epochs)
        session.load_best()
        if threshold is not None:
            attach_final_detector(session.context, session.model, session.inputs, threshold)
        run.log_table(session.history_table(), HISTORY_FILE)
    return session.model


def _run_fold(
    config: CrossValidateConfig, context: TrainingContext, name: str, parent: RunLog
) -> FoldResult:
    data = context.dataset
    with open_run(name, parent=parent, kind=FOLD, tags={FOLD_TAG: name, **_owner()}) as run:
        run.log_params(as_params(config))
        log_data(run, data, config)
        session = TrainingSession(config, context, run)
        session.fit(EpochBar(name, config.epochs))
        test = session.test()
        history, nearest = session.history_table(), nearest_photos(session)
        run.log_weights(_weights(test), FOLD_LOGITS_FILE)
        run.log_table(predictions_table(data, test.logits), PREDICTIONS_FILE)
        run.log_table(nearest, FOLD_NEAREST_FILE)
        run.log_table(history, HISTORY_FILE)
        run.log_metrics(test.scores)
        log_strangers(run, test.strangers)
    say(
        f"{name} of {config.folds}: test accuracy {test.scores['test_accuracy']:.1%} of "
        f"{len(test.labels):,} photos, best epoch {test.scores['best_epoch']:.0f} of "
        f"{len(history)}",
        *test.strangers.words[-1:],
    )
    detector = test.strangers.detector
    return FoldResult(
        name,
        run.run_id,
        data.rows(TEST),
        test.logits,
        nearest,
        test.scores,
        history,
        test.temperature.value,
        detector.threshold if detector else None,
        test.strangers,
    )


def _weights(test: TestResult) -> dict[str, torch.Tensor]:
    """The logits of a fold, its scores of strangers, and the numbers the final model needs."""
    numbers = {"temperature": test.temperature.value}
    if test.strangers.detector:
        numbers["threshold"] = test.strangers.detector.threshold
    stored = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    scores = {
        "known_scores": torch.from_numpy(test.strangers.known_scores),
        "stranger_scores": torch.from_numpy(test.strangers.stranger_scores),
    }
    return {"logits": torch.from_numpy(test.logits), **scores, **stored}


def _owner() -> dict[str, str]:
    return {PROCESS_TAG: process_name()}


def _finished(parent: RunLog, datasets: Mapping[str, Dataset]) -> dict[str, FoldResult]:
    """The folds that an earlier attempt has finished; runs that it left open are ended."""
    found: dict[str, FoldResult] = {}
    for run in runs_with_tag(parent.experiment_id, PARENT_TAG, parent.run_id):
        name, tags = run.data.tags.get(FOLD_TAG, ""), run.data.tags
        if run.info.status == "RUNNING":
            what = f"fold {name}" if name else "final training"
            reason = f"its process {tags.get(PROCESS_TAG)} is gone; this {what} starts again"
            close_run(run.info.run_id, "KILLED", {FAILURE_TAG: reason})
        elif run.info.status == "FINISHED" and name in datasets and name not in found:
            if tags.get(DIGEST_TAG) != datasets[name].digest:
                continue
            try:
                found[name] = _read(run, name, datasets[name])
            except TrackingError as error:
                _log.warning("%s starts again, since its results cannot be read: %s", name, error)
    return {name: found[name] for name in datasets if name in found}


def _read(run: Run, name: str, data: Dataset) -> FoldResult:
    run_id, rows = run.info.run_id, data.rows(TEST)
    # The order of rows in the catalogue may have changed.
    stored = read_weights(run_id, FOLD_LOGITS_FILE)
    logits = stored["logits"].numpy()
    # Folds of earlier versions have neither.
    temperature = float(stored.get("temperature", torch.tensor(1.0)))
    threshold = float(stored["threshold"]) if "threshold" in stored else None
    images = read_table(run_id, PREDICTIONS_FILE)["image"]
    place = pd.Series(range(len(images)), index=images)
    order = place[data.frame["image"].iloc[rows]].to_numpy()
    history = read_table(run_id, HISTORY_FILE).astype(float).astype({"epoch": int})
    nearest, metrics = read_table(run_id, FOLD_NEAREST_FILE), run.data.metrics
    return FoldResult(
        name,
        run_id,
        rows,
        logits[order],
        nearest,
        metrics,
        history,
        temperature,
        threshold,
        _read_strangers(run_id, data, stored, order),
    )


def _read_strangers(
    run_id: str, data: Dataset, stored: Mapping[str, torch.Tensor], order: np.ndarray
) -> StrangerResult:
    """The measurement of strangers that a fold has logged."""
    assert isinstance(data.config, CrossValidateConfig)
    if data.config.unknown == NONE:
        return StrangerResult()
    if "known_scores" not in stored:
        return StrangerResult(words=["a fold of an earlier version has not logged its strangers"])
    facts = read_json(run_id, STRANGERS_FILE)
    words, known = facts.pop("words"), stored["known_scores"].numpy()
    return StrangerResult(
        words=words,
        facts=facts,
        known_scores=known[order] if len(known) else known,
        stranger_scores=stored["stranger_scores"].numpy(),
    )
