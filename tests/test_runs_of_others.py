"""Runs that someone else created, deleted or holds open are not overwritten."""

from __future__ import annotations

import logging
from pathlib import Path

import mlflow
import pytest
from conftest import MakeCatalog
from small_run import small_run

from shopee_mlflow import TrainConfig, compare, train
from shopee_mlflow.cli import main
from shopee_mlflow.config import resolve
from shopee_mlflow.errors import TrackingError
from shopee_mlflow.tracking.flavor import load_folder
from shopee_mlflow.tracking.runs import open_run
from shopee_mlflow.tracking.store import check_artifacts
from shopee_mlflow.tracking.unopened_runs import end_unopened_run
from shopee_mlflow.training.checkpoints import checkpoints_of

OPTIONS = {"model": "cnn", "image_size": "32", "epochs": "1", "batch_size": "8"}


def config(folder: Path, **options: str) -> TrainConfig:
    return resolve(TrainConfig, {**OPTIONS, "data": str(folder), **options})


@pytest.mark.slow
def test_a_finished_run_that_the_environment_names_is_not_written_over(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_catalog()
    first = train(config(folder))
    before = mlflow.get_run(first.run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", first.run_id)
    with pytest.raises(TrackingError, match=r"this run has ended \(FINISHED\).*Unset the variable"):
        train(config(folder, lr="0.05"))
    end_unopened_run("a later command's mistake")
    after = mlflow.get_run(first.run_id)
    assert after.info.status == "FINISHED"
    assert after.data.metrics == before.data.metrics
    assert after.data.tags == before.data.tags


def test_a_run_in_which_a_command_is_working_is_not_adopted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_run("first", tags={"process": "here:1:1"}) as run:
        monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
        end_unopened_run("another command's mistake")
        assert mlflow.get_run(run.run_id).info.status == "RUNNING"
        with (
            pytest.raises(TrackingError, match="already has results of another command"),
            open_run("second"),
        ):
            pass
        monkeypatch.delenv("MLFLOW_RUN_ID")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lr": "7", "epochs": "3"}, r"already has options of a training \(epochs, lr\)"),
        ({"train_loss": 0.5}, "already has metrics of a training"),
    ],
)
def test_a_run_with_a_trainings_options_or_metrics_is_not_adopted(
    values: dict[str, float | str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = mlflow.set_experiment("shopee")
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment.experiment_id).info.run_id
    for name, value in values.items():
        if isinstance(value, str):
            client.log_param(run_id, name, value)
        else:
            client.log_metric(run_id, name, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(TrackingError, match=said), open_run("second"):
        pass
    end_unopened_run("another command's mistake")
    assert mlflow.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("source", "values"),
    [("PROJECT", {"lr": "7"}), ("LOCAL", {"queue": "night"})],
)
def test_a_run_with_options_of_mlflow_run_or_of_a_scheduler_is_adopted(
    source: str, values: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = mlflow.set_experiment("shopee")
    client, tags = mlflow.MlflowClient(), {"mlflow.source.type": source}
    run_id = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    for name, value in values.items():
        client.log_param(run_id, name, value)
    client.log_metric(run_id, "system/waited_seconds", 3)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with open_run("mine") as run:
        assert run.run_id == run_id


def test_a_new_run_that_the_environment_names_is_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = mlflow.set_experiment("shopee")
    made = mlflow.MlflowClient().create_run(experiment.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with open_run("mine") as run:
        assert run.run_id == made.info.run_id


@pytest.mark.fault
@pytest.mark.parametrize(("source", "kind"), [("PROJECT", "not-started"), ("LOCAL", None)])
def test_a_mistake_marks_the_run_that_mlflow_run_has_created(
    source: str,
    kind: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that a scheduler has created only fails with the reason."""
    experiment = mlflow.set_experiment("mistakes")
    tags = {"mlflow.source.type": source}
    made = mlflow.MlflowClient().create_run(experiment.experiment_id, tags=tags)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with pytest.raises(SystemExit):
        main(["train", "--data", "nowhere"])
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    run = mlflow.get_run(made.info.run_id)
    # A deleted run would make mlflow run end with a traceback.
    assert (run.info.status, run.info.lifecycle_stage) == ("FAILED", "active")
    assert "nowhere: no such file or folder" in run.data.tags["failure"]
    assert run.data.tags.get("kind") == kind


@pytest.mark.fault
def test_the_next_command_deletes_runs_that_were_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = mlflow.set_experiment("mistakes")
    client, tags = mlflow.MlflowClient(), {"mlflow.source.type": "PROJECT"}
    old, young, failed = (
        client.create_run(experiment.experiment_id, tags=tags).info.run_id for _ in range(3)
    )
    for run_id in (old, young):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        end_unopened_run("a mistake")
    monkeypatch.delenv("MLFLOW_RUN_ID")
    long_ago = 1_000_000_000_000
    client.set_terminated(old, "FAILED", long_ago)
    client.set_terminated(failed, "FAILED", long_ago)
    with open_run("next", "mistakes"):
        stages = {i: client.get_run(i).info.lifecycle_stage for i in (old, young, failed)}
    # mlflow run may still write the status of the young one.
    assert stages == {old: "deleted", young: "active", failed: "active"}


@pytest.mark.fault
@pytest.mark.parametrize("command", [["train"], ["tune"], ["experiments"], ["explore"]])
def test_a_mistyped_path_leaves_no_run(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(mlflow.search_runs(search_all_experiments=True, output_format="list"))
    with pytest.raises(SystemExit):
        main([*command, "--data", "nowhere"])
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == before


@pytest.mark.parametrize("command", ["train", "tune"])
def test_a_mistyped_path_is_named_before_weights_are_downloaded(
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def download(*_args: object, **_settings: object) -> None:
        raise AssertionError("weights were downloaded")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with pytest.raises(SystemExit):
        main([command, "--data", "nowhere", "--model", "effnet_pretrained"])
    assert "nowhere: no such file or folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_within_a_run_of_the_caller_is_its_child(make_catalog: MakeCatalog) -> None:
    mlflow.set_experiment("the caller's")
    with mlflow.start_run(run_name="outer") as outer:
        result = train(config(make_catalog()))
        mlflow.log_metric("after", 1.0)
    inner = mlflow.get_run(result.run_id)
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert inner.info.experiment_id == outer.info.experiment_id
    assert mlflow.get_run(outer.info.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_compare_passes_over_runs_of_other_tools(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_run(tmp_path_factory.getbasetemp())
    where = mlflow.get_run(run.result.run_id).info.experiment_id
    again = train(config(run.shop, seed="3"))
    foreign = mlflow.start_run(experiment_id=where, run_name="my own script")
    mlflow.log_metrics({"best_val_accuracy": 2.0, "test_accuracy": 0.8})
    mlflow.end_run()
    with caplog.at_level(logging.WARNING):
        result = compare([], experiment="shopee", best=2, out=tmp_path / "comparison")
    assert foreign.info.run_id not in result.runs.to_string()
    assert any("my own script" in message for message in caplog.messages)
    assert again.run_id


@pytest.mark.fault
@pytest.mark.slow
def test_compare_in_a_store_that_was_moved_names_the_cause(
    tmp_path: Path,
    make_catalog: MakeCatalog,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/one/mlflow.db")
    run_id = train(config(make_catalog())).run_id
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/two/mlflow.db")
    with pytest.raises(TrackingError, match="none of its finished runs can be compared"):
        compare([], experiment="shopee", best=2, out=tmp_path / "comparison")
    assert f"looked for in {tmp_path}/one/" in caplog.text
    assert run_id in caplog.text
    assert "move it back" in caplog.text


@pytest.mark.slow
def test_resume_last_passes_over_deleted_and_unknown_runs(
    make_catalog: MakeCatalog,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = "shopee_mlflow.training.checkpoints.local_folder"
    monkeypatch.setattr(store, lambda: tmp_path / "store")
    deleted = train(config(make_catalog())).run_id
    mlflow.delete_run(deleted)
    for run_id in (deleted, "0" * 32):
        checkpoints_of(run_id).save({"history": []})
    with pytest.raises(SystemExit):
        main(["train", "--resume", "last"])
    said = capsys.readouterr().err
    assert f"run {deleted} was deleted; passed over" in said
    assert f"run {'0' * 32} has a checkpoint but is not in the store" in said
    assert "there is no interrupted training" in said


def test_checkpoints_outlive_a_temporary_clone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``mlflow run`` of a git address works in a folder that nobody finds again."""
    clone, home = tmp_path / "clone", tmp_path / "state"
    clone.mkdir()
    monkeypatch.chdir(clone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    monkeypatch.delenv("SHOPEE_MLFLOW_STATE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert checkpoints_of("run").folder == home / "shopee_mlflow" / "checkpoints" / "run"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    assert checkpoints_of("run").folder.resolve() == clone / "checkpoints" / "run"
    monkeypatch.setenv("SHOPEE_MLFLOW_STATE", str(tmp_path / "chosen"))
    assert checkpoints_of("run").folder == tmp_path / "chosen" / "checkpoints" / "run"


def test_a_model_whose_files_are_gone_is_not_called_another_kind(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="not at the path that the store .*was moved or copied"):
        load_folder(tmp_path, "models:/m-1")
    (tmp_path / "MLmodel").write_text("")
    with pytest.raises(TrackingError, match="not a model of this project"):
        load_folder(tmp_path, "models:/m-1")


def test_a_store_that_was_moved_from_its_artifacts_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "two" / "mlruns").mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/two/mlflow.db")
    with caplog.at_level(logging.WARNING):
        check_artifacts(f"{tmp_path}/two/mlruns/1/run/artifacts")
        assert caplog.messages == []
        check_artifacts(f"{tmp_path}/one/mlruns/1/run/artifacts")
    assert f"stored in {tmp_path}/one/mlruns" in caplog.messages[0]
