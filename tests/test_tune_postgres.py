"""A study in PostgreSQL: several commands at once, one killed; a server that stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from conftest import MakeCatalog
from optuna.trial import TrialState
from postgres_server import PostgresServer, postgres_server
from tuners import Searches, Tuner, process_of, searching

from shopee_mlflow.tuning import storage as storage_module
from shopee_mlflow.tuning.queue import OWNER, REPEATS, TrialQueue
from shopee_mlflow.tuning.storage import open_storage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def searches(
    server: PostgresServer,
    make_catalog: MakeCatalog,
    tmp_path: Path,
) -> Iterator[Searches]:
    with searching(tmp_path, make_catalog(each=12), server.new_database()) as searches:
        yield searches


def both_at_work(searches: Searches) -> tuple[Tuner, Tuner]:
    """Start one command twice at once; the process that began the study, the one that joined."""
    both = [searches.tune(), searches.tune()]
    pids = {tuner.pid for tuner in both}
    both[0].wait_for(lambda: searches.at_work() == pids, "trials of both")
    holder = process_of(searches.parent())
    began, joined = sorted(both, key=lambda tuner: tuner.pid != holder)
    assert "joining study search" in joined.output()
    assert "joining study search" not in began.output()
    return began, joined


@pytest.mark.fault
def test_who_joined_goes_on_when_who_began_is_killed_and_after_the_server_stopped(
    searches: Searches, server: PostgresServer
) -> None:
    began, joined = both_at_work(searches)
    began.wait_at_work(searches)
    began.killed()
    joined.wait_for(
        lambda: [
            trial
            for trial in searches.trials()
            if trial.state == TrialState.RUNNING and REPEATS in trial.user_attrs
        ],
        "the trial taken up again",
    )
    server.stop()
    try:
        assert joined.end() == 2, searches.output()
    finally:
        server.start()
    assert "The storage of study search does not respond" in joined.output()
    assert "invalid data in the commit" not in joined.output()
    assert "repeat the command to resume" in joined.output()
    assert searches.tune().end() == 0, searches.output()
    searches.check_finished()
    assert searches.trial_runs("KILLED"), f"no trial was under way{searches.output()}"


# Filters of warnings are the whole process's, which processes of their own do not share.
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_processes_that_make_the_tables_at_once_all_go_on(server: PostgresServer) -> None:
    address = server.new_database()
    with ThreadPoolExecutor(4) as pool:
        storages = list(pool.map(lambda _: open_storage(address, Path()), range(4)))
    assert [storage.get_all_studies() for storage in storages] == [[]] * 4


def test_a_trial_of_a_machine_that_went_off_is_taken_up_when_its_heart_has_stopped(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(storage_module, "DEAD_SECONDS", 2)
    storage = open_storage(server.new_database(), Path())
    study = optuna.create_study(storage=storage, direction="maximize")
    here = TrialQueue(study, storage, 1)
    elsewhere = TrialQueue(study, storage, 1, "another-machine:17:1700000000.00")
    elsewhere.enqueue({"lr": 0.25})
    working = elsewhere.trials()
    lost = next(working)
    started = time.monotonic()
    while time.monotonic() - started < 3.5:
        here.requeue_lost()
        assert [t.state for t in here.all_trials()] == [TrialState.RUNNING], "its heart beats"
        time.sleep(0.5)
    working.close()  # the machine goes off
    repeat = next(here.trials())
    assert 1 < time.monotonic() - started - 3.5 < 10
    assert repeat.user_attrs["repeats"] == lost.number
    assert repeat.user_attrs[OWNER] != elsewhere.owner
    assert repeat.suggest_float("lr", 0, 1) == 0.25
    # It was only away, and comes back with a result.
    assert not elsewhere.end(lost, 0.5)
    assert here.end(repeat, 0.75)
    assert [(t.state, t.value) for t in here.all_trials()] == [
        (TrialState.FAIL, None),
        (TrialState.COMPLETE, 0.75),
    ]
