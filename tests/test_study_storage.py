"""Storage of studies: a file that survives power cuts, a database with heartbeats."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import Trial, TrialState
from small_queue import ELSEWHERE, OpenQueue, queue_of, run_all, start

from shopee_mlflow.errors import ConfigError, StudyError
from shopee_mlflow.tracking.signals import Stopped, stop_on_signals
from shopee_mlflow.tuning.storage import open_storage, reachable, study_file

# --- the file ---


def test_half_a_line_at_the_end_is_dropped(open_queue: OpenQueue, journal: Path) -> None:
    run_all(open_queue(2))
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":6,"worker_id":"a-1","trial_')
    queue = open_queue(3)
    assert len(queue.all_trials()) == 2
    assert [t.number for t in run_all(queue)] == [2]
    assert journal.read_bytes().startswith(whole)
    assert len(open_queue(3).all_trials()) == 3


def test_half_a_first_line_is_dropped(open_queue: OpenQueue, journal: Path) -> None:
    journal.parent.mkdir()
    journal.write_bytes(b'{"op_')
    assert [t.number for t in run_all(open_queue(1))] == [0]


def test_a_lock_that_a_dead_process_left_behind_is_none(
    open_queue: OpenQueue, journal: Path
) -> None:
    run_all(open_queue(1))
    for name in (".lock", ".lock.rename"):
        journal.with_name(journal.name + name).touch()
    assert len(run_all(open_queue(2))) == 1


@pytest.mark.parametrize("content", [b"image,label\na.png,1", b"SQLite format 3\0..."])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"storage={file}: not a journal of Optuna; choose a "):
        open_storage(str(file), file)
    assert file.read_bytes() == content


def test_a_folder_is_no_storage(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=f"storage={tmp_path}: cannot be reached: .*directory"):
        open_storage(str(tmp_path), tmp_path)


def test_where_a_study_is_kept(tmp_path: Path) -> None:
    assert study_file("auto", "cnn-1", tmp_path) == tmp_path / "studies" / "cnn-1.journal"
    assert study_file("~/mine.journal", "cnn-1", tmp_path) == Path.home() / "mine.journal"


def test_a_storage_that_fails_is_told_as_such(open_queue: OpenQueue) -> None:
    queue = open_queue()
    with (
        pytest.raises(StudyError, match="storage of study study does not respond: disk is full"),
        reachable(queue.study),
    ):
        raise OSError("disk is full")


# --- addresses of databases ---


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:///trials.db", "storage=sqlite:///trials.db: SQLite serves one process only; "),
        (
            "postgresql://u:secret@host:port/name",
            r"storage=postgresql://u:\*\*\*@host:port/name: not a database address such as ",
        ),
    ],
)
def test_an_address_that_cannot_serve_is_refused(storage: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        open_storage(storage, Path())
    assert "secret" not in str(raised.value)


# --- a database that machines share: the heart of a worker beats there ---


@pytest.fixture
def database(tmp_path: Path) -> Iterator[RDBStorage]:
    """SQLite stands in for one here: in one process it can do all that is asked."""
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        storage = RDBStorage(
            f"sqlite:///{tmp_path}/trials.db", heartbeat_interval=30, grace_period=60
        )
    yield storage
    storage.engine.dispose()


def stop_heart(storage: RDBStorage) -> None:
    """Let the last beat of every trial be two minutes ago."""
    with storage.engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(
                "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-120 seconds')"
            )
        )


def test_a_trial_of_another_machine_is_taken_up_when_its_heart_has_stopped(
    database: RDBStorage,
) -> None:
    theirs, mine = queue_of(database, 1, ELSEWHERE), queue_of(database, 1)
    theirs.enqueue({"lr": 0.25}, baseline=True)
    trial = start(theirs)
    mine.requeue_lost()
    assert [t.state for t in mine.all_trials()] == [TrialState.RUNNING]

    stop_heart(database)
    (again,) = run_all(mine)
    assert (again.number, again.params) == (1, trial.params)
    assert again.user_attrs["baseline"] is True
    assert theirs.end(trial, 0.9) is False
    assert len(mine.finished()) == 1


def test_the_first_heartbeat_comes_before_the_owner(
    database: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that goes off in between leaves a trial that can be taken up."""
    theirs, mine = queue_of(database, 1, ELSEWHERE), queue_of(database, 1)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "set_user_attr", power_cut)
        with pytest.raises(KeyboardInterrupt):
            theirs.claim()
    stop_heart(database)
    mine.requeue_lost()
    assert [t.state for t in mine.all_trials()] == [TrialState.FAIL]


@pytest.mark.fault
def test_a_stop_while_a_trial_is_claimed_leaves_it_with_an_owner(
    database: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others can tell that its process is gone, and need not wait a minute."""
    ask = optuna.Study.ask

    def ask_and_stop(study: optuna.Study) -> Trial:
        trial = ask(study)
        signal.raise_signal(signal.SIGTERM)
        return trial

    queue = queue_of(database, 1)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", ask_and_stop)
        with stop_on_signals(), pytest.raises(Stopped):
            queue.claim()
    (trial,) = queue.all_trials()
    assert (trial.state, trial.user_attrs["owner"]) == (TrialState.RUNNING, queue.owner)


@pytest.mark.fault
def test_heartbeats_continue_after_a_failed_write_until_the_trial_ends(
    database: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    beating: list[threading.Thread] = []
    twice = threading.Event()

    def fail(_: int) -> None:
        beating.append(threading.current_thread())
        if len(beating) == 2:
            twice.set()
        raise OSError("the database is away for a moment")

    queue = queue_of(database, 1)
    monkeypatch.setattr(database, "get_heartbeat_interval", lambda: 0.01)
    trials = queue.trials()
    trial = next(trials)
    monkeypatch.setattr(database, "record_heartbeat", fail)
    assert twice.wait(60)
    queue.end(trial, 0.1)
    assert next(trials, None) is None
    assert beating[0] is beating[1]
    # The queue waits for it for a heartbeat at most, a hundredth of a second here.
    beating[0].join(60)
    assert not beating[0].is_alive()
