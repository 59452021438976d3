"""An interrupted training resumes in its run, with the result of an undisturbed training."""

from __future__ import annotations

import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
import torchvision
from conftest import MakeCatalog, draw_photo
from new_store import new_store
from warm_process import WarmProcess

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.cli import main
from shopee_mlflow.config import TuneConfig, resolve
from shopee_mlflow.errors import CheckpointError, ConfigError, TrackingError
from shopee_mlflow.modeling import scoring
from shopee_mlflow.tracking.names import PROCESS_TAG
from shopee_mlflow.tracking.registry import register_model
from shopee_mlflow.tracking.signals import Stopped
from shopee_mlflow.training import resume
from shopee_mlflow.training.checkpoints import checkpoints_of
from shopee_mlflow.training.trainer import Trainer
from shopee_mlflow.verbs.train import TrainResult

ROOT = Path(__file__).parents[1]
# Dropout, batch norms and augmentation: all that could make a second half differ. 3 batches.
OPTIONS = {
    "model": "mobilenet_v3_small",
    "image_size": "32",
    "epochs": "4",
    "batch_size": "8",
    "lr": "0.02",
    "augment": "original",
}
CLOCK = ["epoch_seconds", "images_per_second"]


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_places: None) -> None:
    """A checkpoint's place is beside the store, and ``last`` looks through all of them."""
    del own_places
    monkeypatch.setattr(
        "shopee_mlflow.training.checkpoints.local_folder", lambda: tmp_path / "store"
    )


def config(folder: Path, **options: str) -> TrainConfig:
    return resolve(TrainConfig, {**OPTIONS, "data": str(folder), **options})


def interrupt(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig, after: int, signals: int = 1
) -> str:
    """Run a training that gets a Ctrl-C within a batch; returns its run's id."""
    learn, left = Trainer._learn, [after]

    def interrupted(self: Trainer, *batch: Any) -> None:
        learn(self, *batch)
        left[0] -= 1
        if left[0] == 0:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_learn", interrupted)
        with pytest.raises(Stopped, match="SIGINT"):
            train(config)
    (run,) = mlflow.search_runs(experiment_names=["shopee"], max_results=1, output_format="list")
    return str(run.info.run_id)


