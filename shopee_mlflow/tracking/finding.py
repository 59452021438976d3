"""Find MLflow runs: by id, by tag, and what a training run has recorded."""

from __future__ import annotations

import re
import shlex

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from ..errors import TrackingError
from .mlflow_run_log import read_table
from .names import MANIFEST_FILE
from .store import STORE_ERRORS

RUN_ID = re.compile(r"[0-9a-f]{32}")
_LATEST_FIRST = ["attributes.start_time DESC"]


def find_run(run_id: str) -> Run:
    """Find a run by its id.

    :raises TrackingError: when there is no such run.
    """
    try:
        return mlflow.get_run(run_id)
    except STORE_ERRORS as error:
        short = "" if RUN_ID.fullmatch(run_id) else "; run ids have 32 hexadecimal digits"
        raise TrackingError(
            f"run={run_id}: no such run in {mlflow.get_tracking_uri()} ({error}){short}"
        ) from error


def read_manifest(run_id: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """The split manifest of a training run, and its parameters without shell quotes.

    :raises TrackingError: when there is no such run, or it has no manifest.
    """
    run = find_run(run_id)
    table = read_table(run_id, MANIFEST_FILE)
    return table, {name: unquoted(value) for name, value in run.data.params.items()}


def unquoted(value: str) -> str:
    """A parameter without the shell quotes with which it was logged, see ``log_params``."""
    try:
        return "".join(shlex.split(value))
    except ValueError:  # an apostrophe: logged by another tool, and not quoted
        return value


def runs_with_tag(experiment_id: str, tag: str, value: str, also: str = "") -> list[Run]:
    """Runs of an experiment that are not deleted and have this tag, the latest first.

    :param value: without quotes, such as a run id.
    :param also: a further condition, in MLflow's language of filters.
    """
    client, found, token = MlflowClient(), list[Run](), None
    condition = f"tags.`{tag}` = '{value}'" + (f" AND {also}" if also else "")
    while token != "":
        page = client.search_runs(
            [experiment_id], condition, order_by=_LATEST_FIRST, page_token=token
        )
        found, token = [*found, *page], page.token or ""
    return found


def running_runs(experiment: str, tag: str, value: str) -> list[Run]:
    """Runs with the status RUNNING and this tag in an experiment; none if it does not exist."""
    found = experiment_id_of(experiment)
    return _running_runs(found, tag, value) if found else []


def experiment_id_of(experiment: str) -> str | None:
    """The id of an experiment; None if it does not exist."""
    found = mlflow.get_experiment_by_name(experiment)
    return str(found.experiment_id) if found else None


def _running_runs(experiment_id: str, tag: str, value: str) -> list[Run]:
    running = "attributes.status = 'RUNNING'"
    found = MlflowClient().search_runs([experiment_id], running, max_results=50_000)
    # The tag is not part of the filter, where an apostrophe would end the string.
    return [run for run in found if run.data.tags.get(tag) == value]
