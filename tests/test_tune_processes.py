"""A search whose real processes are killed by real signals."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from conftest import MakeCatalog
from tuners import TOTAL, Searches, Tuner, in_session, process_of, searching

from shopee_mlflow.tracking.signals import Stopped, stop_on_signals

pytestmark = pytest.mark.slow


@pytest.fixture
def searches(
    make_catalog: MakeCatalog,
    tmp_path: Path,
) -> Iterator[Searches]:
    with searching(tmp_path, make_catalog(each=12)) as searches:
        yield searches


@pytest.mark.fault
def test_killed_five_times_nothing_is_lost(searches: Searches) -> None:
    chance = random.Random(4)
    for number in range(5):
        tuner = searches.tune()
        if number == 0:  # the study has hardly begun
            tuner.wait_for(searches.study_file().exists, "the study's file")
        else:
            tuner.wait_at_work(searches)
        time.sleep(chance.uniform(0, 1))
        tuner.killed()
    assert searches.tune().end() == 0, searches.output()
    searches.check_finished()
    assert searches.trial_runs("KILLED"), "no kill has met a trial"


def test_a_stopped_search_says_so_and_goes_on_in_the_same_run(searches: Searches) -> None:
    cut_short = set()
    for number in (signal.SIGINT, signal.SIGTERM):
        tuner = searches.tune()
        tuner.wait_at_work(searches)
        tuner.signal(number)
        assert tuner.end() == 130, tuner.output()
        assert f"stopped: {number.name} received" in tuner.output()
        parent = searches.parent()
        assert parent.info.status == "KILLED", tuner.output()
        assert parent.data.tags["failure"] == f"{number.name} received"
        (latest,) = {r.info.run_id for r in searches.trial_runs("KILLED")} - cut_short
        cut_short.add(latest)
        trial = mlflow.get_run(latest).data.tags
        assert trial["state"] == "interrupted", tuner.output()
        assert trial["failure"] == f"{number.name} received"
        assert not searches.trial_runs("RUNNING"), tuner.output()
    project = searches.project()
    assert project.end() == 0, project.output()
    assert f"resuming study search in run {parent.info.run_id}" in project.output()
    searches.check_finished()
    assert searches.parent().info.run_id == parent.info.run_id
    (adopted,) = [r for r in searches.runs() if "continues" in r.data.tags]
    assert adopted.data.tags["continues"] == parent.info.run_id
    assert adopted.info.status == "FINISHED"


@pytest.mark.fault
def test_two_worker_processes_share_a_search_and_may_die(searches: Searches) -> None:
    tuner = searches.tune(jobs="2")
    tuner.wait_for(lambda: len(searches.at_work()) == 2, "trials of two workers")
    workers = searches.at_work()
    assert tuner.pid not in workers
    assert {psutil.Process(pid).ppid() for pid in workers} == {tuner.pid}
    victim = min(workers)
    tuner.wait_for(lambda: victim in searches.at_work(0.25), "a trial that has just begun")
    psutil.Process(victim).kill()
    tuner.wait_for(lambda: "starting a replacement" in tuner.output(), "the replacement")
    assert "ended with signal SIGKILL" in tuner.output()
    tuner.wait_for(
        lambda: any("repeats" in t.user_attrs for t in searches.trials()), "the trial queued again"
    )
    tuner.killed()
    wait_for_orphans(tuner)
    ended = [t for t in searches.trials() if t.state.is_finished() and t.value is not None]
    assert len(ended) < TOTAL, f"they have done all the work first{tuner.output()}"
    finisher = searches.tune(jobs="2")
    assert finisher.end() == 0, searches.output()
    wait_for_orphans(finisher)
    searches.check_finished()
    assert "leaked" not in finisher.output()
    assert len({process_of(r) for r in searches.trial_runs()}) > 2, searches.output()


def test_a_second_signal_waits_until_all_is_closed() -> None:
    """As where a nested run is closed and then its parent, and Ctrl-C is pressed again."""
    closed = []

    def nested() -> None:
        with stop_on_signals():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                signal.raise_signal(signal.SIGTERM)
                closed.append("nested")

    def parent() -> None:
        with stop_on_signals():
            try:
                nested()
            finally:
                signal.raise_signal(signal.SIGINT)
                closed.append("parent")

    with pytest.raises(Stopped, match="SIGINT received"):
        parent()
    assert closed == ["nested", "parent"]


def wait_for_orphans(tuner: Tuner, seconds: float = 30) -> None:
    """The workers of a process that is no more end by themselves."""
    until = time.monotonic() + seconds
    while left := in_session(tuner.pid):
        assert time.monotonic() < until, f"{left}{tuner.output()}"
        time.sleep(0.1)
