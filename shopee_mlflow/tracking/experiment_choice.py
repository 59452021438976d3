"""The experiment in which a run is opened: an option, or MLflow's environment variables."""

from __future__ import annotations

import os

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.tracking._tracking_service.utils import _get_store

from .names import ANALYSIS_EXPERIMENT, DEFAULT_EXPERIMENT
from .store import STORE_ERRORS, check_artifacts, connect, store_error

_EXPERIMENT_ID = "MLFLOW_EXPERIMENT_ID"
_DEFAULTS = (DEFAULT_EXPERIMENT, ANALYSIS_EXPERIMENT)


def choose_experiment(experiment: str) -> None:
    """Set the experiment; MLflow's environment variables override our default only."""
    chosen = {"MLFLOW_EXPERIMENT_NAME", _EXPERIMENT_ID} & os.environ.keys()
    if experiment not in _DEFAULTS or not chosen:
        found = enter_experiment(experiment)
        # If another client creates the experiment at the same time, MLflow returns it, but the
        # experiment Default stays active.
        enter_experiment(experiment_id=found.experiment_id)


def enter_experiment(name: str | None = None, experiment_id: str | None = None) -> Experiment:
    """Make an experiment active, but not set the variable that MLflow sets for subprocesses.

    A later command in this process would mistake the variable for the user's choice.
    """
    before = os.environ.get(_EXPERIMENT_ID)
    try:
        return mlflow.set_experiment(name, experiment_id)
    finally:
        os.environ.pop(_EXPERIMENT_ID, None)
        if before is not None:
            os.environ[_EXPERIMENT_ID] = before


def check_experiment(experiment: str) -> None:
    """Check that a run can be opened and store its artifacts, before work that takes long.

    An experiment that exists becomes active; one that does not is not created.

    :raises TrackingError: when the tracking store does not answer, the experiment was deleted, or
        its artifacts cannot be stored.
    """
    try:
        connect()
        location = _artifact_location(experiment)
    except STORE_ERRORS as error:
        raise store_error(error) from error
    if location:
        check_artifacts(location)


def _artifact_location(experiment: str) -> str | None:
    """The folder of artifacts of a new run, or the one above it; None if only a server knows it."""
    outer = mlflow.active_run()
    if outer is not None:
        return str(outer.info.artifact_uri)
    name = experiment_in_use(experiment)
    if MlflowClient().get_experiment_by_name(name):
        return str(enter_experiment(name).artifact_location)
    # Creating the experiment would tell its folder, but a mistake of the user should leave none.
    return getattr(_get_store(), "artifact_root_uri", None)


def experiment_in_use(experiment: str) -> str:
    """The name of the experiment in which a new run would be opened."""
    adopted, number = os.environ.get("MLFLOW_RUN_ID"), os.environ.get(_EXPERIMENT_ID)
    if adopted:
        number = MlflowClient().get_run(adopted).info.experiment_id
    elif experiment not in _DEFAULTS:
        return experiment
    if number:
        return str(MlflowClient().get_experiment(number).name)
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", experiment)
