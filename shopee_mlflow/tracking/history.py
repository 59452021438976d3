"""Trainings of the past, read back from their runs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from ..config import TrainConfig, read_yaml
from ..errors import TrackingError
from ..options import as_text, parse_option
from .mlflow_run_log import read_table
from .names import (
    ANALYSES,
    BEST_FILE,
    CROSS_VALIDATE,
    CV_HISTORY_FILE,
    CV_PREDICTIONS_FILE,
    FOLD,
    HISTORY_FILE,
    KIND_TAG,
    PREDICTIONS_FILE,
    STUDY_TAG,
    TRIAL_TAG,
)
from .runs import find_run, unquoted
from .store import STORE_ERRORS, downloaded, quieten, store_error

_log = logging.getLogger(__name__)

CHOSEN_BY = "best_val_accuracy"
# Runs that are read at most, in search of trainings of this project.
_CONSIDERED = 1000
_OPTIONS = {*(f.name for f in dataclasses.fields(TrainConfig)), "folds"}


@dataclass(frozen=True)
class PastRun:
    """A training, or a search's best one, as its run tells of it.

    :ivar experiment: its name.
    :ivar options: those of a training in one spelling; of a search, those of its best trial.
    :ivar metrics: best_val_accuracy, best_epoch and others; of a cross-validation, their means.
    :ivar epochs: columns epoch, val_loss, val_accuracy; of a cross-validation, the folds' means.
    :ivar predictions: image, label_group, predicted and more of the test photos, as text; None
        for a trial, which is not tested. A cross-validation tests all photos.
    :ivar interval: 95 % interval of a cross-validated accuracy; None for others.
    """

    run_id: str
    name: str
    experiment: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    options: Mapping[str, str]
    epochs: pd.DataFrame = field(repr=False)
    predictions: pd.DataFrame | None = field(repr=False)
    interval: tuple[float, float] | None = None


def past_run(run_id: str) -> PastRun:
    """A training by the id of its run; trials of a search can be had, too.

    :raises TrackingError: when there is none, or it has no test predictions and is no trial.
    """
    quieten()
    return _read(find_run(run_id))


def best_runs(experiment: str, count: int) -> list[PastRun]:
    """Finished trainings of an experiment, those of highest best_val_accuracy first.

    A search counts as one, with its best trial; its trials do not count.

    :param count: how many at most.
    :raises TrackingError: when there is no such experiment, or no training in it.
    """
    quieten()
    try:
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            there = sorted(e.name for e in mlflow.search_experiments())
            raise TrackingError(
                f"experiment={experiment}: no such experiment in {mlflow.get_tracking_uri()}; "
                f"there are: {', '.join(there)}"
            )
        # Evaluations have no best_val_accuracy, trials no test_accuracy: both are left out.
        runs = MlflowClient().search_runs(
            [found.experiment_id],
            f"attributes.status = 'FINISHED' and metrics.{CHOSEN_BY} >= 0 "
            "and metrics.test_accuracy >= 0",
            order_by=[f"metrics.{CHOSEN_BY} DESC", "attributes.start_time ASC"],
            max_results=_CONSIDERED,
        )
    except STORE_ERRORS as error:
        raise store_error(error) from error
    trainings: list[PastRun] = []
    for run in runs:
        if len(trainings) == count:
            break
        if run.data.tags.get(KIND_TAG) == FOLD:
            continue
        try:
            trainings.append(_read(run))
        except TrackingError as error:
            _log.warning(
                "%s (run %s) is left out: no training of this project, or its artifacts are gone "
                "(%s)",
                run.info.run_name,
                run.info.run_id,
                error,
            )
    if not trainings:
        raise TrackingError(
            f"experiment={experiment}: has no training run that has finished; train first, or "
            "name another experiment."
        )
    return trainings


def _read(run: MlflowRun) -> PastRun:
    run_id, tags, metrics = run.info.run_id, run.data.tags, run.data.metrics
    is_trial = TRIAL_TAG in tags
    what = f"run={run_id} ({run.info.run_name}, {run.info.status})"
    kind = tags.get(KIND_TAG, "")
    if kind in ANALYSES:
        raise TrackingError(f"{what}: was made by {kind} and is no training. Name trainings.")
    is_cv = kind == CROSS_VALIDATE
    if (f"cv_{CHOSEN_BY}" if is_cv else CHOSEN_BY) not in metrics:
        raise TrackingError(f"{what}: is no training that has ended well, so it is not compared.")
    if is_cv:
        metrics = {**metrics, **{name: metrics[f"cv_{name}"] for name in (CHOSEN_BY, "best_epoch")}}
    try:
        options = {name: _one_spelling(name, text) for name, text in _params(run).items()}
        if STUDY_TAG in tags:
            options |= _best_options(run_id)
        return PastRun(
            run_id,
            run.info.run_name or run_id[:8],
            mlflow.get_experiment(run.info.experiment_id).name,
            tags,
            metrics,
            options,
            _epochs(run_id, CV_HISTORY_FILE if is_cv else HISTORY_FILE),
            None
            if is_trial
            else _predictions(run_id, what, CV_PREDICTIONS_FILE if is_cv else PREDICTIONS_FILE),
            (metrics["cv_accuracy_low"], metrics["cv_accuracy_high"]) if is_cv else None,
        )
    except STORE_ERRORS as error:
        raise store_error(error) from error


def _params(run: MlflowRun) -> dict[str, str]:
    """The parameters of a training, without the quotes with which they are logged."""
    return {name: unquoted(run.data.params[name]) for name in _OPTIONS & run.data.params.keys()}


def _one_spelling(name: str, text: str) -> str:
    """1e-3 and 0.001 are the same; what is no value, such as a search's range, stays."""
    try:
        return as_text(parse_option(TrainConfig, name, text))
    except ValueError:
        return text


def _best_options(run_id: str) -> dict[str, str]:
    with downloaded(f"runs:/{run_id}/{BEST_FILE}") as path:
        return {name: as_text(value) for name, value in read_yaml(path).items()}


def _epochs(run_id: str, file: str) -> pd.DataFrame:
    """From the metrics where they were logged by epoch, as in a training, else from the table."""
    client = MlflowClient()
    names = ("val_loss", "val_accuracy")
    by_step = {n: {m.step: m.value for m in client.get_metric_history(run_id, n)} for n in names}
    if all(by_step.values()):
        return pd.DataFrame(by_step).rename_axis("epoch").sort_index().reset_index()
    return read_table(run_id, file)[["epoch", *names]].apply(pd.to_numeric)


def _predictions(run_id: str, what: str, file: str) -> pd.DataFrame:
    try:
        return read_table(run_id, file)
    except TrackingError as error:
        raise TrackingError(
            f"{what}: has no test predictions ({file}), so it is not compared. "
            "Choose trainings that have ended well."
        ) from error
