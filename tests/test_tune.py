"""A whole search in one process: what it leaves, how it goes on, and what goes wrong in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import MakeCatalog, draw_photo, write_csv
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from optuna.trial import Trial, TrialState

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import as_params, resolve
from shopee_mlflow.data.batches import PixelSource
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.errors import ConfigError, ModelError, StudyError, TrackingError, TrainingError
from shopee_mlflow.modeling.fit import Epoch, fit
from shopee_mlflow.modeling.freezing import FrozenPrefix
from shopee_mlflow.tracking.registry import find_version
from shopee_mlflow.tracking.run_log import RunLog, read_table, read_weights
from shopee_mlflow.tuning import queue as queue_module
from shopee_mlflow.tuning.study import Search
from shopee_mlflow.tuning.trials import run_trial
from shopee_mlflow.verbs.register import register
from shopee_mlflow.verbs.tune import TuneResult, tune

SPACE: dict[str, Any] = {
    "lr": {"low": 0.01, "high": 0.1, "log": True},
    "batch_size": [4, 8],
}
CONTENT: dict[str, Any] = {
    "model": "cnn",
    "image_size": 32,
    "epochs": 2,
    "n_trials": 3,
    "pruner": "none",
    "register": False,
    "space": SPACE,
}
CLIENT = mlflow.MlflowClient
TIMELESS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]


def search_file(folder: Path, **content: Any) -> Path:
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**CONTENT, **content}))
    return file


Call = Callable[..., TuneResult | None]


@pytest.fixture
def call(make_catalog: MakeCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """A search on its own photos in its own experiment; what is given goes into its file.

    Its end is without figures, page and model, which take seconds.
    """
    shop = make_catalog()
    place = "shopee_mlflow.verbs.tune"
    monkeypatch.setattr(f"{place}.log_results", lambda run, *given: run.log_metrics(given[-1]))
    monkeypatch.setattr(f"{place}.draw_plots", lambda study: iter(()))
    monkeypatch.setattr(RunLog, "log_model", lambda self, *_: self.log_tags({"model": "logged"}))

    def call(typed: dict[str, Any] | None = None, **content: Any) -> TuneResult | None:
        file = search_file(tmp_path, **{"data": str(shop), "experiment": tmp_path.name, **content})
        return tune({"config": str(file), **(typed or {})})

    return call


def runs(experiment: Path) -> tuple[Run, list[Run]]:
    """The one parent run of a search, and its trials' runs as they were begun."""
    found = CLIENT().get_experiment_by_name(experiment.name)
    assert found is not None
    there = CLIENT().search_runs([found.experiment_id], order_by=["attributes.start_time"])
    nested = [r for r in there if "mlflow.parentRunId" in r.data.tags]
    (parent,) = (r for r in there if r not in nested)
    assert {r.data.tags["mlflow.parentRunId"] for r in nested} <= {parent.info.run_id}
    nested.sort(key=lambda r: int(r.data.tags["trial"]))
    return parent, nested


def states(nested: list[Run]) -> list[tuple[str, str]]:
    return [(r.info.status, r.data.tags["state"]) for r in nested]


def artifacts(run_id: str, folder: str = "") -> set[str]:
    found: set[str] = set()
    for item in CLIENT().list_artifacts(run_id, folder or None):
        found |= artifacts(run_id, item.path) if item.is_dir else {item.path}
    return found


def text(run: Run, file: str) -> str:
    return mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{file}")


def wrap_fit(monkeypatch: pytest.MonkeyPatch, at_epoch: Callable[[int, int], None]) -> None:
    """Call ``at_epoch(training, epoch)`` before each epoch; trainings are counted from 0."""
    begun: list[int] = []

    def wrapped(*given: Any) -> Iterator[Epoch]:
        number = len(begun)
        begun.append(number)
        epochs = fit(*given)
        for epoch in range(1, given[3].epochs + 1):
            at_epoch(number, epoch)
            yield next(epochs)

    monkeypatch.setattr("shopee_mlflow.tuning.trials.fit", wrapped)


