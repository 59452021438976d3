"""The tracking store: where it is, how it says that it does not answer, and what that is called."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from ..errors import TrackingError

# How a store says that it does not answer; one on a disk fails with the disk's errors, too.
SILENCE = (MlflowException, SQLAlchemyError)
STORE_ERRORS = (*SILENCE, OSError)
# Of each request to a server, where nothing else is set: MLflow's own bounds let a single one take
# four minutes where nobody listens, and a quarter of an hour where nobody answers.
_BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def store_error(error: Exception) -> TrackingError:
    """The error for people about a store that has failed."""
    message = getattr(error, "message", None) or str(error)
    return TrackingError(
        f"The tracking store {mlflow.get_tracking_uri()} does not answer as it should: {message}"
    )


def quieten() -> None:
    """Let MLflow tell less, and give a silent server up sooner.

    It tells of each step of a new database and of each request that is repeated; what came of it
    all is told by us.
    """
    for name, value in _BOUNDS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for noisier in ("mlflow.system_metrics", "urllib3.connectionpool"):
        logging.getLogger(noisier).setLevel(logging.ERROR)


def local_folder() -> Path:
    """The folder of a tracking store that is a local database; else the current one."""
    uri = mlflow.get_tracking_uri()
    return Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite:///") else Path()
