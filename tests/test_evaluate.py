"""Evaluate: a model on the test split of its run, and on a labelled catalogue."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imagehash
import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import write_csv
from PIL import Image, ImageEnhance
from small_run import SmallRun, small_run

from shopee_mlflow import TrainConfig, cli, train
from shopee_mlflow.config import resolve
from shopee_mlflow.errors import CatalogError, TrackingError
from shopee_mlflow.modeling.metrics import confusion
from shopee_mlflow.reports.training_figures import confusion_figure, mistakes_figure
from shopee_mlflow.tracking.flavor import save_in_folder
from shopee_mlflow.training import seen_photos
from shopee_mlflow.verbs.evaluate import evaluate


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def shop(run: SmallRun, tmp_path: Path) -> Path:
    """A copy of the run's catalogue, to be spoilt."""
    return Path(shutil.copytree(run.shop, tmp_path / "shop"))


def artifacts(run_id: str, folder: str) -> set[str]:
    return {item.path for item in mlflow.MlflowClient().list_artifacts(run_id, folder)}


def test_the_test_split_of_a_run_gives_its_very_accuracy(run: SmallRun) -> None:
    result = evaluate(run.uri, run=run.result.run_id)
    truth = mlflow.get_run(run.result.run_id).data.metrics
    for name in ("accuracy", "accuracy_low", "accuracy_high"):
        assert result.scores[f"eval_{name}"] == truth[f"test_{name}"]
    assert result.scores["eval_loss"] == pytest.approx(truth["test_loss"], rel=1e-5)
    assert "eval_seen_accuracy" not in result.scores
    assert set(result.predictions["seen"]) == {""}
    dataset = run.result.dataset
    test = dataset.frame.loc[dataset.rows("test"), "image"]
    assert sorted(result.predictions["image"]) == sorted(test)


