"""A study's queue: whenever a worker dies, the total is right and no trial is lost.

Workers are queues of their own on one file, run in turn by hand; each has a process's name.
"""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from optuna.trial import FrozenTrial, Trial, TrialState
from small_queue import DEAD, ELSEWHERE, OpenQueue, run_all, start

from shopee_mlflow.tuning import queue as queue_module
from shopee_mlflow.tuning.queue import (
    CRASHES,
    FAILURE,
    OWNER,
    REPEATS,
    process_name,
)

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
        queue.end(trial, 0.1)
    assert sorted(numbers) == list(range(5))
    for _, trials in (next(turns), next(turns)):
        assert next(trials, None) is None
    assert len(mine.all_trials()) == 5


def test_of_two_that_race_for_the_last_trial_the_first_gets_it(
    open_queue: OpenQueue, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = open_queue(1), open_queue(1, another)
    their: list[Trial | None] = []
    read = mine.all_trials

    def meanwhile() -> list[FrozenTrial]:
        monkeypatch.setattr(mine, "all_trials", read)
        their.append(other.claim())
        return read()

    monkeypatch.setattr(mine, "all_trials", meanwhile)
    trial = mine.claim()  # asks, then the other asks and counts, then this one counts
    assert trial is not None
    assert their == [None]
    mine.end(trial, 0.5)
    assert [t.number for t in other.finished()] == [0]
    assert [t.number for t in mine.counted()] == [0]
    assert next(other.trials(), None) is None


def test_what_is_queued_beyond_the_total_is_not_run(open_queue: OpenQueue, another: str) -> None:
    mine, other = open_queue(1), open_queue(1, another)
    for lr in (0.2, 0.3):
        mine.enqueue({"lr": lr})
    trial = start(mine)
    assert other.claim() is None
    other.requeue_interrupted()
    assert mine.end(trial, 0.5)
    assert [t.state.name for t in mine.all_trials()] == ["COMPLETE", "FAIL", "WAITING"]
    assert run_all(other) == []


def test_what_is_queued_beyond_the_total_is_kept_for_a_greater_one(open_queue: OpenQueue) -> None:
    mine, other = open_queue(1, DEAD), open_queue(1)
    for lr in (0.2, 0.3):
        mine.enqueue({"lr": lr})
    start(mine)
    assert [t.params["lr"] for t in run_all(other)] == [0.2]
    assert [t.params["lr"] for t in run_all(open_queue(2))] == [0.3]


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
            other.end(trial, 0.5)

    monkeypatch.setattr(queue_module.time, "sleep", nap)
    assert run_all(mine) == []
    assert len(naps) == 3
    told = f"waiting for trials of other processes: 0 of {another}"
    assert capsys.readouterr().out.count(told) == 1


# --- what is cut short ---


@pytest.mark.parametrize("owner", [DEAD, None], ids=["dead", "this"])
def test_a_lost_trial_is_repeated_with_its_values_and_all_that_was_said(
    open_queue: OpenQueue, owner: str | None
) -> None:
    """That of a dead process, and that of this one, which is at none when it asks for the next."""
    lost = open_queue(2, owner)
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
    assert [t.number for t in open_queue(2).finished()] == [first.number, second.number]
    assert open_queue().counted() == open_queue().finished()


def test_the_trial_of_a_living_process_is_left_alone(open_queue: OpenQueue, another: str) -> None:
    for owner in (another, ELSEWHERE):
        start(open_queue(4, owner))
    mine = open_queue(4)
    mine.requeue_lost()
    assert [t.state for t in mine.all_trials()] == [TrialState.RUNNING] * 2


def test_a_trial_without_values_need_not_be_repeated(open_queue: OpenQueue) -> None:
    lost = open_queue(1, DEAD)
    next(lost.trials())
    mine = open_queue(1)
    (trial,) = run_all(mine)
    assert (trial.number, trial.user_attrs.get(REPEATS)) == (1, None)


def test_an_ownerless_trial_is_lost_after_a_minute(
    open_queue: OpenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process died between asking for it and writing down its own name."""
    mine = open_queue(1)
    mine.study.ask()
    mine.requeue_lost()
    assert mine.all_trials()[0].state == TrialState.RUNNING
    monkeypatch.setattr(queue_module, "OWNERLESS", timedelta(0))
    assert [t.number for t in run_all(mine)] == [1]


def test_an_interrupted_trial_does_not_count_and_is_repeated(open_queue: OpenQueue) -> None:
    queue = open_queue(2)
    values = []
    for trial in queue.trials():
        values.append(trial.suggest_float("lr", 0.1, 0.9))
        if len(values) < 4:
            queue.interrupt(trial)
        else:
            queue.end(trial, 0.1)
    assert len(set(values[:4])) == 1  # the same, three times cut short
    assert len(values) == 5
    assert [t.state.name for t in queue.all_trials()] == ["FAIL"] * 3 + ["COMPLETE"] * 2
    assert [t.user_attrs.get(REPEATS) for t in queue.all_trials()] == [None, 0, 1, 2, None]
    assert len(queue.finished()) == 2


def test_a_trial_that_failed_by_itself_counts(open_queue: OpenQueue) -> None:
    queue = open_queue(2)
    for trial in queue.trials():
        queue.end(trial, None, {FAILURE: "diverged"}, TrialState.FAIL)
    assert [t.user_attrs[FAILURE] for t in queue.finished()] == ["diverged"] * 2
    assert len(queue.all_trials()) == 2


def test_a_pruned_trial_counts(open_queue: OpenQueue) -> None:
    queue = open_queue(1)
    for trial in queue.trials():
        trial.report(0.3, 1)
        queue.end(trial, None, {"val_loss": 2.0}, TrialState.PRUNED)
    (found,) = queue.finished()
    assert (found.value, found.user_attrs["val_loss"]) == (0.3, 2.0)


def test_a_crash_gives_one_more_chance(open_queue: OpenQueue) -> None:
    mine = open_queue(2)
    first = start(open_queue(2, "host:7:1.00"))
    mine.crashed("host:8:1.00")  # somebody else's end
    assert mine.all_trials()[0].state == TrialState.RUNNING

    mine.crashed("host:7:1.35")  # the clock was set meanwhile
    second = start(open_queue(2, "host:9:1.00"))
    assert second.params == first.params
    assert second.user_attrs[CRASHES] == 1
    assert mine.finished() == []

    mine.crashed("host:9:1.00")
    (failed,) = mine.finished()
    assert failed.number == second.number
    assert failed.user_attrs[FAILURE] == "its process died 2 times, possibly out of memory"
    assert [t.number for t in run_all(mine)] == [2]


def test_crashes_are_not_forgotten_when_another_takes_the_trial_up(open_queue: OpenQueue) -> None:
    mine = open_queue(1)
    start(open_queue(1, DEAD))
    mine.crashed(DEAD)
    start(open_queue(1, DEAD))
    mine.requeue_lost()  # who dies of a power cut has not crashed
    start(open_queue(1, DEAD))
    mine.crashed(DEAD)
    assert [t.user_attrs[FAILURE][:24] for t in mine.finished()] == ["its process died 2 times"]


def test_a_late_result_of_a_retried_trial_is_ignored(open_queue: OpenQueue) -> None:
    late, mine = open_queue(1, DEAD), open_queue(1)
    trial = start(late)
    (again,) = run_all(mine)
    assert late.end(trial, 0.9, {"val_loss": 0.1}) is False
    assert late.end(trial, None, {FAILURE: "late"}, TrialState.FAIL) is False
    late.interrupt(trial)
    (found,) = mine.finished()
    assert (found.number, found.value) == (again.number, 0.5)
    assert len(mine.all_trials()) == 2


# --- repeated once, and by whomever ---


def test_an_interrupted_trial_that_was_not_requeued_is_requeued(open_queue: OpenQueue) -> None:
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
    mine.requeue_interrupted()
    assert len(mine.all_trials()) == before


def test_what_two_have_repeated_at_once_is_run_once(open_queue: OpenQueue) -> None:
    mine = open_queue(2)
    mine.interrupt(start(mine))
    mine.enqueue({"lr": 0.2}, **{REPEATS: 0})  # by another, who saw none yet
    assert [t.user_attrs.get(REPEATS) for t in run_all(mine)] == [0, None]
    assert len(mine.finished()) == 2
    states = [t.state for t in mine.counted()]
    assert states == [TrialState.COMPLETE] * 2


def test_a_double_that_is_left_waiting_is_neither_counted_nor_shown(open_queue: OpenQueue) -> None:
    mine = open_queue(1)
    mine.interrupt(start(mine))
    mine.enqueue({"lr": 0.2}, **{REPEATS: 0})
    assert len(run_all(mine)) == 1
    assert [t.state.name for t in mine.all_trials()] == ["FAIL", "COMPLETE", "WAITING"]
    assert len(mine.counted()) == 1


def test_an_idle_worker_does_not_take_the_place_of_a_trial_given_back(
    open_queue: OpenQueue, another: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might ask for a new one between the end of the old and its return to the queue."""
    mine, idle = open_queue(1), open_queue(1, another)
    mine.enqueue({"lr": 0.25}, baseline=True)
    trial = start(mine)
    claimed: list[Trial | None] = []
    repeat = mine.requeue_interrupted

    def meanwhile() -> None:
        claimed.append(idle.claim())
        repeat()

    monkeypatch.setattr(mine, "requeue_interrupted", meanwhile)
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
        other.requeue_lost()
        return tell(*args)

    monkeypatch.setattr(mine.study._storage, "set_trial_state_values", later)
    mine.requeue_lost()
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
    monkeypatch.setattr(queue_module.time, "sleep", lambda _: other.end(trial, 0.1))
    assert list(mine.trials(deadline=0.0)) == []
    assert len(mine.finished()) == 1