# --- one whole search, looked at from all sides ---


@dataclasses.dataclass(frozen=True)
class Whole:
    """A search of four trials, its runs, and the name that its model is registered under."""

    result: TuneResult
    place: Path
    typed: dict[str, Any]
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
    typed = {"config": str(file), "data": str(shop), "experiment": place.name, "momentum": "8e-1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOPEE_MLFLOW_CACHE", str(base / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
        patch.chdir(place)
        name = "found-by-a-search"
        patch.setattr("shopee_mlflow.verbs.tune.register", partial(register, name=name))
        # The page is every training's, and has its own tests.
        patch.setattr("shopee_mlflow.verbs.results.training_page", lambda *_: "")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = tune(typed)
        finally:
            torch.set_num_threads(threads)
    assert result is not None
    return Whole(result, place, typed, name)


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
    assert names == ["trial 0 (original)", "trial 1", "trial 2", "trial 3"]
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
    typed = {k: v for k, v in whole.typed.items() if k != "config"}
    return {**given, **typed, "epochs": 3}


def test_the_first_trial_has_the_originals_settings_though_outside_of_the_space(
    whole: Whole,
) -> None:
    first = whole.nested[0].data.params
    assert (first["lr"], first["batch_size"], first["momentum"]) == ("0.001", "75", "0.8")
    table = whole.result.trials
    assert list(table["baseline"]) == [True, False, False, False]
    others = table[~table["baseline"]]
    assert others["lr"].between(0.01, 0.1).all()
    assert others["batch_size"].isin([4, 8]).all()
    assert others["lr"].nunique() == 3


def test_the_parent_has_tables_plots_and_results(whole: Whole) -> None:
    found = artifacts(whole.result.run_id)
    plots = {f"tune/{n}.png" for n in ("history", "intermediate_values", "parallel_coordinates")}
    plots |= {f"tune/{n}.png" for n in ("slices", "importances")}
    assert {"tune/trials.csv", "tune/summary.md", "tune/best.yaml", *plots} <= found
    assert {"data/manifest.csv", "test/confusion_matrix.png", "training/history.csv"} <= found
    metrics = whole.parent.data.metrics
    assert metrics.items() >= whole.result.scores.items()
    assert metrics["trials_complete"] == 4
    assert 0 <= metrics["original_test_accuracy"] <= 1
    assert 0 < metrics["mcnemar_p"] <= 1


def test_the_table_of_trials(whole: Whole) -> None:
    table = read_table(whole.result.run_id, "tune/trials.csv")
    columns = "trial state batch_size lr val_accuracy val_loss best_epoch epochs seconds baseline"
    assert set(table.columns) == {*columns.split(), "failure", "run_id"}
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
    assert "- Original's settings: trial 0 (" in summary
    assert "only with the best and " in summary
    assert "no more than chance can explain (McNemar's exact test, p = 1)." in summary
    assert "The test split was looked at once, after the choice." in summary


def test_best_yaml_trains_the_same_again(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopee_mlflow.verbs.train.log_results", lambda *_: None)
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
    assert {ids[0], whole.best.info.run_id} <= set(kept)


# --- gone on with ---


def test_a_second_call_does_nothing_twice(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = call()
    assert first is not None
    before = runs(tmp_path)
    capsys.readouterr()
    assert call() is None
    parent, nested = runs(tmp_path)
    assert [r.info.run_id for r in nested] == [r.info.run_id for r in before[1]]
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == before[0].data.metrics
    out = capsys.readouterr().out
    assert "3 of 3 trials have ended already" in out
    assert "**Best: trial " in out
    assert "nothing was left to do; a greater n_trials searches on" in out


def test_a_greater_total_goes_on_in_the_same_run(call: Call, tmp_path: Path) -> None:
    first, second = call(n_trials=2), call({"n_trials": "4"})
    assert first is not None
    assert second is not None
    assert (second.run_id, second.study) == (first.run_id, first.study)
    parent, nested = runs(tmp_path)
    assert states(nested) == [("FINISHED", "complete")] * 4
    assert second.trials["lr"].nunique() == 4
    assert second.trials.iloc[:2].equals(first.trials)
    assert parent.data.metrics["trials_complete"] == 4
    assert (parent.data.params["n_trials"], parent.data.tags["n_trials"]) == ("2", "4")
    looks = "once" if first.best == second.best else "2 times, for 2 best trials"
    assert f"was looked at {looks}, after" in text(parent, "tune/summary.md")


def test_the_run_that_mlflow_has_made_is_the_parent_or_points_to_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    experiment = CLIENT().create_experiment(f"made-for-{tmp_path.name}")
    mlflow.set_experiment(experiment_id=experiment)
    for _ in range(2):
        run = CLIENT().create_run(experiment)
        made.append(run.info.run_id)
        monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
        call(experiment=f"made-for-{tmp_path.name}")
    assert len(CLIENT().search_runs([experiment])) == 3 + 2
    parent, aside = (CLIENT().get_run(run_id) for run_id in made)
    assert parent.data.tags["study"].startswith("cnn-")
    assert aside.data.tags["continues"] == parent.info.run_id
    assert "study" not in aside.data.tags


# --- interrupted ---


def test_an_interrupted_search_repeats_the_trial_and_goes_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(training: int, epoch: int) -> None:
        if (training, epoch) == (1, 2):
            raise KeyboardInterrupt("Ctrl-C")

    with monkeypatch.context() as patch:
        wrap_fit(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            call()
    parent, nested = runs(tmp_path)
    assert (parent.info.status, parent.data.tags["failure"]) == ("KILLED", "Ctrl-C")
    assert states(nested) == [("FINISHED", "complete"), ("KILLED", "interrupted")]

    result = call()
    assert result is not None
    assert result.run_id == parent.info.run_id
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert "failure" not in parent.data.tags
    complete = ("FINISHED", "complete")
    assert states(nested) == [complete, ("KILLED", "interrupted"), complete, complete]
    cut, again = nested[1], nested[2]
    assert again.data.tags["repeats"] == "1"
    assert again.data.params == cut.data.params
    assert list(result.trials["trial"]) == [0, 2, 3]
    assert parent.data.metrics["trials_complete"] == 3


def test_the_originals_settings_are_repeated_as_such(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(training: int, epoch: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        wrap_fit(patch, interrupt)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                call(n_trials=2)
    result = call(n_trials=2)
    assert result is not None
    assert list(result.trials["baseline"]) == [True, False]
    assert result.trials.loc[0, "lr"] == 0.001
    names = [r.info.run_name for r in runs(tmp_path)[1]]
    assert names[:3] == [f"trial {n} (original)" for n in range(3)]


def test_a_store_that_does_not_answer_ends_the_search_not_the_trial(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunLog.log_metrics
    calls: list[int] = []

    def log_metrics(self: RunLog, *given: Any, **named: Any) -> None:
        calls.append(1)
        if "step" in named and len(calls) > 3:
            raise MlflowException("gone away")
        log(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "log_metrics", log_metrics)
        with pytest.raises(TrackingError, match="does not answer as it should: gone away"):
            call()
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FAILED"
    assert states(nested)[-1] == ("FAILED", "interrupted")
    result = call()
    assert result is not None
    assert list(result.trials["state"]) == ["complete"] * 3


def test_a_trial_that_was_given_to_another_is_not_told_twice(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As to a machine that was asleep, whose heart had stopped for the others."""
    searches: list[Search] = []
    trials = Search.trials

    def noted(self: Search, deadline: float | None = None) -> Any:
        searches.append(self)
        return trials(self, deadline)

    def take_away(training: int, epoch: int) -> None:
        if (training, epoch) == (1, 2):
            searches[0].study.tell(1, state=TrialState.FAIL)

    monkeypatch.setattr(Search, "trials", noted)
    wrap_fit(monkeypatch, take_away)
    result = call()
    assert result is not None
    _, nested = runs(tmp_path)
    assert states(nested)[1] == ("KILLED", "interrupted")
    assert nested[1].data.tags["failure"] == "taken for dead, and repeated by another process"
    assert nested[2].data.tags["repeats"] == "1"
    assert list(result.trials["trial"]) == [0, 2, 3]


# --- trials that fail, and trials that are given up ---


def test_a_trial_that_fails_is_recorded_and_the_study_goes_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(training: int, epoch: int) -> None:
        if (training, epoch) == (1, 2):
            raise RuntimeError("CUDA out of memory\nof all sorts")

    wrap_fit(monkeypatch, fail)
    # The first diverges by itself.
    result = call(baseline={"lr": 99}, epochs=12, schedule="constant", n_trials=4)
    assert result is not None
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert states(nested) == [("FAILED", "failed")] * 2 + [("FINISHED", "complete")] * 2
    assert "training diverged. Lower lr (now 99)" in nested[0].data.tags["failure"]
    assert nested[1].data.tags["failure"] == "RuntimeError: CUDA out of memory\nof all sorts"
    table = read_table(result.run_id, "tune/trials.csv")
    assert list(table["state"]) == ["failed", "failed", "complete", "complete"]
    assert list(table["failure"])[1:] == ["RuntimeError: CUDA out of memory\nof all sorts", "", ""]
    summary = text(parent, "tune/summary.md")
    assert "4 trials, 2 failed, 2 complete." in summary or "2 complete, 2 failed." in summary
    assert "- The original's settings did not complete, so nothing stands beside it." in summary
    assert "- Trial 0 failed: The loss in epoch " in summary
    assert "- Trial 1 failed: RuntimeError: CUDA out of memory\n" in summary
    assert "mcnemar_p" not in parent.data.metrics
    assert (parent.data.metrics["trials_failed"], parent.data.metrics["trials_complete"]) == (2, 2)


def test_a_study_in_which_all_fails_says_why_and_can_go_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(training: int, epoch: int) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        wrap_fit(patch, fail)
        with pytest.raises(TrainingError) as raised:
            call(n_trials=2)
    parent, nested = runs(tmp_path)
    assert str(raised.value) == (
        f"study={parent.data.tags['study']}: none of its 2 trials has completed, for: "
        "RuntimeError: out of memory. They stay in the study; a greater n_trials searches on."
    )
    assert (parent.info.status, parent.data.tags["failure"]) == ("FAILED", str(raised.value))
    assert states(nested) == [("FAILED", "failed")] * 2
    table = read_table(parent.info.run_id, "tune/trials.csv")
    assert list(table["failure"]) == ["RuntimeError: out of memory"] * 2

    result = call(n_trials=3)
    assert result is not None
    assert result.run_id == parent.info.run_id
    assert runs(tmp_path)[0].info.status == "FINISHED"


def test_a_pruned_trial_is_no_failed_run(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Search, trial: Trial, epoch: int, val_accuracy: float) -> bool:
        trial.report(val_accuracy, epoch)
        return trial.number == 1 and epoch == 2

    monkeypatch.setattr(Search, "should_stop", stop)
    result = call(epochs=3)
    assert result is not None
    parent, nested = runs(tmp_path)
    assert states(nested) == [("FINISHED", s) for s in ("complete", "pruned", "complete")]
    assert list(result.trials["epochs"]) == [3, 2, 3]
    assert "trial/weights.pt" not in artifacts(nested[1].info.run_id)
    assert parent.data.metrics["trials_pruned"] == 1
    assert "failure" not in nested[1].data.tags
    assert "1 pruned" in text(parent, "tune/summary.md")


def test_patience_ends_a_trial_that_is_complete_all_the_same(call: Call) -> None:
    result = call(patience=1, epochs=9, n_trials=1, baseline={"lr": 1e-9})
    assert result is not None
    (row,) = result.trials.to_dict("records")
    assert (row["state"], row["epochs"]) == ("complete", 2)


# --- time ---


def test_time_that_is_up_ends_the_search_well(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes with the first trial."""
    clock = SimpleNamespace(time=queue_module.time.time, sleep=queue_module.time.sleep)
    now = clock.time

    def slow(*given: Any) -> None:
        run_trial(*given)
        clock.time = lambda: now() + 3600

    with monkeypatch.context() as patch:
        patch.setattr(queue_module, "time", clock)
        patch.setattr("shopee_mlflow.tuning.workers.run_trial", slow)
        first = call(timeout=1800)
    assert first is not None
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert states(nested) == [("FINISHED", "complete")]
    assert "These are the original's settings: the search has found none better." in text(
        parent, "tune/summary.md"
    )
    second = call()
    assert second is not None
    assert second.run_id == first.run_id
    assert list(second.trials["state"]) == ["complete"] * 3


def test_time_that_is_up_before_the_first_trial_is_told(call: Call, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as raised:
        call(timeout=1e-6)
    assert "none of its 0 trials has completed, for want of time. They stay in the study; the " in (
        str(raised.value)
    )
    assert runs(tmp_path)[1] == []
    assert call() is not None


# --- what is refused, and leaves what is there alone ---


def test_another_search_under_the_same_name_is_refused(call: Call, tmp_path: Path) -> None:
    mine = {"study": f"mine-{tmp_path.name}"}
    call(mine, n_trials=1)
    with pytest.raises(StudyError, match=r"space.lr: was 0.01 to 0.1, log, is 0.02 to 0.1, log"):
        call(mine, n_trials=1, space={**SPACE, "lr": {"low": 0.02, "high": 0.1, "log": True}})
    assert runs(tmp_path)[0].info.status == "FINISHED"


def test_other_data_under_the_same_name_are_refused(
    call: Call, tmp_path: Path, make_catalog: MakeCatalog
) -> None:
    mine = {"study": f"mine-{tmp_path.name}"}
    call(mine, n_trials=1)
    before = runs(tmp_path)
    other = make_catalog(groups=4, name="other")
    with pytest.raises(StudyError, match="was begun with other data .data_digest"):
        call(mine, n_trials=2, data=str(other))
    parent, nested = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    assert "failure" not in parent.data.tags
    assert len(nested) == len(before[1])
    assert call(mine, n_trials=2) is not None


def test_a_stage_that_is_none_is_told_before_any_trial(call: Call, tmp_path: Path) -> None:
    space = {"freeze": ["layers.8", "layers.99"], "lr": [0.01, 0.1]}
    with pytest.raises(ModelError, match=r"freeze=layers.99: mnasnet0_5 cannot be cut there"):
        call(model="mnasnet0_5", space=space)
    parent, nested = runs(tmp_path)
    assert (parent.info.status, nested) == ("FAILED", [])


def test_an_unknown_architecture_opens_no_run(call: Call, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean mnasnet0_5"):
        call(models="cnn,mnasnet05")
    assert CLIENT().get_experiment_by_name(tmp_path.name) is None


@pytest.mark.parametrize(
    ("storage", "error", "message"),
    [
        ("sqlite:///trials.db", ConfigError, "SQLite serves one process only"),
        (
            "postgresql://tuner:secret@127.0.0.1:1/optuna",
            StudyError,
            r"storage=postgresql://tuner:\*\*\*@127.0.0.1:1/optuna: cannot be reached: .*refused",
        ),
    ],
)
def test_a_storage_that_cannot_serve_opens_no_run(
    call: Call, tmp_path: Path, storage: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        call({"storage": storage})
    assert "secret" not in str(raised.value)
    assert CLIENT().get_experiment_by_name(tmp_path.name) is None


def test_a_password_is_in_no_run(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "a:secret@b" / "trials.journal"
    call({"storage": f"{file}"}, n_trials=1)
    assert runs(tmp_path)[0].data.params["storage"] == str(file)  # a file's name holds none


def test_an_end_that_fails_is_done_again(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TrackingError("the registry is away")

    with monkeypatch.context() as patch:
        patch.setattr("shopee_mlflow.verbs.tune.register", refuse)
        with pytest.raises(TrackingError, match="the registry is away"):
            call(n_trials=2, register=True)
    assert runs(tmp_path)[0].info.status == "FAILED"
    asked: list[tuple[str, bool]] = []

    def note(run_id: str, promote: bool) -> None:
        asked.append((run_id, promote))

    monkeypatch.setattr("shopee_mlflow.verbs.tune.register", note)
    result = call(n_trials=2, register=True, promote=True)
    assert result is not None
    assert asked == [(result.run_id, True)]
    assert runs(tmp_path)[0].info.status == "FINISHED"


# --- what trials share, and what they may not see ---


def test_frozen_layers_run_once_for_all_trials(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    photos: list[int] = []
    forward = FrozenPrefix.forward

    def counted(self: FrozenPrefix, images: torch.Tensor) -> torch.Tensor:
        photos.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(FrozenPrefix, "forward", counted)
    after: list[int] = []

    def noted(*given: Any) -> None:
        run_trial(*given)
        after.append(sum(photos))

    monkeypatch.setattr("shopee_mlflow.tuning.workers.run_trial", noted)
    assert call(model="mnasnet0_5", freeze="layers.8") is not None
    assert after[0] > 0
    assert after == [after[0]] * 3


def test_the_test_split_is_looked_at_after_the_last_trial_alone(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[np.ndarray] = []
    take = PixelSource.take

    def noted(self: PixelSource, rows: np.ndarray, variants: np.ndarray) -> torch.Tensor:
        taken.append(rows)
        return take(self, rows, variants)

    before: list[int] = []

    def trial(*given: Any) -> None:
        run_trial(*given)
        before.append(len(taken))

    monkeypatch.setattr(PixelSource, "take", noted)
    monkeypatch.setattr("shopee_mlflow.tuning.workers.run_trial", trial)
    result = call()
    assert result is not None
    manifest = pd.read_csv(
        mlflow.artifacts.download_artifacts(
            run_id=result.run_id, artifact_path="data/manifest.csv", dst_path=str(tmp_path)
        )
    )
    test = set(np.flatnonzero(manifest["split"] == "test"))
    assert test
    searched = set(np.concatenate(taken[: before[-1]]))
    assert searched == set(range(len(manifest))) - test
    looked = np.concatenate(taken[before[-1] :])
    assert set(looked) == test
    assert len(looked) <= 2 * len(test)  # the best, and the original's settings


def test_architectures_are_compared_in_a_table(call: Call, tmp_path: Path) -> None:
    result = call(models="cnn,mnasnet0_5", epochs=1)
    assert result is not None
    assert result.study.startswith("models-")
    assert list(result.trials["model"])[:2] == ["cnn", "mnasnet0_5"]
    assert list(result.trials["baseline"]) == [True, True, False]
    parent, nested = runs(tmp_path)
    assert [r.data.params["model"] for r in nested] == list(result.trials["model"])
    lines = text(parent, "tune/summary.md").splitlines()
    head = lines.index("| model | trials | complete | best validation accuracy | its trial |")
    for line, name in zip(lines[head + 2 : head + 4], ("cnn", "mnasnet0_5"), strict=True):
        mine = result.trials[result.trials["model"] == name]
        top = mine.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
        assert line == (
            f"| {name} | {len(mine)} | {len(mine)} | {top['val_accuracy']:.1%} | {top['trial']} |"
        )
    best = yaml.safe_load(text(parent, "tune/best.yaml"))
    assert best["model"] == result.best["model"]
