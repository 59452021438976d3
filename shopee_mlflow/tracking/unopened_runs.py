"""Runs that ``mlflow run`` has created, and that no command has opened.

``mlflow run`` creates a run before it starts a command, so an option that is refused leaves a run.
The command cannot delete it: ``mlflow run`` writes the status of the run when the command has
ended, and ends with a traceback of its own if the run is deleted. So the run is marked, and the
next command in its experiment deletes it.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import fields

from mlflow import MlflowClient
from mlflow.entities import Run

from ..config import CrossValidateConfig
from ..masking import mask_passwords
from .names import (
    DESCRIPTION_TAG,
    FAILURE_TAG,
    KIND_TAG,
    LONGEST_REASON,
    NOT_STARTED,
    PROCESS_TAG,
    VERSION_TAG,
)
from .store import STORE_ERRORS

_log = logging.getLogger(__name__)

_SOURCE_TYPE_TAG, _PROJECT = "mlflow.source.type", "PROJECT"
# By then, ``mlflow run`` has written the status of the run.
_AGE_MS = 10_000


# Options of a training, and the starts of the names of its metrics.
_OPTIONS = {option.name for option in fields(CrossValidateConfig)}
_RESULTS = ("train_", "val_", "test_", "best_")


def end_unopened_run(reason: str, status: str = "FAILED") -> None:
    """End the run that ``mlflow run`` has created, when a command ends before opening it.

    The reason is its description and a tag; its kind is ``not-started``. A run that was not created
    by ``mlflow run``, but for instance by a scheduler, has the tag only.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id:
        try:
            client = MlflowClient()
            run = client.get_run(run_id)
            # The first of several processes to fail knows the reason. A run that another command
            # has finished or is using is not ended.
            if FAILURE_TAG not in run.data.tags and not used_by(run):
                delete_unopened_runs(run.info.experiment_id)
                client.set_tag(run_id, FAILURE_TAG, mask_passwords(reason)[:LONGEST_REASON])
                if run.data.tags.get(_SOURCE_TYPE_TAG) == _PROJECT:
                    _describe(client, run_id, mask_passwords(reason)[:LONGEST_REASON])
                client.set_terminated(run_id, status)
        except STORE_ERRORS as error:
            _log.warning("The failure could not be stored in run %s: %s", run_id, error)


def delete_unopened_runs(experiment_id: str) -> None:
    """Delete the runs of commands that were refused; MLflow's UI can restore deleted runs."""
    ended = f"attributes.end_time < {int(time.time() * 1000) - _AGE_MS}"
    # A store that cannot delete runs keeps them.
    with suppress(*STORE_ERRORS):
        client = MlflowClient()
        for run in client.search_runs(
            [experiment_id], f"tags.{KIND_TAG} = '{NOT_STARTED}' and {ended}"
        ):
            client.delete_run(run.info.run_id)


def used_by(run: Run) -> str:
    """How a run has already been used, as the end of a sentence; empty for a new run."""
    if run.info.status not in ("RUNNING", "SCHEDULED"):
        return f"has ended ({run.info.status})"
    if PROCESS_TAG in run.data.tags or VERSION_TAG in run.data.tags:
        return "already has results of another command"
    if any(name.startswith(_RESULTS) for name in run.data.metrics):
        return "already has metrics of a training"
    # mlflow run logs the options with which it then starts the command.
    options = sorted(_OPTIONS & run.data.params.keys())
    if options and run.data.tags.get(_SOURCE_TYPE_TAG) != _PROJECT:
        return f"already has options of a training ({', '.join(options[:5])})"
    return ""


def _describe(client: MlflowClient, run_id: str, reason: str) -> None:
    client.set_tag(run_id, KIND_TAG, NOT_STARTED)
    client.set_tag(run_id, "mlflow.runName", NOT_STARTED.replace("-", " "))
    words = f"Nothing was computed. The next command deletes this run.\n\n```\n{reason}\n```"
    client.set_tag(run_id, DESCRIPTION_TAG, words)
