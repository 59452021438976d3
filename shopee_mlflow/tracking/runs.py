"""The life of a run: opened or adopted, fed with results, ended as FINISHED, FAILED or KILLED."""

from __future__ import annotations

import logging
import os
import platform
import re
import shlex
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
import torch
import torchvision
from matplotlib.figure import Figure
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from sqlalchemy.exc import SQLAlchemyError

from .. import __version__
from ..errors import ShopeeError, TrackingError
from ..modeling.models import ProductClassifier
from . import flavor
from .lifeline import stop_on_signals

_log = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = "shopee"
MODEL_NAME = "model"
MANIFEST_FILE = "data/manifest.csv"
FAILURE_TAG = "failure"
_SYSTEM_METRICS_SECONDS = 5
_PARAMS_AT_ONCE = 100
_LONGEST_REASON = 5000
_END_PAUSES = (0.0, 0.5, 2.0)
# A store on a disk fails with the errors of the disk and of the database.
_STORE_ERRORS = (MlflowException, OSError, SQLAlchemyError)
# Names that MLflow gives to runs that nobody named, such as "amazing-shrike-12".
_UNNAMED = re.compile(r"[a-z]+-[a-z]+-\d+")


class RunLog:
    """What a command may write into its run."""

    def __init__(self, run: MlflowRun) -> None:
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters; those that ``mlflow run`` has logged before us stay as they are.

        MLflow never lets a parameter change, and writes what a person typed after ``-P`` quoted
        as for a shell. The same spelling is used here, so that runs line up however started.
        """
        there = mlflow.get_run(self.run_id).data.params
        new = [(k, shlex.quote(v)) for k, v in params.items() if k not in there]
        for start in range(0, len(new), _PARAMS_AT_ONCE):
            mlflow.log_params(dict(new[start : start + _PARAMS_AT_ONCE]))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Log tags: facts about the run that are no options."""
        mlflow.set_tags(dict(tags))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log named numbers, for an epoch where ``step`` is given."""
        mlflow.log_metrics(dict(metrics), step=step)

    def log_figure(self, figure: Figure, file: str) -> None:
        """Log a picture as an artifact."""
        mlflow.log_figure(figure, file, save_kwargs={"dpi": 150})

    def log_table(self, table: pd.DataFrame, file: str, *, index: bool = False) -> None:
        """Log a table as a CSV artifact."""
        self.log_text(table.to_csv(index=index, lineterminator="\n"), file)

    def log_text(self, text: str, file: str) -> None:
        """Log a text artifact."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(file).name
            path.write_text(text, encoding="utf-8")
            parent = str(Path(file).parent)
            mlflow.log_artifact(str(path), None if parent == "." else parent)

    def log_dataset(self, table: pd.DataFrame, source: str, name: str, digest: str) -> None:
        """Log what was learned from as an MLflow dataset input."""
        with warnings.catch_warnings():
            # MLflow knows two kinds of local file, which are the same, and warns that it chose one.
            warnings.filterwarnings("ignore", message="The specified dataset source")
            dataset = from_pandas(
                table, source=source, targets="label_group", name=name, digest=digest
            )
        mlflow.log_input(dataset, context="training")

    def log_model(
        self,
        model: ProductClassifier,
        metrics: Mapping[str, float],
        serialization: str = flavor.PICKLE,
    ) -> str:
        """Log the classifier as a LoggedModel with its metrics; returns its model id."""
        info = Model.log(
            artifact_path=None,
            name=MODEL_NAME,
            flavor=flavor,
            classifier=model,
            serialization=serialization,
            model_type="classifier",
            params={"architecture": model.architecture, "image_size": str(model.image_size)},
        )
        mlflow.log_metrics(dict(metrics), model_id=info.model_id, run_id=self.run_id)
        return info.model_id


@contextmanager
def open_run(
    name: str, experiment: str = DEFAULT_EXPERIMENT, *, nested: bool = False
) -> Iterator[RunLog]:
    """Open a run, or adopt the one that ``mlflow run`` has made for us, and end it truthfully.

    An exception ends the run as FAILED, Ctrl-C or SIGTERM as KILLED, both with the reason in the
    tag ``failure``; then it goes on to the caller.

    :param name: of the run; one that a person gave to ``mlflow run`` goes before.

    :param nested: inside the run that is open, as its child.
    :raises TrackingError: when the tracking store cannot be used.
    """
    _quieten()
    with stop_on_signals():
        try:
            run = _start(experiment, name, nested)
        except _STORE_ERRORS as error:
            raise _store_error(error) from error
        log = RunLog(run)
        try:
            yield log
        except KeyboardInterrupt as stopped:
            _end(log.run_id, "KILLED", str(stopped) or "interrupted")
            raise
        except MlflowException as error:
            _end(log.run_id, "FAILED", error.message)
            raise _store_error(error) from error
        except BaseException as error:
            _end(
                log.run_id, "FAILED", str(error) if isinstance(error, ShopeeError) else repr(error)
            )
            raise
        else:
            mlflow.end_run("FINISHED")


