"""The tracking store: its errors, its request limits and its folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from ..errors import TrackingError

# Errors of a store that is not available; a store on a disk also raises OSError.
SILENCE = (MlflowException, SQLAlchemyError)
STORE_ERRORS = (*SILENCE, OSError)
# Defaults for requests to a server: with MLflow's own, one request takes four minutes where nothing
# listens, and a quarter of an hour where nothing responds.
_BOUNDS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


def store_error(error: Exception) -> TrackingError:
    """The error for people about a store that has failed."""
    message = getattr(error, "message", None) or str(error)
    return TrackingError(
        f"The tracking store {mlflow.get_tracking_uri()} does not answer as it should: {message}"
    )


def quieten() -> None:
    """Silence MLflow's progress messages, and let requests to a server fail sooner.

    MLflow logs each step of a database migration and each repeated request.
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
