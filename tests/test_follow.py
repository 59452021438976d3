"""A run of several processes ends with the right status and the reason of a failure."""

from __future__ import annotations

import os
import signal

import mlflow
import pytest
from mlflow.entities import Run

from shopee_mlflow.errors import GroupLostError, TrainingError
from shopee_mlflow.tracking import follow
from shopee_mlflow.tracking.follow import follow_run
from shopee_mlflow.tracking.names import PROCESS_TAG
from shopee_mlflow.tracking.processes import process_name
from shopee_mlflow.tracking.runs import open_run
from shopee_mlflow.tracking.signals import Stopped, graceful_stop, stop_on_signals

GONE = process_name().rsplit(":", 2)[0] + ":999999999:1.00"


def last_run() -> Run:
    order = ["start_time DESC"]
    found = mlflow.search_runs(
        experiment_names=["shopee"], max_results=1, order_by=order, output_format="list"
    )
    return found[0]


def fail_beside_a_leader(error: BaseException) -> None:
    owner = {PROCESS_TAG: process_name()}
    with open_run("leader", tags=owner, shared=True) as run:
        with pytest.raises(TrainingError), follow_run(run.run_id):
            raise TrainingError("no memory here")
        assert last_run().info.status == "RUNNING"
        raise error


@pytest.mark.parametrize("error", [GroupLostError("one is gone"), Stopped("SIGTERM received")])
def test_a_follower_leaves_its_reason_to_the_one_that_ends_the_run(error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail_beside_a_leader(error)
    ended = last_run()
    assert ended.info.status == "FAILED"
    assert ended.data.tags["failure"] == f"{process_name()}: no memory here"


def test_a_leader_that_knows_no_more_says_that_another_is_gone() -> None:
    with pytest.raises(GroupLostError), open_run("leader", shared=True):
        raise GroupLostError("another one is gone")
    assert last_run().data.tags["failure"] == "another one is gone"


def test_a_leader_on_another_machine_is_given_time_to_end_its_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "_SECONDS_ELSEWHERE", 0.01)
    with open_run("leader", tags={PROCESS_TAG: "elsewhere:1:1.00"}) as run:
        with pytest.raises(GroupLostError), follow_run(run.run_id):
            raise GroupLostError("lost")
        assert last_run().info.status == "FAILED"
        assert "elsewhere:1:1.00 (lost)" in last_run().data.tags["failure"]
        # As where the group was started again meanwhile.
        monkeypatch.setattr(
            follow,
            "_wait_until_gone",
            lambda _: mlflow.set_tag(PROCESS_TAG, "elsewhere:2:2.00") is None,
        )
        mlflow.MlflowClient().update_run(run.run_id, status="RUNNING")
        with pytest.raises(GroupLostError), follow_run(run.run_id):
            raise GroupLostError("lost")
        assert last_run().info.status == "RUNNING"


@pytest.mark.parametrize("error", [GroupLostError("lost"), Stopped("SIGTERM received")])
def test_a_follower_ends_the_run_of_a_leader_that_is_gone(error: BaseException) -> None:
    with open_run("leader", tags={PROCESS_TAG: GONE}) as run:
        with pytest.raises(type(error)), follow_run(run.run_id):
            raise error
        ended = last_run()
    assert ended.info.status == "FAILED"
    reason = f"Another process of the group is gone: {GONE} ({error})"
    assert ended.data.tags["failure"] == reason


def stop_at_the_second_place(asked: list[bool]) -> None:
    def agree(mine: bool) -> bool:
        asked.append(mine)
        return len(asked) == 2

    with graceful_stop(agree) as check_stop:
        check_stop()
        check_stop()


def test_a_group_stops_where_all_agree() -> None:
    asked: list[bool] = []
    with stop_on_signals(), pytest.raises(Stopped, match="another process of the group"):
        stop_at_the_second_place(asked)
    assert asked == [False, False]


def lose_one_and_be_stopped() -> None:
    with graceful_stop(lambda mine: mine):
        os.kill(os.getpid(), signal.SIGTERM)
        raise GroupLostError("lost")


def lose_one_and_be_stopped_then() -> None:
    try:
        with graceful_stop(lambda mine: mine):
            raise GroupLostError("lost")
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_group_that_lost_one_tells_that_and_not_the_stop_that_followed() -> None:
    with stop_on_signals(), pytest.raises(GroupLostError):
        lose_one_and_be_stopped()
    with stop_on_signals(), pytest.raises(GroupLostError):
        lose_one_and_be_stopped_then()
