"""A whole search in one process: its trials, its runs and its result."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from conftest import draw_photo, write_csv
from mlflow.entities import Run
from small_search import (
    CLIENT,
    CONTENT,
    TIMELESS,
    artifacts,
    runs,
    search_file,
    states,
    text,
)

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import as_params, resolve
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.tracking.mlflow_run_log import read_table, read_weights
from shopee_mlflow.tracking.registry import find_version
from shopee_mlflow.verbs.register import register
from shopee_mlflow.verbs.tune import TuneResult, tune


@dataclasses.dataclass(frozen=True)
class Whole:
    """A search of four trials, its runs, and the name that its model is registered under."""

    result: TuneResult
    place: Path
    cli_options: dict[str, Any]
    registered: str

    @property
    def parent(self) -> Run:
        return runs(self.place)[0]

    @property
    def nested(self) -> list[Run]:
        return runs(self.place)[1]

    @property
    def best(self) -> Run:
        return next(r for r in self.nested if r.data.params["lr"] == str(self.result.best["lr"]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    base = tmp_path_factory.getbasetemp()
    place = tmp_path_factory.mktemp("whole-search")
    shop = place / "shop"
    (shop / "train_images").mkdir(parents=True)
    rows = []
    for group in range(3):
        for number in range(12):
            image = f"g{group}n{number:02}.png"
            draw_photo(group, number).save(shop / "train_images" / image)
            rows.append((f"p{group}_{number}", image, f"title {group}", f"group{group}"))
    write_csv(shop / "train.csv", ("posting_id", "image", "title", "label_group"), rows)
    file = search_file(place, epochs=3, n_trials=4, register=True)
    cli_options = {
        "config": str(file),
        "data": str(shop),
        "experiment": place.name,
        "momentum": "8e-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOPEE_MLFLOW_CACHE", str(base / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
        patch.chdir(place)
        # A worker may set this up twice in the one store, and a champion has to be beaten.
        name = f"found-by-{place.name}"
        patch.setattr("shopee_mlflow.verbs.tune.register", partial(register, name=name))
        # The page is every training's, and has its own tests.
        patch.setattr("shopee_mlflow.training.results.training_page", lambda *_: "")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = tune(cli_options)
        finally:
            torch.set_num_threads(threads)
    assert result is not None
    return Whole(result, place, cli_options, name)


def test_the_parent_has_the_options_and_the_space(whole: Whole) -> None:
    parent = whole.parent
    assert parent.info.status == "FINISHED"
    assert parent.info.run_id == whole.result.run_id
    assert parent.info.run_name == whole.result.study == parent.data.tags["study"]
    params = parent.data.params
    assert params["momentum"] == "8e-1"  # as typed
    assert params["lr"] == "'0.01 to 0.1, log'"
    assert params["batch_size"] == "'one of 4, 8'"
    assert (params["n_trials"], params["storage"], params["sampler"]) == ("4", "auto", "tpe")
    assert {"git_commit", "device", "data_digest"} <= set(parent.data.tags)
    assert parent.inputs.dataset_inputs[0].dataset.digest == parent.data.tags["data_digest"]


def test_each_trial_has_a_run_with_its_options_and_its_epochs(whole: Whole) -> None:
    assert states(whole.nested) == [("FINISHED", "complete")] * 4
    names = [r.info.run_name for r in whole.nested]
    assert names == ["trial 0 (original)", "trial 1 (defaults)", "trial 2", "trial 3"]
    for number, run in enumerate(whole.nested):
        row = whole.result.trials.loc[number]
        assert row["run_id"] == run.info.run_id
        assert (run.data.tags["trial"], run.data.params["register"]) == (str(number), "false")
        values = {"lr": float(row["lr"]), "batch_size": int(row["batch_size"])}
        config = resolve(TrainConfig, {**yaml_options(whole), **values})
        assert run.data.params == as_params(config)
        for name in [*TIMELESS, "lr", "epoch_seconds", "images_per_second"]:
            history = CLIENT().get_metric_history(run.info.run_id, name)
            assert [m.step for m in history] == [1, 2, 3], name
        metrics = run.data.metrics
        accuracies = CLIENT().get_metric_history(run.info.run_id, "val_accuracy")
        assert metrics["best_val_accuracy"] == max(m.value for m in accuracies)
        assert metrics["best_val_accuracy"] == row["val_accuracy"]
        assert metrics["best_epoch"] == row["best_epoch"]
        # The test split is for the end.
        assert not [name for name in metrics if name.startswith("test")]


def yaml_options(whole: Whole) -> dict[str, Any]:
    given = {k: v for k, v in CONTENT.items() if k not in ("n_trials", "pruner", "space")}
    cli_options = {k: v for k, v in whole.cli_options.items() if k != "config"}
    return {**given, **cli_options, "epochs": 3}


def test_the_first_trials_have_the_originals_and_default_settings_though_outside_of_the_space(
    whole: Whole,
) -> None:
    first = whole.nested[0].data.params
    assert (first["lr"], first["batch_size"], first["momentum"]) == ("0.001", "75", "0.8")
    table = whole.result.trials
    second = whole.nested[1].data.params
    assert (second["lr"], second["batch_size"], second["momentum"]) == ("0.02", "32", "0.8")
    assert list(table["baseline"]) == [True, False, False, False]
    assert list(table["default"]) == [False, True, False, False]
    others = table[2:]
    assert others["lr"].between(0.01, 0.1).all()
    assert others["batch_size"].isin([4, 8]).all()
    assert others["lr"].nunique() == 2


@pytest.mark.drawn
def test_the_parent_has_tables_plots_and_results(whole: Whole) -> None:
    found = artifacts(whole.result.run_id)
    plots = {f"tune/{n}.png" for n in ("history", "intermediate_values", "parallel_coordinates")}
    plots |= {f"tune/{n}.png" for n in ("slices", "importances")}
    assert {"tune/trials.csv", "tune/summary.md", "tune/best.yaml", *plots} <= found
    assert {"data/manifest.csv", "test/confusion_matrix.png", "training/history.csv"} <= found
    metrics = whole.parent.data.metrics
    assert metrics.items() >= whole.result.scores.items()
    assert whole.parent.data.tags["trials_complete"] == "4"
    for name in ("original", "default"):
        low, accuracy, high = (
            metrics[f"{name}_test_accuracy{end}"] for end in ("_low", "", "_high")
        )
        assert 0 <= low <= accuracy <= high <= 1
        assert 0 < metrics[f"{name}_mcnemar_p"] <= 1


def test_the_table_of_trials(whole: Whole) -> None:
    table = read_table(whole.result.run_id, "tune/trials.csv")
    columns = (
        "trial state batch_size lr score val_accuracy val_loss best_epoch epochs seconds baseline"
    )
    assert set(table.columns) == {*columns.split(), "default", "failure", "run_id"}
    assert list(table["trial"]) == ["0", "1", "2", "3"]
    assert set(table["state"]) == {"complete"}
    assert list(table["epochs"]) == ["3"] * 4
    assert list(table["run_id"]) == [r.info.run_id for r in whole.nested]


def test_the_best_is_that_of_highest_accuracy_then_lowest_loss(whole: Whole) -> None:
    table = whole.result.trials.sort_values(
        ["val_accuracy", "val_loss"], ascending=[False, True], kind="stable"
    )
    top = table.iloc[0]
    assert dict(whole.result.best) == {"lr": top["lr"], "batch_size": top["batch_size"]}
    assert whole.result.scores["best_val_accuracy"] == top["val_accuracy"]
    assert whole.result.scores["best_epoch"] == top["best_epoch"]


def test_the_summary_says_it_in_words(whole: Whole) -> None:
    summary = text(whole.parent, "tune/summary.md")
    assert whole.parent.data.tags["mlflow.note.content"] == summary.rstrip("\n")
    scores = whole.result.scores
    table = whole.result.trials.set_index("lr")
    number = table.loc[whole.result.best["lr"], "trial"]
    assert summary.startswith(f"Study {whole.result.study}: 4 trials, 4 complete.\n")
    assert f"- **Best: trial {number}** (" in summary
    assert f"test accuracy {scores['test_accuracy']:.1%} of 3 photos, 95 % interval " in summary
    for title, reference in (("Original's", 0), ("Default", 1)):
        assert f"- {title} settings: trial {reference} (" in summary
    assert summary.count(" of 3 photos, 95 % interval ") == 3
    assert summary.count("The best trial's test accuracy is ") == 2
    assert " test photos are right only with the best trial, " in summary
    assert "differ by this much in 100% of such tests (p = 1), so it may be chance." in summary
    assert "The test split was used once, after the choice." in summary


def test_best_yaml_trains_the_same_again(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopee_mlflow.verbs.train.log_training", lambda *_: "")
    file = tmp_path / "best.yaml"
    file.write_text(text(whole.parent, "tune/best.yaml"))
    assert file.read_text().splitlines()[1] == "# mlflow run . -e train -P config=best.yaml"
    config = resolve(TrainConfig, {"config": str(file), "experiment": f"{whole.place.name}-again"})
    assert {"lr": config.lr, "batch_size": config.batch_size} == whole.result.best
    assert (config.momentum, config.register, config.run_name) == (0.8, False, "auto")
    again = train(config)
    assert again.scores == {k: pytest.approx(v) for k, v in whole.result.scores.items()}
    assert again.scores["best_val_accuracy"] == whole.result.scores["best_val_accuracy"]
    history = read_table(whole.result.run_id, "training/history.csv").apply(pd.to_numeric)
    pd.testing.assert_frame_equal(again.history[TIMELESS], history[TIMELESS])


def test_the_model_has_the_weights_of_the_best_trials_best_epoch(whole: Whole) -> None:
    (version,) = CLIENT().search_model_versions(f"name='{whole.registered}'")
    loaded = mlflow.pytorch.load_model(f"models:/{whole.registered}@champion", weights_only=False)
    kept = read_weights(whole.best.info.run_id, "trial/weights.pt")
    assert kept.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    config = resolve(TrainConfig, {**yaml_options(whole)})
    dataset = load_dataset(config)
    test = dataset.rows("test")
    images = torch.from_numpy(dataset.pixels[test]).permute(0, 3, 1, 2)
    with torch.no_grad():
        predicted = loaded(images).argmax(1).numpy()
    accuracy = (predicted == dataset.frame.loc[test, "label"].to_numpy()).mean()
    assert accuracy == whole.result.scores["test_accuracy"]
    assert float(version.tags["test_accuracy"]) == accuracy


def test_the_model_is_registered_and_the_champion(whole: Whole) -> None:
    champion = find_version(CLIENT(), whole.registered, "champion")
    assert champion is not None
    assert champion.run_id == whole.result.run_id


def test_weights_are_kept_where_they_are_needed_alone(whole: Whole) -> None:
    kept = [r.info.run_id for r in whole.nested if r.data.tags["weights_kept"] == "true"]
    ids = [r.info.run_id for r in whole.nested]
    assert [i for i in ids if "trial/weights.pt" in artifacts(i)] == kept
    assert {*ids[:2], whole.best.info.run_id} <= set(kept)
