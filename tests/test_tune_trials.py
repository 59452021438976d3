"""Trials of a search: failed and pruned ones, and what they share."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import MakeCatalog
from optuna.trial import Trial
from PIL import Image
from small_search import (
    Call,
    artifacts,
    quick_search,
    runs,
    states,
    text,
    wrap_fit,
)

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.data.batches import PixelSource
from shopee_mlflow.data.dataset import Dataset
from shopee_mlflow.errors import TrainingError
from shopee_mlflow.modeling.epochs import Epoch
from shopee_mlflow.modeling.freezing import FrozenPrefix
from shopee_mlflow.tracking.mlflow_run_log import read_table, read_weights
from shopee_mlflow.tracking.run_log import RunLog
from shopee_mlflow.training.trainer import Trainer
from shopee_mlflow.tuning.study import Search
from shopee_mlflow.tuning.trials import run_trial


@pytest.fixture
def call(make_catalog: MakeCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    return quick_search(make_catalog(), tmp_path, monkeypatch)


# --- trials that fail, and trials that are given up ---


@pytest.mark.slow
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
    for title in ("Original's", "Default"):
        assert f"- {title} settings: no trial with them has completed, so there is no" in summary
    assert "- Trial 0 failed: The loss in epoch " in summary
    assert "- Trial 1 failed: RuntimeError: CUDA out of memory\n" in summary
    assert not any(name.endswith("mcnemar_p") for name in parent.data.metrics)
    assert (parent.data.tags["trials_failed"], parent.data.tags["trials_complete"]) == ("2", "2")


@pytest.mark.slow
def test_a_trial_with_options_that_contradict_each_other_says_which(
    call: Call, tmp_path: Path
) -> None:
    space = {"mix": ["none", "mixup"], "freeze": ["none", "features.0"]}
    call(space=space, baseline={}, epochs=1, sampler="random", n_trials=8)
    parent, _ = runs(tmp_path)
    said = r"- Trial \d failed: mix=mixup: mixes the pixels of two photos, so activations of"
    assert re.search(said, text(parent, "tune/summary.md"))


@pytest.mark.slow
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
        f"study={parent.data.tags['study']}: none of its 2 trials completed: "
        "RuntimeError: out of memory. The study is kept; increase n_trials to continue."
    )
    assert (parent.info.status, parent.data.tags["failure"]) == ("FAILED", str(raised.value))
    assert states(nested) == [("FAILED", "failed")] * 2
    table = read_table(parent.info.run_id, "tune/trials.csv")
    assert list(table["failure"]) == ["RuntimeError: out of memory"] * 2

    result = call(n_trials=3)
    assert result is not None
    assert result.run_id == parent.info.run_id
    assert runs(tmp_path)[0].info.status == "FINISHED"


@pytest.mark.slow
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
    assert parent.data.tags["trials_pruned"] == "1"
    assert "failure" not in nested[1].data.tags
    assert "1 pruned" in text(parent, "tune/summary.md")


@pytest.mark.slow
def test_the_monitored_metric_chooses_the_best_trial(call: Call, tmp_path: Path) -> None:
    result = call(monitor="val_macro_f1")
    assert result is not None
    _, nested = runs(tmp_path)
    for column, metric in (("score", "val_macro_f1"), ("val_accuracy", "val_accuracy")):
        best = [r.data.metrics[f"best_{metric}"] for r in nested]
        assert list(result.trials[column]) == pytest.approx(best)
    top = result.trials.sort_values(["score", "val_loss"], ascending=[False, True]).iloc[0]
    assert result.scores["best_val_accuracy"] == pytest.approx(top["val_accuracy"])
    assert result.scores["best_val_macro_f1"] == pytest.approx(top["score"])


def test_patience_ends_a_trial_that_is_complete_all_the_same(call: Call) -> None:
    result = call(patience=1, epochs=9, n_trials=1, baseline={"lr": 1e-9})
    assert result is not None
    (row,) = result.trials.to_dict("records")
    assert (row["state"], row["epochs"]) == ("complete", 2)


def test_the_weights_of_the_best_epoch_are_kept_not_the_last(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: dict[str, torch.Tensor] = {}

    epochs_of = Trainer.epochs

    def worse_and_worse(self: Trainer, *given: Any) -> Iterator[Epoch]:
        for epoch in epochs_of(self, *given):
            if epoch.number == 1:
                first.update(copy.deepcopy(self.module.state_dict()))
            yield Epoch(epoch.number, {**epoch.metrics, "val_accuracy": 1 / epoch.number})

    monkeypatch.setattr(Trainer, "epochs", worse_and_worse)
    result = call(n_trials=1, epochs=3)
    assert result is not None
    assert (result.scores["best_epoch"], result.scores["best_val_accuracy"]) == (1, 1.0)
    (row,) = result.trials.to_dict("records")
    kept = read_weights(row["run_id"], "trial/weights.pt")
    found = result.model.state_dict()
    assert kept.keys() == found.keys() == first.keys()
    for name, tensor in first.items():
        assert torch.equal(kept[name], tensor), name
        assert torch.equal(found[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize(("other", "folds"), [("pad", 0), ("crop", 2)])
def test_each_trial_sees_photos_as_its_resize_makes_them(
    call: Call,
    make_catalog: MakeCatalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
    folds: int,
) -> None:
    reported: list[str] = []

    def log_results(run: RunLog, dataset: Dataset, *given: Any) -> None:
        reported.append(dataset.config.resize)

    monkeypatch.setattr("shopee_mlflow.verbs.tune.log_results", log_results)
    shop = make_catalog(name="wide", each=12)
    for file in (shop / "train_images").iterdir():
        with Image.open(file) as photo:
            photo.resize((80, 40)).save(file)
    space, fixed = {"resize": ["stretch", other]}, {"data": str(shop), "lr": 0.02}
    options = {**fixed, "model": "cnn", "image_size": 32, "epochs": 2}
    alone = {way: train(TrainConfig(**options, resize=way)) for way in (other, "stretch")}
    for trials in (1, 2):
        given = {**fixed, "study": f"{tmp_path.name}-{trials}", "n_trials": trials}
        result = call(given, space=space, baseline={"resize": other}, folds=folds)
        assert result is not None
        assert list(result.trials["resize"]) == [other, "stretch"][:trials]
        best = alone[result.best["resize"]]
        assert result.model.resize == reported.pop() == result.best["resize"]
        assert result.scores["test_loss"] == pytest.approx(best.scores["test_loss"])
    assert result.trials["val_loss"].nunique() == 2
    for row in result.trials.to_dict("records") if not folds else ():
        epochs = alone[row["resize"]].history.set_index("epoch")
        assert row["val_loss"] == pytest.approx(epochs["val_loss"][row["best_epoch"]])


# --- what trials share, and what they may not see ---


@pytest.mark.slow
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
    assert call(model="mnasnet0_5", freeze="layers.8", clip_norm=1.0) is not None
    assert after[0] > 0
    assert after == [after[0]] * 3


@pytest.mark.slow
def test_the_test_split_is_looked_at_after_the_last_trial_alone(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[np.ndarray] = []
    take = PixelSource.take

    def noted(self: PixelSource, rows: np.ndarray, *draws: Any) -> torch.Tensor:
        taken.append(rows)
        return take(self, rows, *draws)

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
    # Calibration and the detector of strangers look at train and val again.
    looked = np.concatenate(taken[before[-1] :])
    looked = looked[np.isin(looked, list(test))]
    assert set(looked) == test
    # The best, its detector of strangers, the default and the original settings.
    assert len(looked) == 4 * len(test)


@pytest.mark.slow
def test_architectures_are_compared_in_a_table(call: Call, tmp_path: Path) -> None:
    result = call(models="cnn,mnasnet0_5", epochs=1, clip_norm=1.0)
    assert result is not None
    assert result.study.startswith("models-")
    assert list(result.trials["model"])[:2] == ["cnn", "mnasnet0_5"]
    assert list(result.trials["baseline"]) == [True, True, False]
    parent, nested = runs(tmp_path)
    assert [r.data.params["model"] for r in nested] == list(result.trials["model"])
    lines = text(parent, "tune/summary.md").splitlines()
    head = lines.index("| model | trials | complete | best validation accuracy | trial |")
    for line, name in zip(lines[head + 2 : head + 4], ("cnn", "mnasnet0_5"), strict=True):
        mine = result.trials[result.trials["model"] == name]
        top = mine.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
        assert line == (
            f"| {name} | {len(mine)} | {len(mine)} | {top['val_accuracy']:.1%} | {top['trial']} |"
        )
    best = yaml.safe_load(text(parent, "tune/best.yaml"))
    assert best["model"] == result.best["model"]


@pytest.mark.slow
def test_test_photos_that_the_weights_have_seen_are_counted(
    make_catalog: MakeCatalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shop = make_catalog()
    first = train(TrainConfig(data=str(shop), model="cnn", image_size=32, epochs=1, batch_size=8))
    call = quick_search(shop, tmp_path, monkeypatch)
    second = call(n_trials=1, weights=first.run_id, split_seed=3)
    assert second is not None
    old = first.dataset.frame.set_index("image")["split"]
    new = read_table(second.run_id, "data/manifest.csv").set_index("image")["split"]
    seen = int((old[new.index[new == "test"]] != "test").sum())
    assert seen > 0
    tags = mlflow.get_run(second.run_id).data.tags
    assert tags["weights_run"] == first.run_id
    assert tags["test_photos_seen_by_weights"] == str(seen)
    assert f"WARNING: {seen} of " in capsys.readouterr().out
