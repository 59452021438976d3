"""Follow a training run in the processes of a group that do not log.

Only the first process logs. If it is gone, another process ends the run.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow import MlflowClient

from ..errors import GroupLostError
from .names import FAILURE_TAG, LONGEST_REASON, PROCESS_TAG
from .processes import is_elsewhere, is_gone, process_name
from .run_log import NullRunLog
from .runs import close_run, end_status
from .signals import defer_stop, stop_on_signals
from .store import STORE_ERRORS, quieten

_log = logging.getLogger(__name__)

# Seconds to wait for a process to end its own run, on this machine and on another one.
_SECONDS_HERE, _SECONDS_ELSEWHERE = 3.0, 10.0


@contextmanager
def follow_run(run_id: str) -> Iterator[NullRunLog]:
    """Follow a run that another process of the group has opened; end it if that process is gone."""
    quieten()
    with stop_on_signals():
        # The first process has adopted the run that mlflow run created, and ends it.
        os.environ.pop("MLFLOW_RUN_ID", None)
        try:
            yield NullRunLog(run_id)
        except BaseException as error:
            # After a signal, too: torchrun stops all processes when one dies.
            try:
                with defer_stop():
                    _report_failure(run_id, error)
            except STORE_ERRORS as store_failure:
                _log.error("Run %s could not be ended: %s", run_id, store_failure)
            raise


def _report_failure(run_id: str, error: BaseException) -> None:
    """End a run as FAILED if its owner, the process that opened it, is gone.

    Otherwise store in the run why this process failed, since the owner cannot see the reason.
    """
    client = MlflowClient()
    run, reason = client.get_run(run_id), end_status(error)[1]
    owner = run.data.tags.get(PROCESS_TAG)
    if run.info.status != "RUNNING" or owner is None:
        return
    if is_gone(owner) or (isinstance(error, GroupLostError) and _wait_until_gone(owner)):
        # The owner may have ended the run meanwhile, or may have been restarted.
        run = client.get_run(run_id)
        if run.info.status == "RUNNING" and run.data.tags.get(PROCESS_TAG) == owner:
            reason = f"Another process of the group is gone: {owner} ({reason})"
            close_run(run_id, "FAILED", {FAILURE_TAG: reason[:LONGEST_REASON]})
    elif isinstance(error, Exception) and not isinstance(error, GroupLostError):
        client.set_tag(run_id, FAILURE_TAG, f"{process_name()}: {reason}"[:LONGEST_REASON])


def _wait_until_gone(owner: str) -> bool:
    """Wait some seconds for a process to end, and return whether it has ended.

    Connections of a process close before it ends. A process of another machine cannot be observed:
    it is assumed to have ended after the wait.
    """
    if is_elsewhere(owner):
        time.sleep(_SECONDS_ELSEWHERE)
        return True
    deadline = time.monotonic() + _SECONDS_HERE
    while not is_gone(owner) and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_gone(owner)
