"""Send metrics to the store in the background, and buffer them while it is not available."""

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

_METRICS_PER_REQUEST = 1000
_SEND_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class MetricQueue:
    """Sends metrics within a second, in a thread that ends when the queue is empty.

    ``put`` never waits. While the store is not available, sending is retried with growing pauses.
    A warning is logged when the store becomes unavailable, and another one when it is back.
    """

    def __init__(self, send: Callable[[Sequence[Metric]], None]) -> None:
        """
        :param send: sends at most 1,000 metrics to the store. If it raises one of
            ``STORE_ERRORS``, it is called again with the same metrics.
        """
        self._send = send
        self._waiting: list[Metric] = []
        self._thread: threading.Thread | None = None
        # The first lock guards the queue and the thread; the second is held while sending.
        self._state, self._sending = threading.Lock(), threading.Lock()
        self._hurry = threading.Event()
        self._sent = -math.inf
        self._closed = False

    def put(self, metrics: Sequence[Metric]) -> None:
        """Queue metrics."""
        with self._state:
            self._waiting += metrics
            self._closed = False
            if self._waiting and self._thread is None:
                self._hurry.clear()
                self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Send all queued metrics now.

        :raises: one of ``STORE_ERRORS``; metrics that could not be sent stay queued.
        """
        self._hurry.set()
        with self._sending:
            self._send_all()

    def close(self) -> None:
        """Discard queued metrics, so that they do not mix with those of a resumed run."""
        self._hurry.set()
        # Waits for a request in progress.
        with self._sending, self._state:
            self._waiting.clear()
            self._closed = True

    def _work(self) -> None:
        # Send immediately, unless something was sent within the last second.
        pause, unavailable = max(0.0, self._sent + _SEND_SECONDS - time.monotonic()), False
        while True:
            self._hurry.wait(pause)
            with self._sending:
                try:
                    self._send_all()
                except STORE_ERRORS as error:
                    if not unavailable:
                        _warn_unavailable(error)
                    unavailable = True
                    pause = min(max(2 * pause, _SEND_SECONDS), _LONGEST_PAUSE_SECONDS)
                else:
                    if unavailable and not self._closed:
                        _log.warning("The tracking store is available again and has all metrics.")
                    unavailable, pause = False, _SEND_SECONDS
            with self._state:
                # If flush was called, it sends the rest, and raises if that fails.
                if not self._waiting or self._hurry.is_set():
                    self._thread = None
                    return

    def _send_all(self) -> None:
        while True:
            with self._state:
                metrics = self._waiting[:_METRICS_PER_REQUEST]
            if not metrics:
                return
            self._send(metrics)
            with self._state:
                del self._waiting[: len(metrics)]
            self._sent = time.monotonic()


def _warn_unavailable(error: Exception) -> None:
    message = str(getattr(error, "message", None) or error).split("\n")[0]
    _log.warning(
        "The tracking store %s does not respond (%s). Training continues. Its metrics are buffered "
        "and sent when the store is back; system metrics are no longer logged.",
        mlflow.get_tracking_uri(),
        message,
    )
