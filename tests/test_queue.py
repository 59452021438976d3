"""The queue of a study's trials: whatever dies whenever, the total is right and nothing is lost.

Workers are queues of their own on one file, run in turn by hand; each has a process's name.
"""

from __future__ import annotations

import itertools
import os
import platform
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from shopee_mlflow.errors import ConfigError, StudyError
from shopee_mlflow.tuning import queue as queue_module
from shopee_mlflow.tuning.queue import (
    CRASHES,
    FAILURE,
    OWNER,
    REPEATS,
    TrialQueue,
    counting,
    is_final,
    is_gone,
    process_name,
)
from shopee_mlflow.tuning.storage import open_storage, reachable, study_file, without_password

DEAD = f"{platform.node()}:{os.getpid()}:1.00"  # this process id, in another life
ELSEWHERE = "another-machine:12:1700000000.00"

OpenQueue = Callable[..., TrialQueue]


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "studies" / "study.journal"


def queue_of(storage: BaseStorage, total: int, owner: str | None = None) -> TrialQueue:
    study = optuna.create_study(
        storage=storage, study_name="study", direction="maximize", load_if_exists=True
    )
    found = TrialQueue(study, storage, total)
    if owner is not None:
        found._me = owner
    return found


@pytest.fixture
def open_queue(journal: Path) -> OpenQueue:
    """A worker on the file that all of a test's workers share."""

    def opened(total: int = 3, owner: str | None = None) -> TrialQueue:
        return queue_of(open_storage("auto", journal), total, owner)

    return opened


@pytest.fixture
def another() -> str:
    """The name of another process that is alive: the one that has started the tests."""
    return process_name(os.getppid())


def start(queue: TrialQueue) -> Trial:
    """The next trial, with a value chosen, as :class:`Search` does it."""
    trial = next(iter(queue.trials()))
    trial.suggest_float("lr", 0.1, 0.9)
    return trial


def run_all(queue: TrialQueue) -> list[Trial]:
    done = []
    for trial in queue.trials():
        trial.suggest_float("lr", 0.1, 0.9)
        queue.complete(trial, 0.5)
        done.append(trial)
    return done


def final(queue: TrialQueue) -> list[FrozenTrial]:
    return [t for t in counting(queue.all_trials()) if is_final(t)]


# --- the total ---


def test_a_queue_gives_its_total(open_queue: OpenQueue) -> None:
    queue = open_queue(3)
    assert [t.number for t in run_all(queue)] == [0, 1, 2]
    assert run_all(queue) == []
    assert {t.user_attrs[OWNER] for t in queue.all_trials()} == {process_name()}


def test_a_greater_total_goes_on_and_a_smaller_one_is_there_already(open_queue: OpenQueue) -> None:
    run_all(open_queue(2))
    assert [t.number for t in run_all(open_queue(5))] == [2, 3, 4]
    assert run_all(open_queue(1)) == []


def test_two_workers_share_the_total(open_queue: OpenQueue, another: str) -> None:
    mine, other = open_queue(5), open_queue(5, another)
    turns = itertools.cycle([(mine, mine.trials()), (other, other.trials())])
    numbers = []
    for _ in range(5):
        queue, trials = next(turns)
        trial = next(trials)
        numbers.append(trial.number)
        queue.complete(trial, 0.1)
    assert sorted(numbers) == list(range(5))
    for _, trials in (next(turns), next(turns)):
        assert next(trials, None) is None
    assert len(mine.all_trials()) == 5


