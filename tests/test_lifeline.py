"""A stop that waits: what must not be cut short is finished first."""

from __future__ import annotations

import os
import signal

import pytest

from shopee_mlflow.tracking.lifeline import Stopped, stop_on_signals, uninterrupted


def stop_within(done: list[str]) -> None:
    with uninterrupted():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("written")
    done.append("gone on")


def stop_after(done: list[str]) -> None:
    with uninterrupted():
        done.append("written")
    os.kill(os.getpid(), signal.SIGTERM)
    done.append("gone on")


def test_a_stop_waits_for_the_end_of_a_write() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped, match="SIGTERM received"):
        stop_within(done)
    assert done == ["written"]


def test_outside_a_write_a_stop_comes_at_once() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped):
        stop_after(done)
    assert done == ["written"]
