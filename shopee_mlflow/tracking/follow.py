"""Of processes that train one model those that do not track; they end its run where it must be."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import pandas as pd
from mlflow import MlflowClient

from ..errors import GroupLostError
from .processes import PROCESS_TAG, is_elsewhere, is_gone, process_name
from .run_log import RunLog
from .runs import FAILURE_TAG, LONGEST_REASON, close_run, verdict
from .signals import stop_on_signals, uninterrupted
from .store import STORE_ERRORS, quieten

_log = logging.getLogger(__name__)

_LAST_MOMENTS, _MOMENTS_ELSEWHERE = 3.0, 10.0


class NullRunLog(RunLog):
    """Of the processes that train one model those that do not track: what they log goes nowhere."""

    def log_params(self, params: Mapping[str, str]) -> None:
        """Nothing."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Nothing."""

    def know_metrics(self, names: Iterable[str]) -> None:
        """Nothing."""

    def forget_models(self) -> None:
        """Nothing."""

    def log_text(self, text: str, file: str) -> None:
        """Nothing."""

    def log_dataset(self, table: pd.DataFrame, source: str, name: str, digest: str) -> None:
        """Nothing."""


@contextmanager
def follow_run(run_id: str) -> Iterator[NullRunLog]:
    """A run that another process of a group has opened; ended here where that one no longer can."""
    quieten()
    with stop_on_signals():
        # It is the first process that has adopted the run of mlflow run, and tells it why it fails.
        os.environ.pop("MLFLOW_RUN_ID", None)
        try:
            yield NullRunLog(run_id, "")
        except BaseException as error:
            # Whatever has ended this process, a signal among it: torchrun ends all when one dies.
            try:
                with uninterrupted():
                    _close_for(run_id, error)
            except STORE_ERRORS as silence:
                _log.error("Run %s could not be ended: %s", run_id, silence)
            raise


def _close_for(run_id: str, error: BaseException) -> None:
    """End a run as FAILED where the process that has opened it is gone; else leave the reason for
    that one, which only knows that this process is no more."""
    client = MlflowClient()
    run, reason = client.get_run(run_id), verdict(error)[1]
    owner = run.data.tags.get(PROCESS_TAG)
    if run.info.status != "RUNNING" or owner is None:
        return
    if is_gone(owner) or (isinstance(error, GroupLostError) and _goes(owner)):
        # It may have used its last moments to end the run itself, or have been started again.
        run = client.get_run(run_id)
        if run.info.status == "RUNNING" and run.data.tags.get(PROCESS_TAG) == owner:
            reason = f"Another process of the group is gone: {owner} ({reason})"
            close_run(run_id, "FAILED", {FAILURE_TAG: reason[:LONGEST_REASON]})
    elif isinstance(error, Exception) and not isinstance(error, GroupLostError):
        client.set_tag(run_id, FAILURE_TAG, f"{process_name()}: {reason}"[:LONGEST_REASON])


def _goes(owner: str) -> bool:
    """Whether a process ends within moments: its connections are closed before it is no more. Of
    one on another machine nothing can be seen; it is given the time to end its run itself."""
    if is_elsewhere(owner):
        time.sleep(_MOMENTS_ELSEWHERE)
        return True
    deadline = time.monotonic() + _LAST_MOMENTS
    while not is_gone(owner) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_gone(owner)
