"""Runs are in the right experiment and end with the right status."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR, RESOURCE_ALREADY_EXISTS

from shopee_mlflow.errors import TrainingError
from shopee_mlflow.tracking.runs import join_run, open_run
from shopee_mlflow.tracking.signals import Stopped, stop_on_signals


@pytest.mark.fault
def test_a_run_is_in_its_experiment_though_another_client_makes_it_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = MlflowClient.create_experiment

    def be_late(client: MlflowClient, name: str, *arguments: Any, **options: Any) -> str:
        real(client, name, *arguments, **options)
        raise MlflowException("it is there", RESOURCE_ALREADY_EXISTS)

    mlflow.set_experiment("before")
    monkeypatch.setattr(MlflowClient, "create_experiment", be_late)
    with open_run("late", "made by two") as run:
        pass
    where = mlflow.get_run(run.run_id).info.experiment_id
    assert mlflow.get_experiment(where).name == "made by two"


@pytest.mark.fault
@pytest.mark.parametrize(("code", "logged"), [(BAD_REQUEST, 1), (INTERNAL_ERROR, 0)])
def test_a_dataset_is_logged_though_another_client_logs_it_now(
    code: int, logged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = MlflowClient.log_inputs, []

    def be_late(client: MlflowClient, *arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise MlflowException('duplicate key violates unique constraint "dataset_pk"', code)
        real(client, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_inputs", be_late)
    table = pd.DataFrame({"image": ["a.jpg"], "label_group": ["a"]})
    expected = nullcontext() if logged else pytest.raises(MlflowException, match="dataset_pk")
    with open_run("late", "same data") as run, expected:
        run.log_dataset(table, "shop/train.csv", "shop", "0123", {"photos": 1})
    inputs = mlflow.get_run(run.run_id).inputs.dataset_inputs
    assert [found.dataset.digest for found in inputs] == ["0123"] * logged


def stop_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a SIGTERM arrive whenever a run is about to be ended."""
    real = MlflowClient.set_terminated

    def stop_and_end(client: MlflowClient, *arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(client, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "set_terminated", stop_and_end)


@pytest.mark.fault
def test_a_stop_while_a_failed_run_is_closed_does_not_hide_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_at_the_end(monkeypatch)
    with stop_on_signals(), pytest.raises(Stopped), open_run("fails", "closing"):
        raise TrainingError("diverged")
    found = mlflow.search_runs(experiment_names=["closing"], max_results=1, output_format="list")
    assert [(run.info.status, run.data.tags["failure"]) for run in found] == [
        ("FAILED", "diverged")
    ]


@pytest.mark.fault
def test_a_stop_while_a_finished_run_is_closed_does_not_leave_it_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_at_the_end(monkeypatch)
    with stop_on_signals(), pytest.raises(Stopped), open_run("ends", "closing well"):
        pass
    (found,) = mlflow.search_runs(experiment_names=["closing well"], output_format="list")
    assert (found.info.status, found.data.tags.get("failure")) == ("FINISHED", None)


@pytest.mark.fault
def test_a_stop_while_a_run_is_opened_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, entered = MlflowClient.create_run, []

    def create_and_stop(client: MlflowClient, *arguments: Any, **options: Any) -> Any:
        run = real(client, *arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_and_stop)
    with stop_on_signals(), pytest.raises(Stopped), open_run("begins", "opening") as run:
        entered.append(run)
    assert entered == []
    (found,) = mlflow.search_runs(experiment_names=["opening"], output_format="list")
    assert (found.info.status, found.data.tags["failure"]) == ("KILLED", "SIGTERM received")
    assert mlflow.active_run() is None


@pytest.mark.fault
def test_a_stop_while_a_joined_run_is_closed_does_not_change_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first process is gone, so that it is ended by the one that joined."""
    client = MlflowClient()
    run_id = client.create_run(client.create_experiment("joined")).info.run_id
    stop_at_the_end(monkeypatch)
    with stop_on_signals(), pytest.raises(Stopped), join_run(run_id, lambda: False):
        pass
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags.get("failure")) == ("FINISHED", None)


@pytest.mark.fault
def test_a_run_that_is_closed_at_the_second_attempt_leaves_its_parent_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, attempts = MlflowClient.set_terminated, []

    def fail_once(client: MlflowClient, *arguments: Any, **options: Any) -> None:
        attempts.append(arguments)
        if len(attempts) == 1:  # within mlflow.end_run, for which the run is no longer active
            raise MlflowException("gone away")
        real(client, *arguments, **options)

    with open_run("parent", "nested") as parent:
        monkeypatch.setattr(MlflowClient, "set_terminated", fail_once)
        with pytest.raises(TrainingError), open_run("child", "nested", parent=parent) as child:
            raise TrainingError("diverged")
        assert mlflow.get_run(child.run_id).info.status == "FAILED"
        assert mlflow.get_run(parent.run_id).info.status == "RUNNING"


def test_an_adopted_run_forgets_why_an_attempt_before_it_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_run("first", "again") as run:
        mlflow.set_tag("failure", "a peer died")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with open_run("second", "again", shared=True):
        pass
    assert "failure" not in mlflow.get_run(run.run_id).data.tags
