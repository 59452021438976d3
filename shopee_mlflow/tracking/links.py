"""Links to runs in MLflow's UI, and the command that starts the UI."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import mlflow
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from ..errors import TrackingError
from ..masking import mask_passwords
from .finding import find_run
from .run_log import NOT_STORED, RunLog
from .views import VIEW_KEY

_SQLITE = "sqlite:///"
_LOCAL_UI = "http://127.0.0.1:5000"
# MLflow 3 opens in its GenAI mode, which hides training runs, unless the link selects this mode.
_MODE = "workflowType=machine_learning"


def view_lines(run: RunLog, took: str, *, beside: bool = False) -> list[str]:
    """Lines with the run and its link, after the command that starts the UI if there is no server.

    :param took: the elapsed time, as text.
    :param beside: add a link to the table of all runs of the experiment, with their accuracies.
    :returns: the lines; none for a run that is not stored.
    """
    if run.run_id == NOT_STORED:
        return []
    uri = mlflow.get_tracking_uri()
    title, served = f"run {run.run_id}, {took}", uri.startswith(("http://", "https://"))
    if uri.startswith("databricks"):
        return [title]
    start = f"{mask_passwords(uri).rstrip('/') if served else _LOCAL_UI}/#"
    links = [f"  this run: {start}{run_page(run.experiment_id, run.run_id)}"]
    if beside:
        links.insert(0, f"  all runs: {start}{table_page(run.experiment_id)}")
    if served:
        return [title, *links]
    command = f"  mlflow ui --backend-store-uri {_store_argument(uri)}"
    return [f"{title}. See it with this command and link:", command, *links]


def table_page(experiment_id: str) -> str:
    """The path of an experiment's table of runs in MLflow's UI, with their accuracies."""
    return f"/experiments/{experiment_id}/runs?{_MODE}&viewStateShareKey={VIEW_KEY}"


def run_page(experiment_id: str, run_id: str) -> str:
    """The path of a run's page in MLflow's UI, after the ``#`` of the address."""
    return f"/experiments/{experiment_id}/runs/{run_id}?{_MODE}"


def run_link(run_id: str) -> str:
    """A Markdown link to a run's page, for descriptions; only the id if there is no such run."""
    try:
        run = find_run(run_id)
    except TrackingError:
        return run_id
    return f"[{run.info.run_name}](#{run_page(run.info.experiment_id, run_id)})"


def report_link(experiment_id: str, run_id: str, file: str) -> str:
    """A Markdown link to a file of a run, for descriptions in MLflow's UI."""
    return f"[{file}](#/experiments/{experiment_id}/runs/{run_id}/artifacts/{file}?{_MODE})"


def _store_argument(uri: str) -> str:
    """The store's URI as a shell argument that works in any folder, without passwords."""
    if mask_passwords(uri) != uri:
        given = os.environ.get("MLFLOW_TRACKING_URI") == uri
        return '"$MLFLOW_TRACKING_URI"' if given else shlex.quote(mask_passwords(uri))
    if uri.startswith(_SQLITE):
        return shlex.quote(_SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute()))
    if is_local_uri(uri):
        return shlex.quote(str(Path(local_file_uri_to_path(uri)).absolute()))
    return shlex.quote(uri)
