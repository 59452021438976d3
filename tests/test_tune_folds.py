"""A search whose trials are validated on several folds."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import optuna
import pandas as pd
import pytest
from conftest import MakeCatalog
from optuna.trial import Trial
from small_search import CLIENT, Call, artifacts, quick_search, runs, search_file, states, text

from shopee_mlflow.config import TuneConfig
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.data.fold_splits import copy_sets, validation_folds
from shopee_mlflow.errors import CatalogError, ConfigError
from shopee_mlflow.tuning.sampling import make_pruner
from shopee_mlflow.tuning.space import plan_search
from shopee_mlflow.tuning.study import Search


@pytest.fixture
def shop(make_catalog: MakeCatalog) -> Path:
    return make_catalog(groups=3, each=12)


@pytest.fixture
def call(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    return quick_search(shop, tmp_path, monkeypatch)


def fold_accuracies(run_id: str) -> list[float]:
    found = CLIENT().get_metric_history(run_id, "fold_val_accuracy")
    assert [m.step for m in found] == list(range(1, len(found) + 1))
    return [m.value for m in found]


def test_each_photo_outside_test_is_validated_once(shop: Path) -> None:
    frame = load_dataset(str(shop), image_size=32).frame
    test = frame["split"] == "test"
    splits = validation_folds(frame, TuneConfig(folds=3))
    assert all(((split == "test") == test).all() for split in splits)
    times = sum((split == "val").astype(int) for split in splits)
    assert (times[~test] == 1).all()
    assert all((split.groupby(copy_sets(frame)).nunique() == 1).all() for split in splits)


def test_trials_are_chosen_by_all_folds_together(
    call: Call, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = call(folds=3)
    assert result is not None
    parent, nested = runs(tmp_path)
    assert states(nested) == [("FINISHED", "complete")] * 3
    frame = load_dataset(str(shop), image_size=32).frame
    sizes = [int((s == "val").sum()) for s in validation_folds(frame, TuneConfig(folds=3))]
    for run, row in zip(nested, result.trials.to_dict("records"), strict=True):
        pooled = np.average(fold_accuracies(run.info.run_id), weights=sizes)
        assert row["score"] == pytest.approx(pooled)
        assert run.data.metrics["best_val_accuracy"] == pytest.approx(pooled)
        assert row["epochs"] == 6
        curve = CLIENT().get_metric_history(run.info.run_id, "val_loss")
        assert [m.step for m in curve] == [1, 2]
        assert not [name for name in run.data.metrics if name.startswith("test_")]
        assert "trial/weights.pt" not in artifacts(run.info.run_id)
    top = result.trials.sort_values(["score", "val_loss"], ascending=[False, True]).iloc[0]
    assert result.best["lr"] == top["lr"]
    assert parent.data.params["folds"] == "3"
    assert "test_accuracy" in parent.data.metrics
    assert f"of all photos outside test, in 3 folds ({top['score']:.1%})" in text(
        parent, "tune/summary.md"
    )


def test_a_trial_is_pruned_after_a_fold(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: Search, trial: Trial, step: int, score: float) -> bool:
        trial.report(score, step)
        return (trial.number, step) in ((1, 2), (2, 3))

    monkeypatch.setattr(Search, "should_stop", stop)
    result = call(folds=3)
    assert result is not None
    _, nested = runs(tmp_path)
    # After the last fold there is nothing left to prune.
    assert [state for _, state in states(nested)] == ["complete", "pruned", "complete"]
    assert [len(fold_accuracies(r.info.run_id)) for r in nested] == [3, 2, 3]
    assert list(result.trials["epochs"]) == [6, 4, 6]


@pytest.mark.parametrize("folds", [0, 3])
def test_with_folds_the_pruner_counts_folds(tmp_path: Path, folds: int) -> None:
    settings = {"n_warmup_steps": 5, "n_startup_trials": 1}
    file = search_file(tmp_path, folds=folds, pruner="median", pruner_settings=settings)
    pruner = make_pruner(plan_search({"config": str(file)}))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    good = optuna.trial.create_trial(value=0.9, intermediate_values=dict.fromkeys(range(9), 0.9))
    study.add_trial(good)
    trial = study.ask()
    trial.report(0.1, 1)
    # Without folds, the first 5 epochs are warm-up.
    assert trial.should_prune() == (folds > 0)


@pytest.mark.fault
def test_folds_that_a_group_is_too_small_for_open_no_run(call: Call, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="folds=40: 3 label groups have too few"):
        call(folds=40)
    assert mlflow.get_experiment_by_name(tmp_path.name) is None


def test_one_fold_is_refused() -> None:
    with pytest.raises(ConfigError, match="folds=1: must be 0, or at least 2"):
        TuneConfig(folds=1)


@pytest.mark.slow
def test_a_search_with_folds_is_another_search(call: Call) -> None:
    first, second = call(n_trials=2), call(n_trials=2, folds=2)
    assert first is not None
    assert second is not None
    assert first.study != second.study
    assert isinstance(second.trials, pd.DataFrame)
