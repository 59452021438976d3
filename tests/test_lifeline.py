"""A stop that waits: what must not be cut short is finished first."""

from __future__ import annotations

import os
import signal

import pytest

from shopee_mlflow.tracking.lifeline import Stopped, gently, stop_on_signals, uninterrupted


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


def stops(*signals: signal.Signals, done: list[str], good_places: int = 1) -> None:
    """Work that is asked to stop in the middle, and then comes to some good places."""
    with gently() as stop_here:
        for number in signals:
            os.kill(os.getpid(), number)
        done.append("worked")
        for _ in range(good_places):
            stop_here()
            done.append("gone on")


def test_the_first_stop_waits_for_a_good_place() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped, match="SIGINT received"):
        stops(signal.SIGINT, done=done)
    assert done == ["worked"]


def test_the_pair_of_signals_that_mlflow_run_sends_is_one_stop() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped, match="SIGINT received"):
        stops(signal.SIGINT, signal.SIGTERM, done=done)
    assert done == ["worked"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_stop_comes_at_once(number: signal.Signals) -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped, match=number.name):
        stops(number, number, done=done)
    assert done == []


def test_a_stop_that_finds_no_good_place_comes_at_the_end() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped):
        stops(signal.SIGTERM, done=done, good_places=0)
    assert done == ["worked"]


def test_after_gentle_work_a_stop_comes_at_once_again() -> None:
    done: list[str] = []
    with stop_on_signals():
        stops(done=done)
        with pytest.raises(Stopped):
            stop_after(done)
    assert done == ["worked", "gone on", "written"]
