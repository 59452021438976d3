"""Read finished trainings back from their runs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from ..config import TrainConfig
from ..errors import TrackingError
from ..options import as_text, parse_option
from ..yaml_file import read_yaml
from .finding import find_run, unquoted
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
from .store import STORE_ERRORS, downloaded, quieten, store_error

_log = logging.getLogger(__name__)

CHOSEN_BY = "best_val_accuracy"
# The most runs to read when looking for trainings of this project.
_CONSIDERED = 1000
_OPTIONS = {*(f.name for f in dataclasses.fields(TrainConfig)), "folds"}


@dataclass(frozen=True)
class PastRun:
    """A finished training, a search with its best trial, or a cross-validation, from its run.

    :ivar experiment: name of the experiment.
    :ivar options: options of the training, in normalized spelling; for a search, those of its best
        trial.
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
    """Read a training, or a trial of a search, by the id of its run.

    :raises TrackingError: when there is no such run, or a training has no test predictions.
    """
    quieten()
    return _read(find_run(run_id))


def best_runs(experiment: str, count: int) -> list[PastRun]:
    """Finished trainings of an experiment, the highest best_val_accuracy first.

    A search counts as one training, with the results of its best trial, and a cross-validation with
    the mean best_val_accuracy of its folds.

    :param count: the maximum number of trainings.
    :raises TrackingError: when there is no such experiment, or no training in it.
    """
    quieten()
    try:
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            there = sorted(e.name for e in mlflow.search_experiments())
            raise TrackingError(
                f"experiment={experiment}: no such experiment in {mlflow.get_tracking_uri()}; "
                f"its experiments are: {', '.join(there)}"
            )
        # Evaluations have no best_val_accuracy, trials no test_accuracy: both are left out.
        runs = [
            *_finished(found.experiment_id, CHOSEN_BY, "test_accuracy"),
            *_finished(found.experiment_id, f"cv_{CHOSEN_BY}", "cv_accuracy"),
        ]
        # Stable: of equal ones, trainings come first, and each in the order of their start.
        runs.sort(key=lambda run: -_value_of(run))
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
            _log.warning("%s (run %s) is left out: %s", run.info.run_name, run.info.run_id, error)
    if not trainings:
        if runs:
            raise TrackingError(
                f"experiment={experiment}: none of its finished runs can be compared; the reasons "
                "are above."
            )
        raise TrackingError(
            f"experiment={experiment}: has no finished training; train first, or name another "
            "experiment."
        )
    return trainings


def _finished(experiment_id: str, order: str, tested: str) -> list[MlflowRun]:
    """Finished runs with both metrics, the highest ``order`` first."""
    return list(
        MlflowClient().search_runs(
            [experiment_id],
            f"attributes.status = 'FINISHED' and metrics.{order} >= 0 and metrics.{tested} >= 0",
            order_by=[f"metrics.{order} DESC", "attributes.start_time ASC"],
            max_results=_CONSIDERED,
        )
    )


def _value_of(run: MlflowRun) -> float:
    """The best_val_accuracy of a training, or the mean of a cross-validation."""
    metrics: dict[str, float] = run.data.metrics
    return metrics.get(CHOSEN_BY, metrics.get(f"cv_{CHOSEN_BY}", 0.0))


def _read(run: MlflowRun) -> PastRun:
    run_id, tags, metrics = run.info.run_id, run.data.tags, run.data.metrics
    is_trial = TRIAL_TAG in tags
    what = f"run={run_id} ({run.info.run_name}, {run.info.status})"
    kind = tags.get(KIND_TAG, "")
    if kind in ANALYSES:
        raise TrackingError(f"{what}: is a run of {kind}, not a training. Name training runs.")
    is_cv = kind == CROSS_VALIDATE
    if (f"cv_{CHOSEN_BY}" if is_cv else CHOSEN_BY) not in metrics:
        raise TrackingError(f"{what}: is not a finished training and cannot be compared.")
    if is_cv:
        metrics = {**metrics, **{name: metrics[f"cv_{name}"] for name in (CHOSEN_BY, "best_epoch")}}
    try:
        options = {name: _normalized(name, text) for name, text in _params(run).items()}
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
            else _predictions(run, what, CV_PREDICTIONS_FILE if is_cv else PREDICTIONS_FILE),
            (metrics["cv_accuracy_low"], metrics["cv_accuracy_high"]) if is_cv else None,
        )
    except STORE_ERRORS as error:
        raise store_error(error) from error


def _params(run: MlflowRun) -> dict[str, str]:
    """The parameters of a training, without the shell quotes with which they are logged."""
    return {name: unquoted(run.data.params[name]) for name in _OPTIONS & run.data.params.keys()}


def _normalized(name: str, text: str) -> str:
    """The normal spelling of a value: 1e-3 becomes 0.001. Text that is not a value is unchanged."""
    try:
        return as_text(parse_option(TrainConfig, name, text))
    except ValueError:
        return text


def _best_options(run_id: str) -> dict[str, str]:
    with downloaded(f"runs:/{run_id}/{BEST_FILE}") as path:
        return {name: as_text(value) for name, value in read_yaml(path).items()}


def _epochs(run_id: str, file: str) -> pd.DataFrame:
    """Metrics per epoch: from the run's metrics if it has all of them, else from its table."""
    client = MlflowClient()
    names = ("val_loss", "val_accuracy")
    by_step = {n: {m.step: m.value for m in client.get_metric_history(run_id, n)} for n in names}
    if all(by_step.values()):
        return pd.DataFrame(by_step).rename_axis("epoch").sort_index().reset_index()
    return read_table(run_id, file)[["epoch", *names]].apply(pd.to_numeric)


def _predictions(run: MlflowRun, what: str, file: str) -> pd.DataFrame:
    try:
        return read_table(run.info.run_id, file)
    except TrackingError as error:
        place = run.info.artifact_uri
        # A run without artifacts may have no folder; its experiment has one.
        if is_local_uri(place) and not Path(local_file_uri_to_path(place)).parents[1].exists():
            raise TrackingError(
                f"{what}: its artifacts are looked for in {place}, which does not exist. If the "
                "store's folder was moved or copied, move it back: MLflow stores absolute paths of "
                "artifacts. Otherwise the artifacts were deleted."
            ) from error
        raise TrackingError(
            f"{what}: has no test predictions ({file}) and cannot be compared. "
            "Name finished trainings."
        ) from error
