"""Metrics on their way to the store: sent in the background, kept while the store is silent."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

import mlflow
from mlflow.entities import Metric

from .store import STORE_ERRORS

_log = logging.getLogger(__name__)

_AT_ONCE = 1000
_SEND_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class MetricQueue:
    """What is put in is sent within a second, by a thread that lives while there is any.

    Whoever puts something in never waits. Where the store does not answer, it is asked again,
    less and less often; that is told once, and once more when it is back.
    """

    def __init__(self, send: Callable[[Sequence[Metric]], None]) -> None:
        """
        :param send: hands at most 1,000 metrics to the store; raises one of ``STORE_ERRORS`` where
            that fails. The same ones may come again after a failure.
        """
        self._send = send
        self._waiting: list[Metric] = []
        self._thread: threading.Thread | None = None
        # The first guards what waits and the thread; the second is held by whoever sends.
        self._state, self._sending = threading.Lock(), threading.Lock()
        self._hurry = threading.Event()
        self._sent = -math.inf

    def put(self, metrics: Sequence[Metric]) -> None:
        """Have these sent."""
        with self._state:
            self._waiting += metrics
            if self._waiting and self._thread is None:
                self._hurry.clear()
                self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Send what waits, now.

        :raises: one of ``STORE_ERRORS``; what could not be sent waits on.
        """
        self._hurry.set()
        with self._sending:
            self._send_all()

    def close(self) -> None:
        """Give up what still waits, so that nobody sends it beside one who goes on with the run."""
        self._hurry.set()
        # A request that is under way is waited for.
        with self._sending, self._state:
            self._waiting.clear()

    def _work(self) -> None:
        # At once, if nothing was sent a moment ago.
        pause, silent = max(0.0, self._sent + _SEND_SECONDS - time.monotonic()), False
        while True:
            self._hurry.wait(pause)
            with self._sending:
                try:
                    self._send_all()
                except STORE_ERRORS as error:
                    if not silent:
                        _tell_silence(error)
                    silent = True
                    pause = min(max(2 * pause, _SEND_SECONDS), _LONGEST_PAUSE_SECONDS)
                else:
                    if silent:
                        _log.warning("The tracking store answers again and has all metrics.")
                    silent, pause = False, _SEND_SECONDS
            with self._state:
                # Someone in a hurry sends the rest, and is told if that fails.
                if not self._waiting or self._hurry.is_set():
                    self._thread = None
                    return

    def _send_all(self) -> None:
        while True:
            with self._state:
                metrics = self._waiting[:_AT_ONCE]
            if not metrics:
                return
            self._send(metrics)
            with self._state:
                del self._waiting[: len(metrics)]
            self._sent = time.monotonic()


def _tell_silence(error: Exception) -> None:
    message = str(getattr(error, "message", None) or error).split("\n")[0]
    _log.warning(
        "The tracking store %s does not answer (%s). The work goes on; its metrics are kept and "
        "sent when it is back (those of the machine's load end here).",
        mlflow.get_tracking_uri(),
        message,
    )
