"""Evaluate: a model on the test split of its run, and on a labelled catalogue."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import write_csv
from small_run import SmallRun, small_run

from shopee_mlflow import cli
from shopee_mlflow.errors import CatalogError, TrackingError
from shopee_mlflow.modeling.metrics import confusion
from shopee_mlflow.reports.training_figures import confusion_figure, mistakes_figure
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
    for name in ("test_accuracy", "test_accuracy_low", "test_accuracy_high"):
        assert result.scores[name] == truth[name]
    assert result.scores["test_loss"] == pytest.approx(truth["test_loss"], rel=1e-5)
    dataset = run.result.dataset
    test = dataset.frame.loc[dataset.rows("test"), "image"]
    assert sorted(result.predictions["image"]) == sorted(test)


def test_an_evaluation_is_a_run_of_its_own(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a slow machine an evaluation lasts long enough for a first sample of system metrics.
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    result = evaluate(run.uri, data=str(run.shop), experiment="evaluations")
    logged = mlflow.get_run(result.run_id)
    assert logged.info.run_name == "evaluate"
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
    assert artifacts(result.run_id, "test") == {
        "test/predictions.csv",
        "test/confusion_matrix.csv",
        "test/confusion_matrix.png",
        "test/report.csv",
        "test/mistakes.png",
    }
    file = mlflow.artifacts.download_artifacts(
        run_id=result.run_id, artifact_path="test/predictions.csv"
    )
    table = pd.read_csv(file)
    assert len(table) == 36
    assert table["label_group"].tolist() == result.predictions["label_group"].tolist()
    right = (table["label_group"] == table["predicted"]).mean()
    assert right == pytest.approx(result.scores["test_accuracy"])


def test_a_single_group_may_be_scored(run: SmallRun, tmp_path: Path) -> None:
    """Groups that are too small to learn from are large enough to be scored."""
    rows = [(run.photos[0].name, "$group0$"), (run.photos[20].name, "$group1$")]
    table = write_csv(tmp_path / "two.csv", ("image", "label_group"), rows)
    result = evaluate(run.uri, data=str(table), images=str(run.shop / "train_images"))
    assert result.predictions["image"].tolist() == [name for name, _ in rows]


def test_photos_that_changed_are_no_test_split(run: SmallRun, shop: Path) -> None:
    dataset = run.result.dataset
    first, second = dataset.frame.loc[dataset.rows("test"), "image"].sort_values().tolist()[:2]
    images = shop / "train_images"
    (images / first).unlink()
    (images / second).write_bytes(run.photos[0].read_bytes())
    with pytest.raises(CatalogError, match="2 of the .* are missing .* or have changed") as caught:
        evaluate(run.uri, run=run.result.run_id, data=str(shop))
    assert f"{first}, {second}" in str(caught.value)
    found = mlflow.search_runs(search_all_experiments=True, max_results=1, output_format="list")
    assert found[0].info.status == "FAILED"
    assert "have changed" in found[0].data.tags["failure"]


def test_a_moved_catalogue_is_found_by_data(run: SmallRun, shop: Path) -> None:
    result = evaluate(run.uri, run=run.result.run_id, data=str(shop))
    assert result.scores["test_accuracy"] == run.result.scores["test_accuracy"]


def test_labels_that_the_model_does_not_know(run: SmallRun, shop: Path) -> None:
    table = (shop / "train.csv").read_text().replace("$group2$", "a new one")
    (shop / "train.csv").write_text(table)
    with pytest.raises(CatalogError, match="1 label groups are unknown.* knows 3: a new one"):
        evaluate(run.uri, data=str(shop))


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


def test_exit_codes(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*arguments: str) -> int:
        try:
            cli.main(["evaluate", "--model", run.uri, *arguments])
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    assert code("--data", str(run.shop)) == 0
    assert "of 36 photos, 95 % interval" in capsys.readouterr().out
    for arguments, message in (
        ([], "evaluate needs data"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--run", "0" * 32], "no such run in"),
    ):
        assert code(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


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
