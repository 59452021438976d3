"""Several processes resume one run at once: one proceeds, the others exit with an error."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import MakeCatalog
from warm_process import WarmProcess

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.tracking.signals import Stopped
from shopee_mlflow.training import job
from shopee_mlflow.training.checkpoints import checkpoints_of
from shopee_mlflow.training.trainer import Trainer

ROOT = Path(__file__).parents[1]


def stop_in_first_batch(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> None:
    learn = Trainer._learn

    def interrupted(self: Trainer, *batch: Any) -> None:
        learn(self, *batch)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_learn", interrupted)
        with pytest.raises(Stopped):
            train(config)


def small(make_catalog: MakeCatalog) -> TrainConfig:
    given = {"data": str(make_catalog()), "model": "cnn", "image_size": 32, "batch_size": 6}
    return resolve(TrainConfig, {**given, "epochs": 3, "device": "cpu"})


def latest_run() -> str:
    (run,) = mlflow.search_runs(experiment_names=["shopee"], max_results=1, output_format="list")
    return str(run.info.run_id)


@pytest.fixture
def interrupted(make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a run that was interrupted in its first batch."""
    stop_in_first_batch(monkeypatch, small(make_catalog))
    return latest_run()


@pytest.mark.fault
@pytest.mark.slow
def test_a_run_that_is_being_resumed_is_left_alone(
    interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, refused = Trainer._learn, []

    def resume_again(self: Trainer, *batch: Any) -> None:
        # The tag of the run's process does not keep out: it names this very process.
        with pytest.raises(ConfigError) as caught:
            train(TrainConfig(resume=interrupted))
        refused.append(str(caught.value))
        learn(self, *batch)

    monkeypatch.setattr(Trainer, "_learn", resume_again)
    train(TrainConfig(resume=interrupted))
    assert len(refused) > 2
    assert all(
        f"resume={interrupted}: another process is resuming it" in words for words in refused
    )
    assert not checkpoints_of(interrupted).folder.exists()


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("resumed", [True, False])
def test_a_run_is_held_until_its_checkpoint_is_deleted(
    resumed: bool, make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has finished, and the checkpoint is still there."""
    config = small(make_catalog)
    if resumed:
        stop_in_first_batch(monkeypatch, config)
        config = TrainConfig(resume=latest_run())
    delete, statuses = job.delete_checkpoints, []

    def resume_and_delete(run_id: str) -> None:
        statuses.append(mlflow.get_run(run_id).info.status)
        with pytest.raises(ConfigError, match="another process is resuming it"):
            train(TrainConfig(resume=run_id))
        delete(run_id)

    monkeypatch.setattr(job, "delete_checkpoints", resume_and_delete)
    train(config)
    assert statuses == ["FINISHED"]


@pytest.mark.slow
def test_a_resumed_run_that_stops_can_be_resumed(
    interrupted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_first_batch(monkeypatch, TrainConfig(resume=interrupted))
    assert train(TrainConfig(resume=interrupted)).run_id == interrupted


@pytest.mark.slow
def test_on_a_disk_without_locks_the_user_is_told(
    interrupted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert train(TrainConfig(resume=interrupted)).run_id == interrupted
    assert "Make sure that no other process resumes this run" in caplog.text


@pytest.mark.slow
def test_of_three_that_resume_at_once_one_is_let_in(interrupted: str) -> None:
    command = ["shopee_mlflow", "train", "--resume", interrupted]
    started = [WarmProcess(*command) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in started]
    # Those that came later than its end are refused as well.
    assert sorted(process.returncode for process in started) == [0, 2, 2], said
    client = mlflow.MlflowClient()
    assert client.get_run(interrupted).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(interrupted, "val_loss")] == [1, 2, 3]