def test_of_two_that_race_for_the_last_trial_the_first_gets_it(
    open_queue: OpenQueue, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = open_queue(1), open_queue(1, another)
    their: list[Trial | None] = []
    look = mine.all_trials

    def meanwhile() -> list[FrozenTrial]:
        monkeypatch.setattr(mine, "all_trials", look)
        their.append(other._claim())
        return look()

    monkeypatch.setattr(mine, "all_trials", meanwhile)
    trial = mine._claim()  # asks, then the other asks and counts, then this one counts
    assert trial is not None
    assert their == [None]
    mine.complete(trial, 0.5)
    assert [t.number for t in final(other)] == [0]
    assert [t.number for t in counting(mine.all_trials())] == [0]
    assert next(other.trials(), None) is None


def test_what_is_queued_beyond_the_total_is_not_run(open_queue: OpenQueue, another: str) -> None:
    mine, other = open_queue(1), open_queue(1, another)
    for lr in (0.2, 0.3):
        mine.enqueue({"lr": lr})
    trial = start(mine)
    assert other._claim() is None
    other.repeat_unrepeated()
    assert mine.complete(trial, 0.5)
    assert [t.state.name for t in mine.all_trials()] == ["COMPLETE", "FAIL"]
    assert run_all(other) == []


def test_who_has_nothing_to_do_waits_for_the_others_and_says_so(
    open_queue: OpenQueue,
    another: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine, other = open_queue(1), open_queue(1, another)
    trial = start(other)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            other.complete(trial, 0.5)

    monkeypatch.setattr(queue_module.time, "sleep", nap)
    assert run_all(mine) == []
    assert len(naps) == 3
    told = f"waiting for trials of other processes: 0 of {another}"
    assert capsys.readouterr().out.count(told) == 1


# --- what is cut short ---


@pytest.mark.parametrize("owner", [DEAD, "this"])
def test_a_lost_trial_is_repeated_with_its_values_and_all_that_was_said(
    open_queue: OpenQueue, owner: str
) -> None:
    """That of a dead process, and that of this one, which is at none when it asks for the next."""
    lost = open_queue(2, None if owner == "this" else owner)
    lost.enqueue({"lr": 0.25}, baseline=True, fixed={"epochs": 99})
    trial = start(lost)
    trial.suggest_int("batch", 1, 1000)
    chosen = trial.params

    first, second = run_all(open_queue(2))
    assert first.params["lr"] == 0.25
    repeated = first.study.trials[first.number]
    assert repeated.user_attrs.items() >= {REPEATS: 0, "baseline": True}.items()
    assert repeated.user_attrs["fixed"] == {"epochs": 99}
    # All that had been chosen stays chosen, planned or not.
    assert repeated.system_attrs["fixed_params"] == chosen
    assert REPEATS not in second.user_attrs
    assert [t.number for t in final(open_queue(2))] == [first.number, second.number]
    assert counting(open_queue().all_trials()) == final(open_queue())


def test_the_trial_of_a_living_process_is_left_alone(open_queue: OpenQueue, another: str) -> None:
    for owner in (another, ELSEWHERE):
        start(open_queue(4, owner))
    mine = open_queue(4)
    mine.take_up_lost()
    assert [t.state for t in mine.all_trials()] == [TrialState.RUNNING] * 2


def test_a_trial_without_values_need_not_be_repeated(open_queue: OpenQueue) -> None:
    lost = open_queue(1, DEAD)
    next(lost.trials())
    mine = open_queue(1)
    (trial,) = run_all(mine)
    assert (trial.number, trial.user_attrs.get(REPEATS)) == (1, None)


def test_a_nameless_trial_is_lost_after_a_minute(
    open_queue: OpenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process died between asking for it and writing down its own name."""
    mine = open_queue(1)
    mine.study.ask()
    mine.take_up_lost()
    assert mine.all_trials()[0].state == TrialState.RUNNING
    monkeypatch.setattr(queue_module, "_NAMELESS", timedelta(0))
    assert [t.number for t in run_all(mine)] == [1]


def test_an_interrupted_trial_does_not_count_and_is_repeated(open_queue: OpenQueue) -> None:
    queue = open_queue(2)
    values = []
    for trial in queue.trials():
        values.append(trial.suggest_float("lr", 0.1, 0.9))
        if len(values) < 4:
            queue.interrupt(trial)
        else:
            queue.complete(trial, 0.1)
    assert len(set(values[:4])) == 1  # the same, three times cut short
    assert len(values) == 5
    assert [t.state.name for t in queue.all_trials()] == ["FAIL"] * 3 + ["COMPLETE"] * 2
    assert [t.user_attrs.get(REPEATS) for t in queue.all_trials()] == [None, 0, 1, 2, None]
    assert len(final(queue)) == 2


def test_a_trial_that_failed_by_itself_counts(open_queue: OpenQueue) -> None:
    queue = open_queue(2)
    for trial in queue.trials():
        queue.end(trial, TrialState.FAIL, about={FAILURE: "diverged"})
    assert [t.user_attrs[FAILURE] for t in final(queue)] == ["diverged"] * 2
    assert len(queue.all_trials()) == 2


def test_a_pruned_trial_counts(open_queue: OpenQueue) -> None:
    queue = open_queue(1)
    for trial in queue.trials():
        trial.report(0.3, 1)
        queue.end(trial, TrialState.PRUNED, about={"val_loss": 2.0})
    (found,) = final(queue)
    assert (found.value, found.user_attrs["val_loss"]) == (0.3, 2.0)


def test_a_crash_gives_one_more_chance(open_queue: OpenQueue) -> None:
    mine = open_queue(2)
    first = start(open_queue(2, "host:7:1.00"))
    mine.crashed("host:8:1.00")  # somebody else's end
    assert mine.all_trials()[0].state == TrialState.RUNNING

    mine.crashed("host:7:1.00")
    second = start(open_queue(2, "host:9:1.00"))
    assert second.params == first.params
    assert second.user_attrs[CRASHES] == 1
    assert final(mine) == []

    mine.crashed("host:9:1.00")
    (failed,) = final(mine)
    assert failed.number == second.number
    assert failed.user_attrs[FAILURE] == "its process ended 2 times; out of memory, perhaps"
    assert [t.number for t in run_all(mine)] == [2]


def test_crashes_are_not_forgotten_when_another_takes_the_trial_up(open_queue: OpenQueue) -> None:
    mine = open_queue(1)
    start(open_queue(1, DEAD))
    mine.crashed(DEAD)
    start(open_queue(1, DEAD))
    mine.take_up_lost()  # who dies of a power cut has not crashed
    start(open_queue(1, DEAD))
    mine.crashed(DEAD)
    assert [t.user_attrs[FAILURE][:25] for t in final(mine)] == ["its process ended 2 times"]


def test_what_a_worker_taken_for_dead_found_does_not_count(open_queue: OpenQueue) -> None:
    late, mine = open_queue(1, DEAD), open_queue(1)
    trial = start(late)
    (again,) = run_all(mine)
    assert late.complete(trial, 0.9, {"val_loss": 0.1}) is False
    assert late.end(trial, TrialState.FAIL, about={FAILURE: "late"}) is False
    late.interrupt(trial)
    (found,) = final(mine)
    assert (found.number, found.value) == (again.number, 0.5)
    assert len(mine.all_trials()) == 2


# --- repeated once, and by whomever ---


def test_what_nobody_has_repeated_is_repeated(open_queue: OpenQueue) -> None:
    """A worker that gives a trial back may be ended before it has queued it again."""
    mine = open_queue(2)
    trial = start(mine)
    mine.study.tell(trial, state=TrialState.FAIL)
    assert len(mine.all_trials()) == 1
    first, second = run_all(open_queue(2))
    assert first.user_attrs[REPEATS] == 0
    assert first.params == trial.params
    assert second.params != trial.params
    before = len(mine.all_trials())
    mine.repeat_unrepeated()
    assert len(mine.all_trials()) == before


def test_what_two_have_repeated_at_once_is_run_once(open_queue: OpenQueue) -> None:
    mine = open_queue(2)
    mine.interrupt(start(mine))
    mine.enqueue({"lr": 0.2}, **{REPEATS: 0})  # by another, who saw none yet
    assert [t.user_attrs.get(REPEATS) for t in run_all(mine)] == [0, None]
    assert len(final(mine)) == 2
    states = [t.state for t in counting(mine.all_trials())]
    assert states == [TrialState.COMPLETE] * 2


def test_a_double_that_is_left_waiting_is_neither_counted_nor_shown(open_queue: OpenQueue) -> None:
    mine = open_queue(1)
    mine.interrupt(start(mine))
    mine.enqueue({"lr": 0.2}, **{REPEATS: 0})
    assert len(run_all(mine)) == 1
    assert [t.state.name for t in mine.all_trials()] == ["FAIL", "COMPLETE", "WAITING"]
    assert len(counting(mine.all_trials())) == 1


def test_an_idle_worker_does_not_take_the_place_of_a_trial_given_back(
    open_queue: OpenQueue, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might ask for a new one between the end of the old and its return to the queue."""
    mine, idle = open_queue(1), open_queue(1, another)
    mine.enqueue({"lr": 0.25}, baseline=True)
    trial = start(mine)
    claimed: list[Trial | None] = []
    repeat = mine.repeat_unrepeated

    def meanwhile() -> None:
        claimed.append(idle._claim())
        repeat()

    monkeypatch.setattr(mine, "repeat_unrepeated", meanwhile)
    mine.interrupt(trial)
    assert claimed == [None]
    (again,) = run_all(idle)
    assert again.params == {"lr": 0.25}
    assert again.user_attrs["baseline"] is True


def test_two_may_notice_a_loss_at_once(
    open_queue: OpenQueue, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = open_queue(1), open_queue(1, another)
    start(open_queue(1, DEAD))
    tell = mine.study._storage.set_trial_state_values

    def later(*args: object) -> bool:
        monkeypatch.undo()
        other.take_up_lost()
        return tell(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(mine.study._storage, "set_trial_state_values", later)
    mine.take_up_lost()
    assert [t.state.name for t in mine.all_trials()] == ["FAIL", "WAITING"]


# --- time ---


def test_after_the_deadline_no_trial_is_begun(open_queue: OpenQueue) -> None:
    queue = open_queue(3)
    queue.enqueue({"lr": 0.5})
    assert list(queue.trials(deadline=0.0)) == []
    assert [t.state for t in queue.all_trials()] == [TrialState.WAITING]


def test_after_the_deadline_others_are_waited_for(
    open_queue: OpenQueue, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = open_queue(3), open_queue(3, another)
    trial = start(other)
    monkeypatch.setattr(queue_module.time, "sleep", lambda _: other.complete(trial, 0.1))
    assert list(mine.trials(deadline=0.0)) == []
    assert len(final(mine)) == 1


# --- who is alive ---


def test_a_process_is_known_by_host_id_and_start(another: str) -> None:
    assert not is_gone(process_name())
    assert not is_gone(another)
    assert is_gone(DEAD)
    free = next(pid for pid in range(40_000, 10**6) if not psutil.pid_exists(pid))
    assert is_gone(f"{platform.node()}:{free}:{psutil.Process().create_time():.2f}")


def test_of_processes_of_other_machines_nobody_knows() -> None:
    assert not is_gone(ELSEWHERE)
    assert not is_gone(DEAD.replace(platform.node(), "host:with:colons"))


def test_a_clock_that_was_set_a_little_changes_nobody() -> None:
    host, pid, started = process_name().rsplit(":", 2)
    assert not is_gone(f"{host}:{pid}:{float(started) + 2:.2f}")
    assert is_gone(f"{host}:{pid}:{float(started) + 60:.2f}")


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
    with pytest.raises(ConfigError, match=f"storage={file}: is a file of another kind; name a "):
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
        pytest.raises(StudyError, match="storage of study study does not answer: disk is full"),
        reachable(queue.study),
    ):
        raise OSError("disk is full")


# --- addresses of databases ---


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("postgresql://user:secret@host/name", "postgresql://user:***@host/name"),
        ("postgresql+psycopg2://user:se:c@ret@host:1/n", "postgresql+psycopg2://user:***@host:1/n"),
        ("postgresql://user:secret@host:nowhere/n", "postgresql://user:***@host:nowhere/n"),
        ("postgresql://user@host/name", "postgresql://user@host/name"),
        ("/home/a@b/mine.journal", "/home/a@b/mine.journal"),
        ("auto", "auto"),
    ],
)
def test_a_password_is_not_shown(storage: str, shown: str) -> None:
    assert without_password(storage) == shown


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite:///trials.db", "storage=sqlite:///trials.db: SQLite serves one process only; "),
        (
            "postgresql://u:secret@host:port/name",
            r"storage=postgresql://u:\*\*\*@host:port/name: is no database address such as ",
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
    mine.take_up_lost()
    assert [t.state for t in mine.all_trials()] == [TrialState.RUNNING]

    stop_heart(database)
    (again,) = run_all(mine)
    assert (again.number, again.params) == (1, trial.params)
    assert again.user_attrs["baseline"] is True
    assert theirs.complete(trial, 0.9) is False
    assert len(final(mine)) == 1


def test_the_heart_beats_before_the_owner_is_written_down(
    database: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that goes off in between leaves a trial that can be taken up."""
    theirs, mine = queue_of(database, 1, ELSEWHERE), queue_of(database, 1)

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "set_user_attr", power_cut)
        with pytest.raises(KeyboardInterrupt):
            theirs._claim()
    stop_heart(database)
    mine.take_up_lost()
    assert [t.state for t in mine.all_trials()] == [TrialState.FAIL]


def test_the_heart_stops_with_the_trial(database: RDBStorage) -> None:
    queue = queue_of(database, 2)
    names = []
    for trial in queue.trials():
        names.append([t.name for t in threading.enumerate() if t.name == "heartbeat"])
        queue.complete(trial, 0.1)
    assert names == [["heartbeat"]] * 2
    assert "heartbeat" not in [t.name for t in threading.enumerate()]