def test_an_evaluation_is_a_run_of_its_own(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a slow machine an evaluation lasts long enough for a first sample of system metrics.
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    result = evaluate(run.uri, data=str(run.shop), experiment="evaluations")
    logged = mlflow.get_run(result.run_id)
    assert logged.info.run_name == f"evaluate {run.uri.removeprefix('models:/')} on shop"
    assert logged.data.tags["kind"] == "evaluate"
    assert logged.info.status == "FINISHED"
    assert mlflow.get_experiment(logged.info.experiment_id).name == "evaluations"
    assert logged.data.metrics == pytest.approx(result.scores)
    assert logged.data.params == {
        "model": run.uri,
        "data": str(run.shop),
        "images": "auto",
        "run": "none",
    }
    assert logged.data.tags["model_id"] == mlflow.models.Model.load(run.uri).model_uuid
    assert {"git_commit", "torch_version"} <= set(logged.data.tags)
    assert not [name for name in logged.data.metrics if name.startswith("test_")]
    assert artifacts(result.run_id, "evaluation") == {
        "evaluation/predictions.csv",
        "evaluation/confusion_matrix.csv",
        "evaluation/confusion_matrix.png",
        "evaluation/report.csv",
        "evaluation/mistakes.png",
        "evaluation/summary.md",
    }
    (data,) = logged.inputs.dataset_inputs
    assert data.dataset.name == "shop"
    assert [tag.value for tag in data.tags] == ["evaluation"]
    file = mlflow.artifacts.download_artifacts(
        run_id=result.run_id, artifact_path="evaluation/predictions.csv"
    )
    table = pd.read_csv(file)
    assert len(table) == 36
    assert table["label_group"].tolist() == result.predictions["label_group"].tolist()


@pytest.mark.fault
def test_photos_of_the_models_train_and_val_splits_are_scored_apart(
    run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(run.uri, data=str(run.shop))
    dataset = run.result.dataset
    split = dataset.frame.set_index("image")["split"].replace("test", "")
    table = result.predictions.set_index("image")
    assert table["seen"].to_dict() == split.to_dict()
    right = table["label_group"] == table["predicted"]
    seen = table["seen"] != ""
    assert result.scores["eval_accuracy"] == right[~seen].mean()
    assert result.scores["eval_accuracy"] == run.result.scores["test_accuracy"]
    assert result.scores["eval_seen_accuracy"] == right[seen].mean()
    train, val, unseen = (len(dataset.rows(name)) for name in ("train", "val", "test"))
    words = f"the model has seen {train + val} of the 36 photos or a copy of them, {train} in its "
    words += f"train split and {val} in its val split"
    assert words in capsys.readouterr().out
    logged = mlflow.get_run(result.run_id)
    assert words in logged.data.tags["mlflow.note.content"]
    counts = json.loads(logged.inputs.dataset_inputs[0].dataset.profile)
    assert (counts["seen"], counts["unseen"]) == (train + val, unseen)
    tags = logged.data.tags
    assert (tags["seen_photos"], tags["unseen_photos"]) == (str(train + val), str(unseen))


def test_resized_copies_under_other_names_are_seen(run: SmallRun, tmp_path: Path) -> None:
    """Their bytes differ, their phashes do not."""
    dataset = run.result.dataset
    rows = [*dataset.rows("train")[:2], *dataset.rows("test")[:1]]
    names = []
    for number, file in enumerate(dataset.frame.loc[rows, "file"]):
        with Image.open(file) as photo:
            photo.resize((80, 80), Image.Resampling.NEAREST).save(tmp_path / f"new{number}.png")
        names.append((f"new{number}.png", dataset.frame.loc[rows[number], "label_group"]))
    table = write_csv(tmp_path / "new.csv", ("image", "label_group"), names)
    result = evaluate(run.uri, data=str(table), images=str(tmp_path))
    assert result.predictions["seen"].tolist() == ["train", "train", ""]


@pytest.mark.slow
def test_near_copies_are_seen_by_the_runs_own_near_bits(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = run.result.dataset
    names = []
    for row in dataset.rows("train"):
        with Image.open(dataset.frame["file"][row]) as photo:
            for factor in (1.2, 1.3, 1.4, 1.5, 1.6):
                bright = ImageEnhance.Brightness(photo).enhance(factor)
                if 2 <= imagehash.phash(photo) - imagehash.phash(bright) <= 4:
                    bright.save(tmp_path / f"{row}.png")
                    names.append((f"{row}.png", dataset.frame["label_group"][row]))
                    break
    assert len(names) > 2
    table = write_csv(tmp_path / "new.csv", ("image", "label_group"), names)
    result = evaluate(run.uri, data=str(table), images=str(tmp_path))
    assert set(result.predictions["seen"]) == {"train"}
    manifest, params = seen_photos.read_manifest(run.result.run_id)
    del params["near_bits"]  # as in a run from before this option
    monkeypatch.setattr(seen_photos, "read_manifest", lambda _: (manifest, params))
    result = evaluate(run.uri, data=str(table), images=str(tmp_path))
    assert set(result.predictions["seen"]) == {""}


def test_without_an_unseen_photo_there_is_no_accuracy(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = run.result.dataset.frame[run.result.dataset.frame["split"] == "train"].head(3)
    rows = list(zip(train["image"], train["label_group"], strict=True))
    table = write_csv(tmp_path / "seen.csv", ("image", "label_group"), rows)
    result = evaluate(run.uri, data=str(table), images=str(run.shop / "train_images"))
    assert set(result.scores) == {"eval_seen_accuracy"}
    assert "There are no photos to measure the accuracy on new photos" in capsys.readouterr().out


@pytest.mark.slow
def test_another_runs_test_split_is_checked_against_the_models_own(run: SmallRun) -> None:
    options = {"data": str(run.shop), "model": "cnn", "image_size": 32, "epochs": 1}
    other = train(resolve(TrainConfig, {**options, "batch_size": 8, "split_seed": 1}))
    mine, theirs = (r.dataset.frame.set_index("image")["split"] for r in (run.result, other))
    test = theirs.index[theirs == "test"]
    result = evaluate(run.uri, run=other.run_id).predictions.set_index("image")
    assert result["seen"].to_dict() == mine[test].replace("test", "").to_dict()
    assert (result["seen"] != "").any()


@pytest.mark.fault
@pytest.mark.slow
def test_a_model_whose_run_is_gone_is_scored_with_a_warning(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_in_folder(run.result.model, tmp_path / "model")
    result = evaluate(str(tmp_path / "model"), data=str(run.shop))
    assert len(result.predictions) == 36
    assert "eval_accuracy" in result.scores
    assert "too high: the model does not record the run" in capsys.readouterr().out
    assert mlflow.get_run(result.run_id).data.tags["seen_photos"] == "unknown"


@pytest.mark.slow
def test_a_single_group_may_be_scored(run: SmallRun, tmp_path: Path) -> None:
    """Groups that are too small to learn from are large enough to be scored."""
    rows = [(run.photos[0].name, "$group0$"), (run.photos[20].name, "$group1$")]
    table = write_csv(tmp_path / "two.csv", ("image", "label_group"), rows)
    result = evaluate(run.uri, data=str(table), images=str(run.shop / "train_images"))
    assert result.predictions["image"].tolist() == [name for name, _ in rows]


@pytest.mark.slow
def test_photos_that_changed_are_no_test_split(run: SmallRun, shop: Path) -> None:
    dataset = run.result.dataset
    first, second = dataset.frame.loc[dataset.rows("test"), "image"].sort_values().tolist()[:2]
    images = shop / "train_images"
    before = len(mlflow.search_runs(search_all_experiments=True, output_format="list"))
    (images / first).unlink()
    (images / second).write_bytes(run.photos[0].read_bytes())
    with pytest.raises(CatalogError, match="2 of the .* are missing .* or have changed") as caught:
        evaluate(run.uri, run=run.result.run_id, data=str(shop))
    assert f"{first}, {second}" in str(caught.value)
    assert len(mlflow.search_runs(search_all_experiments=True, output_format="list")) == before


@pytest.mark.slow
def test_a_moved_catalogue_is_found_by_data(run: SmallRun, shop: Path) -> None:
    result = evaluate(run.uri, run=run.result.run_id, data=str(shop))
    assert result.scores["eval_accuracy"] == run.result.scores["test_accuracy"]


@pytest.mark.fault
def test_labels_that_the_model_does_not_know_are_counted_and_not_scored(
    run: SmallRun, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (shop / "train.csv").read_text().replace("$group2$", "a new one")
    (shop / "train.csv").write_text(table)
    result = evaluate(run.uri, data=str(shop))
    assert set(result.predictions["label_group"]) == {"$group0$", "$group1$"}
    words = "1 label groups are unknown to the model, which has 3: a new one"
    assert f"12 of 36 photos are not scored: {words}" in capsys.readouterr().out
    (shop / "train.csv").write_text(table.replace("$group", "new "))
    with pytest.raises(CatalogError, match="All 3 label groups are unknown to the model"):
        evaluate(run.uri, data=str(shop))


@pytest.mark.slow
def test_photos_that_do_not_decode_are_left_out_and_counted(
    run: SmallRun, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [file.name for file in run.photos]
    (shop / "train_images" / names[3]).write_text("no photo")
    (shop / "train_images" / names[30]).unlink()
    result = evaluate(run.uri, data=str(shop))
    kept = [name for name in names if name not in (names[3], names[30])]
    assert result.predictions["image"].tolist() == kept
    whole = evaluate(run.uri, data=str(run.shop)).predictions.set_index("image")
    both = result.predictions.set_index("image")
    assert both["predicted"].equals(whole.loc[kept, "predicted"])
    assert "1 that do not decode" in capsys.readouterr().out


def test_no_photo_decodes(run: SmallRun, shop: Path) -> None:
    for file in (shop / "train_images").iterdir():
        file.write_text(f"no photo {file.name}")
    with pytest.raises(CatalogError, match="None of the photos decodes"):
        evaluate(run.uri, data=str(shop))


def test_an_unknown_model_opens_no_run(run: SmallRun) -> None:
    with pytest.raises(TrackingError, match="model=models:/none@champion"):
        evaluate("models:/none@champion", data=str(run.shop), experiment="never-evaluated")
    assert mlflow.MlflowClient().get_experiment_by_name("never-evaluated") is None


@pytest.mark.slow
def test_exit_codes(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*arguments: str) -> int:
        try:
            cli.main(["evaluate", "--model", run.uri, *arguments])
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    assert code("--data", str(run.shop)) == 0
    assert "photos that the model has not seen, 95 % interval" in capsys.readouterr().out
    for arguments, message in (
        ([], "evaluate needs data"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--run", "0" * 32], "no such run in"),
    ):
        assert code(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


@pytest.mark.drawn
def test_dollar_signs_in_labels_are_no_mathematics(tmp_path: Path) -> None:
    r"""As mathematics, ``$\no{$`` could not be drawn."""
    labels = [r"$\no{$", "Rp 5$", "plain"]
    truth, predicted = np.array([0, 1, 2, 0]), np.array([1, 1, 0, 2])
    table = pd.DataFrame(
        {
            "label_group": [labels[i] for i in truth],
            "predicted": [labels[i] for i in predicted],
            "probability": 0.5,
        }
    )
    pixels = np.zeros((4, 8, 8, 3), np.uint8)
    confusion_figure(confusion(truth, predicted, labels), "Accuracy").savefig(tmp_path / "a.png")
    mistakes_figure(pixels, table, np.array([0, 2, 3])).savefig(tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 0
    assert (tmp_path / "b.png").stat().st_size > 0


def test_nested_class_folders_are_evaluated_by_their_first_folder(
    run: SmallRun, tmp_path: Path
) -> None:
    frame = run.result.dataset.frame
    for file, label in zip(frame["file"], frame["label_group"], strict=True):
        place = tmp_path / "nested" / label / "front"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    with pytest.raises(CatalogError, match="label_folder=first"):
        evaluate(run.uri, data=str(tmp_path / "nested"))
    found = evaluate(run.uri, data=str(tmp_path / "nested"), label_folder="first")
    assert sorted(found.predictions["label_group"]) == sorted(frame["label_group"])