def history_of(run_id: str) -> pd.DataFrame:
    """What the store has of a run's epochs, with what depends on the clock left out."""
    client = mlflow.MlflowClient()
    names = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    table = {name: client.get_metric_history(run_id, name) for name in names}
    assert all([m.step for m in column] == [1, 2, 3, 4] for column in table.values())
    return pd.DataFrame({name: [m.value for m in column] for name, column in table.items()})


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, TrainResult]:
    """Trainings that nothing has interrupted, by their loss."""
    return {}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("after", "loss"),
    [
        (3, "cross_entropy"),
        (5, "arcface"),
        *(pytest.param(n, "cross_entropy", marks=pytest.mark.slow) for n in (1, 5, 12)),
    ],
)
@pytest.mark.slow
def test_a_training_goes_on_to_the_same_end(
    after: int,
    loss: str,
    undisturbed: dict[str, TrainResult],
    make_catalog: MakeCatalog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = config(make_catalog(), loss=loss)
    if loss not in undisturbed:
        undisturbed[loss] = train(chosen)
    expected = undisturbed[loss]
    run_id = interrupt(monkeypatch, chosen, after)

    stopped = mlflow.get_run(run_id)
    assert stopped.info.status == "KILLED"
    assert stopped.data.tags["failure"] == "SIGINT received"
    assert (
        f"resume with: python -m shopee_mlflow train --resume {run_id}" in capsys.readouterr().out
    )

    result = train(TrainConfig(resume="last"))
    assert result.run_id == run_id
    pd.testing.assert_frame_equal(
        result.history.drop(columns=CLOCK), expected.history.drop(columns=CLOCK)
    )
    pd.testing.assert_frame_equal(history_of(run_id), history_of(expected.run_id))
    assert result.scores == expected.scores
    ended = mlflow.get_run(run_id)
    assert ended.info.status == "FINISHED"
    assert "failure" not in ended.data.tags
    assert not checkpoints_of(run_id).folder.exists()


@pytest.mark.fault
@pytest.mark.slow
def test_the_second_ctrl_c_leaves_the_checkpoint_before(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopee_mlflow.training.checkpoints._SAVE_SECONDS", 0.0)
    run_id = interrupt(monkeypatch, config(make_catalog()), after=5, signals=2)
    last, _ = checkpoints_of(run_id).load()
    assert (len(last["history"]), last["training"]["batches"]) == (1, 0)
    train(TrainConfig(resume=run_id))
    assert len(history_of(run_id)) == 4


@pytest.mark.fault
def test_other_options_are_refused(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupt(monkeypatch, config(make_catalog()), after=1)
    with pytest.raises(ConfigError, match="model=effnet: the training began with model=mobilenet"):
        train(TrainConfig(resume=run_id, model="effnet"))
    with pytest.raises(ConfigError, match="epochs=20: the training began with epochs=4"):
        train(TrainConfig(resume=run_id), {"epochs": "20"})


@pytest.mark.slow
def test_a_checkpoint_from_before_near_bits_ties_equal_phashes_only(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = interrupt(monkeypatch, config(make_catalog(), near_bits="0"), after=1)
    last, _ = checkpoints_of(run_id).load()
    del last["params"]["near_bits"]
    checkpoints_of(run_id).save(last)
    assert train(TrainConfig(resume=run_id)).dataset.config.near_bits == 0


@pytest.mark.slow
def test_where_things_are_may_change(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_catalog()
    weights, file = folder / "start.pth", folder / "options.yaml"
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), weights)
    file.write_text("label_smoothing: 0.1\n")
    options = {"model": "mobilenet_v3_small_pretrained", "weights": str(weights)}
    run_id = interrupt(monkeypatch, config(folder, **options, config=str(file)), after=1)
    file.unlink()
    moved = folder.rename(folder.with_name("moved"))
    again = TrainConfig(
        resume=run_id, data=str(moved), weights=str(moved / "start.pth"), cache=False
    )
    train(again, {"workers": "1"})
    assert len(history_of(run_id)) == 4


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data", "The data have changed since the training began: 24 photos .* 25 with"),
        (
            "classes",
            r"The label groups have changed .*3 then, 3 now; removed: group2; added: other\)",
        ),
        ("weights", "The initial weights of the network have changed"),
    ],
)
def test_another_training_is_refused(
    change: str, message: str, make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_catalog()
    weights = folder / "start.pth"
    changed = torchvision.models.mobilenet_v3_small().state_dict()
    torch.save(changed, weights)
    began = config(folder, weights=str(weights), model="mobilenet_v3_small_pretrained")
    run_id = interrupt(monkeypatch, began, after=1)
    table = folder / "train.csv"
    if change == "data":
        draw_photo(2, 99).save(folder / "train_images" / "more.png")
        table.write_text(table.read_text() + "p,more.png,title,group2\n")
    elif change == "classes":
        table.write_text(table.read_text().replace("group2", "other"))
    else:
        changed["features.0.0.weight"] += 1
        torch.save(changed, weights)
    with pytest.raises(CheckpointError, match=message):
        train(TrainConfig(resume=run_id))
    assert mlflow.get_run(run_id).info.status == "FAILED"
    assert checkpoints_of(run_id).is_there()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("resume", "error", "message"),
    [
        ("last", ConfigError, "resume=last: there is no interrupted training in "),
        ("yesterday", ConfigError, "resume=yesterday: must be a run id .* or last"),
        ("../" * 3 + "etc", ConfigError, "must be a run id"),
        ("0" * 32, TrackingError, "no such run"),
    ],
)
def test_nothing_to_go_on_from(resume: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(TrainConfig(resume=resume))


@pytest.mark.slow
def test_a_finished_run_has_nothing_left(make_catalog: MakeCatalog) -> None:
    done = train(config(make_catalog(), epochs="1"))
    with pytest.raises(ConfigError, match="this run has finished; there is nothing to resume"):
        train(TrainConfig(resume=done.run_id))


@pytest.mark.fault
@pytest.mark.slow
def test_a_run_under_way_is_left_alone(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch, another: str
) -> None:
    run_id = interrupt(monkeypatch, config(make_catalog()), after=1)
    client = mlflow.MlflowClient()
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, PROCESS_TAG, another)
    with pytest.raises(ConfigError, match=f"it is running in process {another}"):
        train(TrainConfig(resume=run_id))
    with pytest.raises(ConfigError, match="no interrupted training in .*; 1 running"):
        train(TrainConfig(resume="last"))
    # Of another machine's processes nobody knows; so ``last`` leaves theirs alone as well.
    client.set_tag(run_id, PROCESS_TAG, "elsewhere:1:1")
    with pytest.raises(ConfigError, match="1 running"):
        train(TrainConfig(resume="last"))
    assert train(TrainConfig(resume=run_id)).run_id == run_id


@pytest.mark.fault
@pytest.mark.slow
def test_a_stop_in_validation_keeps_the_epoch(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_catalog()
    undisturbed = train(config(folder))
    answer, left = scoring._forward, [2]

    def interrupted(*arguments: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "_forward", interrupted)
        with pytest.raises(Stopped):
            train(config(folder))
    (run_id,) = [place.name for place in checkpoints_of("x").folder.parent.iterdir()]
    last, _ = checkpoints_of(run_id).load()
    assert (len(last["history"]), last["training"]["batches"]) == (1, 3)
    train(TrainConfig(resume="last"))
    pd.testing.assert_frame_equal(history_of(run_id), history_of(undisturbed.run_id))


@pytest.mark.fault
@pytest.mark.slow
def test_an_earlier_end_that_failed_leaves_one_model_and_the_same_scores(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_catalog()

    def fail(*arguments: Any) -> None:
        raise OSError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr("shopee_mlflow.training.results.learning_curves", fail)
        with pytest.raises(TrackingError, match="The training has ended, and nothing is lost"):
            train(config(folder))
    result = train(TrainConfig(resume="last"))
    scores = mlflow.MlflowClient().get_metric_history(result.run_id, "test_loss")
    assert {score.value for score in scores} == {result.scores["test_loss"]}
    registered = register_model(result.run_id, "resumed")
    version = mlflow.MlflowClient().get_model_version("resumed", registered.version)
    assert version.source == f"models:/{result.model_id}"


def test_a_search_is_not_resumed_as_a_training() -> None:
    with pytest.raises(ConfigError, match="a search resumes when its command is repeated"):
        resolve(TuneConfig, {"resume": "last"})


@pytest.mark.fault
@pytest.mark.slow
def test_runs_of_processes_that_are_gone_are_ended(
    make_catalog: MakeCatalog, another: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("stale runs")
    gone = f"{platform.node()}:999999999:1"

    def running(host: str, owner: str, **more: str) -> str:
        tags = {"host": host, PROCESS_TAG: owner, **more}
        return str(client.create_run(experiment, tags=tags).info.run_id)

    stale = running(platform.node(), gone)
    checkpoints_of(stale).save({"history": []})
    others = [
        running(platform.node(), another),
        running("elsewhere", "elsewhere:1:1"),
        running(platform.node(), gone, trial="3"),
    ]
    train(config(make_catalog(), epochs="1", experiment="stale runs"))
    run = client.get_run(stale)
    assert (run.info.status, run.data.tags["failure"]) == (
        "KILLED",
        f"its process {gone} is gone",
    )
    said = capsys.readouterr().out
    assert f"run {stale} belonged to a process that is gone; it is marked as KILLED" in said
    assert f"train --resume {stale}" in said
    assert [client.get_run(run_id).info.status for run_id in others] == ["RUNNING"] * 3


@pytest.mark.fault
def test_a_run_that_ends_while_stale_runs_are_listed_keeps_its_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another training ends it and exits, after this one has found it as RUNNING."""
    client = mlflow.MlflowClient()
    tags = {"host": platform.node(), PROCESS_TAG: f"{platform.node()}:999999999:1"}
    run_id = client.create_run(client.create_experiment("ends now"), tags=tags).info.run_id

    def end(owner: str) -> bool:
        client.set_terminated(run_id, "FINISHED")
        return True

    monkeypatch.setattr(resume, "is_gone", end)
    resume.close_stale_runs("ends now")
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags.get("failure")) == ("FINISHED", None)
    assert capsys.readouterr().out == ""


@pytest.mark.fault
@pytest.mark.slow
def test_after_a_real_sigkill_the_next_start_offers_to_go_on(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    folder = make_catalog(groups=3, each=40)
    store = new_store(tmp_path / "mlflow.db")
    env = {**os.environ, "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1"}
    options = {**OPTIONS, "data": str(folder), "model": "cnn", "epochs": "30", "batch_size": "4"}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = WarmProcess("shopee_mlflow", "train", *words, env=env)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("checkpoints/*/last.pt")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "no checkpoint after two minutes"
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    (run_id,) = [folder.name for folder in tmp_path.glob("checkpoints/*")]
    again = WarmProcess("shopee_mlflow", "train", "--resume", "last", env=env)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert f"resuming run {run_id} after epoch " in said
    assert " of 30\n" in said
    client = mlflow.MlflowClient(env["MLFLOW_TRACKING_URI"])
    assert client.get_run(run_id).info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(run_id, "val_loss")]
    assert steps == list(range(1, 31))


@pytest.mark.fault
def test_the_command_ends_with_130_and_says_how_to_go_on(
    make_catalog: MakeCatalog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    learn = Trainer._learn

    def interrupted(self: Trainer, *batch: Any) -> None:
        learn(self, *batch)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_learn", interrupted)
    words = [w for name, value in OPTIONS.items() for w in (f"--{name}", value)]
    with pytest.raises(SystemExit) as leaving:
        main(["train", "--data", str(make_catalog()), *words])
    assert leaving.value.code == 130
    assert "resume with: python -m shopee_mlflow train --resume " in capsys.readouterr().out