def read_manifest(run_id: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """The split manifest that a training run has logged, and its parameters as they were meant.

    :raises TrackingError: when the run is not there or has none.
    """
    try:
        run = mlflow.get_run(run_id)
        with tempfile.TemporaryDirectory() as folder:
            file = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=MANIFEST_FILE, dst_path=folder
            )
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"run={run_id}: no training run with a manifest in "
            f"{mlflow.get_tracking_uri()} ({error})"
        ) from error
    return table, {name: "".join(shlex.split(v)) for name, v in run.data.params.items()}


def fail_adopted_run(reason: str) -> None:
    """Give the run that ``mlflow run`` has made for us the reason, when it never got opened."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id:
        try:
            client = mlflow.MlflowClient()
            client.set_tag(run_id, FAILURE_TAG, reason[:_LONGEST_REASON])
            client.set_terminated(run_id, "FAILED")
        except _STORE_ERRORS as error:
            _log.warning("The reason could not be left in run %s: %s", run_id, error)


def machine_tags(device: str) -> dict[str, str]:
    """Where and with what a run was made: commit, device, versions."""
    return {
        "git_commit": git_commit(),
        "device": device,
        "host": platform.node(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "torchvision_version": torchvision.__version__,
        "mlflow_version": mlflow.__version__,
        "shopee_mlflow_version": __version__,
    }


def git_commit() -> str:
    """The commit of this project's checkout, with ``-dirty`` when files differ; else unknown."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository: is this file one of its own?
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ":/") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _start(experiment: str, name: str, nested: bool) -> MlflowRun:
    mlflow.set_system_metrics_sampling_interval(_SYSTEM_METRICS_SECONDS)
    if nested:
        return mlflow.start_run(run_name=name, nested=True, log_system_metrics=True)
    adopted = os.environ.get("MLFLOW_RUN_ID")
    if not adopted:
        _choose_experiment(experiment)
        return mlflow.start_run(run_name=name, log_system_metrics=True)
    run = mlflow.start_run(run_id=adopted, log_system_metrics=True)
    # Adopted once: MLflow would take the same run again for the first nested one.
    del os.environ["MLFLOW_RUN_ID"]
    if _UNNAMED.fullmatch(run.info.run_name or ""):
        mlflow.set_tag("mlflow.runName", name)
    where = mlflow.get_experiment(run.info.experiment_id).name
    if where != experiment:
        _log.warning(
            "This run is in the experiment %r, which mlflow run has chosen; to have it in %r, "
            "call: mlflow run --experiment-name %s ...",
            where,
            experiment,
            experiment,
        )
    return run


def _choose_experiment(experiment: str) -> None:
    """The experiment asked for; MLflow's own variables go before our default only."""
    chosen = {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys()
    if experiment != DEFAULT_EXPERIMENT or not chosen:
        mlflow.set_experiment(experiment)


def _end(run_id: str, status: str, reason: str) -> None:
    """Mark a run as ended; tried again, since a signal may have cut a request to the store short.

    What ended the run must not be hidden behind a store that is gone as well, hence the warning.
    """
    client = mlflow.MlflowClient()
    for pause in _END_PAUSES:
        time.sleep(pause)
        try:
            client.set_tag(run_id, FAILURE_TAG, reason[:_LONGEST_REASON])
            client.set_terminated(run_id, status)
            mlflow.end_run(status)
            return
        except _STORE_ERRORS as error:
            failure = error
    _log.warning("Run %s could not be marked as %s: %s", run_id, status, failure)


def _store_error(error: Exception) -> TrackingError:
    message = getattr(error, "message", None) or str(error)
    return TrackingError(
        f"The tracking store {mlflow.get_tracking_uri()} does not answer as it should: {message}"
    )


def _quieten() -> None:
    """MLflow tells of each step of a new database, which is nobody's concern."""
    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
