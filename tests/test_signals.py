"""Graceful stops: a protected block is finished before a signal takes effect."""

from __future__ import annotations

import os
import signal
import time

import pytest

from shopee_mlflow.tracking.signals import Stopped, defer_stop, graceful_stop, stop_on_signals


def stop_within(done: list[str]) -> None:
    with defer_stop():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("written")
    done.append("gone on")


def stop_after(done: list[str]) -> None:
    with defer_stop():
        done.append("written")
    os.kill(os.getpid(), signal.SIGTERM)
    done.append("gone on")


@pytest.mark.fault
def test_a_stop_waits_for_the_end_of_a_write() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped, match="SIGTERM received"):
        stop_within(done)
    assert done == ["written"]


@pytest.mark.fault
def test_a_stop_that_waits_is_not_lost_by_an_error() -> None:
    def stop_and_fail() -> None:
        with defer_stop():
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError("the disk is full")

    with stop_on_signals(), pytest.raises(Stopped, match="SIGTERM received"):
        stop_and_fail()
    with stop_on_signals(), defer_stop():
        pass  # nothing of it is left


@pytest.mark.fault
def test_a_stop_that_comes_within_a_destructor_is_not_lost() -> None:
    class Stopping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Stopping()
        for _ in range(1000):
            time.sleep(0.01)

    with stop_on_signals(), pytest.raises(Stopped, match="SIGTERM received"):
        work()


def test_outside_a_write_a_stop_comes_at_once() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped):
        stop_after(done)
    assert done == ["written"]


def stops(*signals: signal.Signals, done: list[str], good_places: int = 1) -> None:
    """Work that is asked to stop in the middle, and then comes to some good places."""
    with graceful_stop() as check_stop:
        for number in signals:
            os.kill(os.getpid(), number)
        done.append("worked")
        for _ in range(good_places):
            check_stop()
            done.append("gone on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_stop_waits_for_a_good_place(number: signal.Signals) -> None:
    # The tests themselves may run under nohup.
    before = signal.signal(number, signal.SIG_DFL)
    done: list[str] = []
    try:
        with stop_on_signals(), pytest.raises(Stopped, match=f"{number.name} received"):
            stops(number, done=done)
    finally:
        signal.signal(number, before)
    assert done == ["worked"]


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    done: list[str] = []
    try:
        with stop_on_signals():
            stops(signal.SIGHUP, done=done)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done == ["worked", "gone on"]


@pytest.mark.fault
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


@pytest.mark.fault
def test_a_signal_after_the_stop_has_come_does_not_cut_the_end_short() -> None:
    # mlflow run waits a quarter of a second before it sends its own.
    done: list[str] = []
    with stop_on_signals():
        with pytest.raises(Stopped, match="SIGINT"):
            stops(signal.SIGINT, done=done)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        done.append("run ended")
    assert done == ["worked", "run ended"]


def fails_when_stopped(done: list[str]) -> None:
    with graceful_stop():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("worked")
        raise ValueError("the disk is full")


@pytest.mark.fault
def test_a_stop_goes_before_what_else_went_wrong() -> None:
    done: list[str] = []
    with stop_on_signals(), pytest.raises(Stopped, match="SIGINT") as caught:
        fails_when_stopped(done)
    assert isinstance(caught.value.__cause__, ValueError)
    assert done == ["worked"]


def test_the_first_stop_is_told_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals(), pytest.raises(Stopped):
        stops(signal.SIGINT, done=[])
    assert "stopping after this batch; once more to stop now" in capfd.readouterr().err


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
