"""A whole training in one process: its result, its logs, its errors."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeCatalog
from mlflow.entities import Run

from shopee_mlflow import TrainConfig, train, tune
from shopee_mlflow.config import as_params, resolve
from shopee_mlflow.data.splits import SPLITS
from shopee_mlflow.errors import CatalogError, ModelError, TrainingError
from shopee_mlflow.tracking.flavor import ABOUT_FILE
from shopee_mlflow.tracking.registry import load_classifier
from shopee_mlflow.yaml_file import read_yaml


def tiny(folder: Path, **options: Any) -> TrainConfig:
    """A training that ends in a moment."""
    given = {"data": str(folder), "model": "cnn", "image_size": 32, "epochs": 2, "batch_size": 8}
    return resolve(TrainConfig, {**given, **options})


def last_run(experiment: str) -> Run:
    found = mlflow.MlflowClient().get_experiment_by_name(experiment)
    assert found is not None
    (run,) = mlflow.MlflowClient().search_runs([found.experiment_id], max_results=1)
    return run


def artifacts(run_id: str, folder: str = "") -> set[str]:
    client = mlflow.MlflowClient()
    found: set[str] = set()
    for item in client.list_artifacts(run_id, folder or None):
        found |= artifacts(run_id, item.path) if item.is_dir else {item.path}
    return found


@pytest.mark.drawn
@pytest.mark.slow
def test_a_run_logs_all_that_the_contract_names(make_catalog: MakeCatalog) -> None:
    config = tiny(make_catalog(), epochs=3)
    result = train(config)
    run = mlflow.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("cnn epochs=3 ")
    assert run.data.params == as_params(config)

    metrics = run.data.metrics
    by_epoch = "train_loss train_accuracy val_loss val_accuracy lr epoch_seconds images_per_second"
    client = mlflow.MlflowClient()
    for name in by_epoch.split():
        steps = [m.step for m in client.get_metric_history(result.run_id, name)]
        assert steps == [1, 2, 3], name
    once = "best_val_accuracy best_epoch test_accuracy test_accuracy_low test_accuracy_high"
    more = "val_macro_f1 val_balanced_accuracy val_top5_accuracy"
    tested = "test_loss test_macro_f1 test_balanced_accuracy test_top5_accuracy"
    # Nothing else: counts of the data are in the dataset's profile.
    assert set(metrics) == set(f"{by_epoch} {once} {more} {tested}".split())
    data = run.inputs.dataset_inputs[0].dataset
    counts = json.loads(data.profile)
    assert (data.name, counts["rows"], counts["label_groups"]) == ("shop", 24, 3)
    assert counts["test_images"] == len(result.dataset.rows("test"))
    assert metrics["test_accuracy_low"] <= metrics["test_accuracy"]
    assert metrics["test_accuracy"] <= metrics["test_accuracy_high"]
    assert metrics["best_val_accuracy"] == result.history["val_accuracy"].max()

    tags = run.data.tags
    assert tags["kind"] == "train"
    assert tags["data_digest"] == result.dataset.digest
    assert {"git_commit", "device", "torch_version", "python_version"} <= set(tags)
    assert run.inputs.dataset_inputs[0].dataset.digest == result.dataset.digest
    assert artifacts(result.run_id) == {
        "data/manifest.csv",
        "data/cleaning.txt",
        "data/counts.json",
        "data/left_out.csv",
        "training/history.csv",
        "training/learning_curves.png",
        "test/confusion_matrix.png",
        "test/confusion_matrix.csv",
        "test/report.csv",
        "test/predictions.csv",
        "test/calibration.csv",
        "test/calibration.json",
        "test/strangers.json",
        "report.html",
    }


@pytest.mark.slow
def test_the_manifest_and_predictions_are_those_of_the_result(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    result = train(tiny(make_catalog()))
    folder = mlflow.artifacts.download_artifacts(run_id=result.run_id, dst_path=str(tmp_path / "a"))
    manifest = pd.read_csv(Path(folder) / "data/manifest.csv", dtype=str)
    assert list(manifest.columns) == ["image", "label_group", "split", "content", "image_phash"]
    phashes = result.dataset.frame.set_index("image")["image_phash"]
    assert manifest.pop("image_phash").tolist() == phashes[manifest["image"]].tolist()
    assert manifest.equals(result.dataset.manifest().astype(manifest.dtypes))
    predictions = pd.read_csv(Path(folder) / "test/predictions.csv")
    test = manifest[manifest["split"] == "test"]
    assert sorted(predictions["image"]) == sorted(test["image"])
    right = (predictions["label_group"] == predictions["predicted"]).mean()
    assert right == pytest.approx(result.scores["test_accuracy"])


@pytest.mark.slow
def test_the_description_says_what_matters(make_catalog: MakeCatalog) -> None:
    result = train(tiny(make_catalog(), epochs=2))
    run = mlflow.get_run(result.run_id)
    text, scores = run.data.tags["mlflow.note.content"], result.scores
    low, high = scores["test_accuracy_low"], scores["test_accuracy_high"]
    sizes = " / ".join(f"{len(result.dataset.rows(name))} {name}" for name in SPLITS)
    assert text.startswith(f"Test accuracy {scores['test_accuracy']:.1%}, 95 % interval ")
    for words in (
        f"{low:.1%} to {high:.1%}, {len(result.test_labels)} photos",
        f"cnn, freeze=none; shop: 24 photos of 3 label groups ({sizes})",
        "epochs=2",
        f"[report.html](#/experiments/{run.info.experiment_id}/runs/{result.run_id}/artifacts/",
    ):
        assert words in text


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.slow
def test_the_logged_model_is_the_best_epochs_and_knows_its_classes(
    make_catalog: MakeCatalog, tta: bool
) -> None:
    result = train(tiny(make_catalog(), epochs=4, tta=tta))
    loaded = mlflow.pytorch.load_model(f"models:/{result.model_id}", weights_only=False)
    test = result.dataset.rows("test")
    images = torch.from_numpy(result.dataset.pixels[test]).permute(0, 3, 1, 2)
    with torch.no_grad():
        np.testing.assert_allclose(loaded(images).numpy(), result.test_logits, atol=1e-5)
    assert loaded.classes == result.dataset.classes
    assert loaded.image_size == 32
    assert loaded.tta == tta

    info = mlflow.get_logged_model(result.model_id)
    assert {m.key: m.value for m in info.metrics}["test_accuracy"] == result.scores["test_accuracy"]
    card = mlflow.models.get_model_info(f"models:/{result.model_id}")
    assert card.signature is not None
    assert card.signature.inputs.input_names() == ["image"]
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{result.model_id}"))
    requirements = (folder / "requirements.txt").read_text().split()
    assert {r.split("==")[0] for r in requirements} >= {"mlflow", "torch", "torchvision"}
    assert all("==" in r for r in requirements)
    assert (folder / "data" / ABOUT_FILE).is_file()


@pytest.mark.slow
def test_tta_is_in_every_form_of_the_model(make_catalog: MakeCatalog) -> None:
    folder = make_catalog()
    result = train(tiny(folder, tta=True, serialization="pt2"))
    test = result.dataset.rows("test")
    images = torch.from_numpy(result.dataset.pixels[test]).permute(0, 3, 1, 2)
    program = load_classifier(f"models:/{result.model_id}").module
    with torch.no_grad():
        np.testing.assert_allclose(program(images).numpy(), result.test_logits, atol=1e-5)
    served = mlflow.pyfunc.load_model(f"models:/{result.model_id}")
    files = [str(folder / "train_images" / name) for name in result.dataset.frame["image"][test]]
    answers = served.predict(pd.DataFrame({"image": files}))
    np.testing.assert_allclose(
        answers["probability"], np.exp(result.test_logits).max(axis=1), rtol=1e-3
    )


@pytest.mark.slow
def test_the_same_options_give_the_same_run_and_another_seed_another(
    make_catalog: MakeCatalog,
) -> None:
    folder = make_catalog()
    timeless = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    first, again = train(tiny(folder)), train(tiny(folder))
    assert first.history[timeless].equals(again.history[timeless])
    assert (first.test_logits == again.test_logits).all()
    other = train(tiny(folder, seed=1))
    assert not first.history[timeless].equals(other.history[timeless])
    assert first.dataset.digest == other.dataset.digest
    assert train(tiny(folder, split_seed=1)).dataset.digest != first.dataset.digest


@pytest.mark.slow
@pytest.mark.parametrize("tta", [False, True])
def test_frozen_training_gives_a_whole_model(make_catalog: MakeCatalog, tta: bool) -> None:
    options = {"model": "mobilenet_v3_small", "freeze": "features.3", "image_size": 64}
    result = train(tiny(make_catalog(), **options, epochs=1, tta=tta))
    test = result.dataset.rows("test")
    images = torch.from_numpy(result.dataset.pixels[test]).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = result.model(images).numpy()
    np.testing.assert_allclose(logits, result.test_logits, rtol=1e-3, atol=1e-4)
    assert all(p.requires_grad for p in result.model.parameters())


@pytest.mark.slow
def test_patience_stops_early(make_catalog: MakeCatalog) -> None:
    result = train(tiny(make_catalog(), epochs=50, patience=2, lr=1e-9))
    assert len(result.history) == 3


@pytest.mark.slow
def test_options_are_logged_as_a_person_wrote_them(make_catalog: MakeCatalog) -> None:
    cli_options = {"lr": "1e-2", "data": str(make_catalog(name="my shop"))}
    result = train(tiny(Path(cli_options["data"]), lr="1e-2"), cli_options)
    params = mlflow.get_run(result.run_id).data.params
    assert params["lr"] == "1e-2"
    assert (
        params["data"] == f"'{cli_options['data']}'"
    )  # quoted, as mlflow run logs what has a space
    assert params["weight_decay"] == "0.0001"


@pytest.mark.fault
def test_a_run_that_fails_says_why(make_catalog: MakeCatalog) -> None:
    config = tiny(make_catalog(), lr=90, schedule="constant", epochs=30, experiment="failing")
    with pytest.raises(TrainingError, match="diverged"):
        train(config)
    run = last_run("failing")
    assert run.info.status == "FAILED"
    assert "diverged" in run.data.tags["failure"]


def test_data_that_cannot_be_used_opens_no_run() -> None:
    config = resolve(TrainConfig, {"data": "nowhere", "model": "cnn", "experiment": "no-data"})
    with pytest.raises(CatalogError, match="data=nowhere: no such file or folder"):
        train(config)
    assert mlflow.get_experiment_by_name("no-data") is None


def test_an_unknown_model_opens_no_run(make_catalog: MakeCatalog) -> None:
    config = tiny(make_catalog(), model="effnetpretrained", experiment="never-opened")
    with pytest.raises(ModelError, match="Did you mean effnet_pretrained"):
        train(config)
    assert mlflow.MlflowClient().get_experiment_by_name("never-opened") is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_is_killed(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(number)

    def stop(self: object, *args: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("shopee_mlflow.verbs.train.TrainingProgress.epoch", stop)
    config = tiny(make_catalog(), experiment=f"stopped-{number.name}")
    with pytest.raises(KeyboardInterrupt, match=f"{number.name} received"):
        train(config)
    run = last_run(f"stopped-{number.name}")
    assert run.info.status == "KILLED"
    assert run.data.tags["failure"] == f"{number.name} received"
    assert signal.getsignal(number) == before


@pytest.mark.slow
def test_each_experiment_file_trains(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file for one epoch on small photos; pretrained weights without the download."""
    from shopee_mlflow.modeling import architectures

    def random_state(network: str) -> dict[str, torch.Tensor]:
        return architectures._torchvision_network(network, 32).state_dict()

    monkeypatch.setattr(architectures, "download_state", random_state)
    folder = make_catalog()
    files = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
    assert files
    for file in files:
        options = {"config": str(file), "data": str(folder), "epochs": 1, "image_size": 32}
        if "space" in read_yaml(file):
            options |= {"n_trials": 1, "register": False}
            found = tune({**options, "storage": f"{file.stem}.journal"})
            assert found is not None
            assert list(found.trials["epochs"]) == [1], file
        else:
            assert len(train(resolve(TrainConfig, options)).history) == 1, file
