"""The metric queue: it does not block, loses nothing, and warns once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from shopee_mlflow.tracking import metric_queue as outbox
from shopee_mlflow.tracking.metric_queue import MetricQueue

PATIENCE = 20
ALWAYS = 10**6


class Store:
    """Takes metrics, or is silent for some requests first."""

    def __init__(self, silent: int = 0) -> None:
        self.silent, self.requests = silent, 0
        self.steps: list[int] = []
        self.sizes: list[int] = []
        self.changed = threading.Condition()

    def send(self, metrics: Sequence[Metric]) -> None:
        with self.changed:
            self.requests += 1
            self.changed.notify_all()
            if self.requests <= self.silent:
                raise MlflowException("connection refused")
            self.steps += [metric.step for metric in metrics]
            self.sizes.append(len(metrics))

    def wait_for_steps(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.steps) >= count, PATIENCE), self.steps

    def wait_for_requests(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.requests >= count, PATIENCE), self.requests


def metrics(*steps: int) -> list[Metric]:
    return [Metric("val_loss", 0.5, 0, step) for step in steps]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "_SEND_SECONDS", 0.01)
    monkeypatch.setattr(outbox, "_LONGEST_PAUSE_SECONDS", 0.05)


@pytest.fixture
def long_pauses(short_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever flushes must not wait for the thread's next look."""
    monkeypatch.setattr(outbox, "_SEND_SECONDS", 3600.0)


def test_what_is_put_in_is_sent_in_order() -> None:
    store = Store()
    box = MetricQueue(store.send)
    for step in range(5):
        box.put(metrics(step))
    store.wait_for_steps(5)
    assert store.steps == [0, 1, 2, 3, 4]


def test_the_thread_ends_when_there_is_nothing_left() -> None:
    store = Store()
    box = MetricQueue(store.send)
    box.put([])
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]
    for step in range(3):
        box.put(metrics(step))
        store.wait_for_steps(step + 1)
        for thread in [t for t in threading.enumerate() if t.name == "metrics"]:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.mark.fault
def test_a_silent_store_is_told_once_and_gets_all_in_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(silent=4)
    box = MetricQueue(store.send)
    with caplog.at_level(logging.WARNING):
        box.put(metrics(0))
        store.wait_for_requests(2)
        box.put(metrics(1))
        store.wait_for_steps(2)
        box.flush()
        for thread in [t for t in threading.enumerate() if t.name == "metrics"]:
            thread.join(PATIENCE)
    assert store.steps == [0, 1]
    first, second = caplog.messages
    assert "does not respond (connection refused). Training continues" in first
    assert "is available again and has all metrics" in second


def just_sent(store: Store) -> MetricQueue:
    """One that has sent something a moment ago, so that its thread does not send at once."""
    box = MetricQueue(store.send)
    box._sent = time.monotonic()
    return box


@pytest.mark.usefixtures("long_pauses")
def test_flush_sends_at_once_and_says_when_that_fails() -> None:
    store = Store(silent=ALWAYS)
    box = just_sent(store)
    box.put(metrics(0, 1))
    with pytest.raises(MlflowException, match="connection refused"):
        box.flush()
    store.silent = 0
    box.flush()
    assert store.steps == [0, 1]
    box.put(metrics(2))
    box.flush()
    assert store.steps == [0, 1, 2]


def test_what_is_given_up_is_not_sent_when_the_store_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(silent=ALWAYS)
    box = MetricQueue(store.send)
    with caplog.at_level(logging.WARNING):
        box.put(metrics(0))
        store.wait_for_requests(1)
        box.close()
        store.silent = 0
        for thread in [t for t in threading.enumerate() if t.name == "metrics"]:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert store.steps == []
    assert "is available again" not in caplog.text
    # Whoever goes on with it all the same is heard.
    box.put(metrics(1))
    box.flush()
    assert store.steps == [1]


@pytest.mark.usefixtures("long_pauses")
def test_no_more_are_sent_together_than_a_store_takes() -> None:
    store = Store()
    box = just_sent(store)
    box.put(metrics(*range(2500)))
    box.flush()
    assert store.sizes == [1000, 1000, 500]
