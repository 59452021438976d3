"""Cross-validation: pooled results, resuming, the final model, comparisons."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeCatalog, draw_photo
from mlflow.entities import Run
from new_store import new_store
from warm_process import WarmProcess

from shopee_mlflow import TrainConfig, compare, cross_validate, evaluate, train
from shopee_mlflow.cli import main
from shopee_mlflow.config import CrossValidateConfig, resolve
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.errors import CatalogError, ConfigError, TrainingError
from shopee_mlflow.modeling.freezing import ActivationSource
from shopee_mlflow.tracking.mlflow_run_log import read_table, read_weights
from shopee_mlflow.tracking.names import PROCESS_TAG
from shopee_mlflow.tracking.registry import register_model
from shopee_mlflow.tracking.signals import Stopped
from shopee_mlflow.training.seen_photos import find_seen
from shopee_mlflow.training.trainer import Trainer
from shopee_mlflow.verbs.cross_validate import CrossValidation

ROOT = Path(__file__).parents[1]
OPTIONS = {"model": "cnn", "image_size": 32, "epochs": 2, "batch_size": 8, "lr": 0.03, "folds": 3}
MakeConfig = Callable[..., CrossValidateConfig]
PARENT = "mlflow.parentRunId"


@pytest.fixture
def config(make_catalog: MakeCatalog, tmp_path: Path) -> MakeConfig:
    """A function from options to a configuration, on a catalogue with a pair of copies."""
    folder = make_catalog(each=6)
    table = folder / "train.csv"
    (folder / "train_images" / "copy.png").write_bytes(
        (folder / "train_images" / "g0n1.png").read_bytes()
    )
    table.write_text(table.read_text() + "copy,copy.png,title,group0\n")

    def made(**options: Any) -> CrossValidateConfig:
        values = {**OPTIONS, "data": str(folder), "experiment": tmp_path.name, **options}
        return resolve(CrossValidateConfig, values)

    return made


def runs(experiment: Path) -> tuple[list[Run], list[Run]]:
    """The cross-validations of an experiment, and their child runs as they were begun."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment.name)
    assert found is not None
    there = client.search_runs([found.experiment_id], order_by=["attributes.start_time"])
    return [r for r in there if PARENT not in r.data.tags], [
        r for r in there if PARENT in r.data.tags
    ]


def interrupt(
    monkeypatch: pytest.MonkeyPatch, config: CrossValidateConfig, fold: int, epoch: int = 1
) -> None:
    """Run a cross-validation that gets a Ctrl-C in an epoch of a fold."""
    begun: list[Trainer] = []
    epoch_of = Trainer._epoch

    def interrupted(self: Trainer, *given: Any) -> Any:
        if self not in begun:
            begun.append(self)
        if (len(begun), self._number) == (fold, epoch):
            os.kill(os.getpid(), signal.SIGINT)
        return epoch_of(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_epoch", interrupted)
        with pytest.raises(Stopped, match="SIGINT"):
            cross_validate(config)


def assert_same(result: CrossValidation, expected: CrossValidation) -> None:
    assert result.scores == expected.scores
    assert np.array_equal(result.logits, expected.logits)
    pd.testing.assert_frame_equal(result.predictions, expected.predictions)
    pd.testing.assert_frame_equal(
        result.folds.drop(columns="run_id"), expected.folds.drop(columns="run_id")
    )


@pytest.mark.slow
def test_every_photo_is_tested_once(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = cross_validate(config())
    table = result.predictions
    assert len(table) == table["image"].nunique() == 19
    assert table.set_index("image")["fold"].loc[["copy.png", "g0n1.png"]].nunique() == 1
    right = (table["label_group"] == table["predicted"]).mean()
    assert result.scores["cv_accuracy"] == right
    assert result.scores["cv_accuracy_low"] < right < result.scores["cv_accuracy_high"]
    assert f"cross-validated accuracy {right:.1%} of 19 photos" in capsys.readouterr().out

    (parent,), children = runs(tmp_path)
    assert parent.info.run_id == result.run_id
    assert (parent.info.status, parent.data.tags["kind"]) == ("FINISHED", "cross-validate")
    metrics = parent.data.metrics
    assert {n: v for n, v in metrics.items() if n in result.scores} == result.scores
    assert not [name for name in metrics if name.startswith("test_")]
    assert [r.data.tags["kind"] for r in children] == ["fold"] * 3
    tested = [r.data.metrics["test_accuracy"] for r in children]
    assert list(result.folds["test_accuracy"]) == tested
    assert sum(result.folds["photos"]) == 19
    client = mlflow.MlflowClient()
    by_fold = client.get_metric_history(result.run_id, "cv_fold_accuracy")
    assert [(m.step, m.value) for m in by_fold] == list(enumerate(tested, start=1))

    stored = read_table(result.run_id, "cv/predictions.csv")
    assert list(stored.columns) == [
        *("image", "label_group", "predicted", "probability", "copy_set", "fold")
    ]
    logits = read_weights(result.run_id, "cv/logits.pt")["logits"].numpy()
    assert np.array_equal(logits, result.logits)
    assert [result.classes[i] for i in logits.argmax(1)] == list(stored["predicted"])
    page = mlflow.artifacts.load_text(f"runs:/{result.run_id}/report.html")
    assert "Cross-validated accuracy" in page
    assert "fold3" in page
    assert (
        "Strangers are not refused: a threshold needs 20 validation photos, and there are 2" in page
    )
    manifest = read_table(result.run_id, "data/manifest.csv")
    assert set(manifest["split"]) == {"fold1", "fold2", "fold3"}


@pytest.mark.parametrize(("groups", "each", "folds"), [(2, 5, 5), (3, 3, 3)])
@pytest.mark.slow
def test_a_tiny_catalogue_is_cross_validated(
    groups: int, each: int, folds: int, config: MakeConfig, make_catalog: MakeCatalog
) -> None:
    folder = make_catalog(groups=groups, each=each, name="tiny")
    result = cross_validate(config(data=str(folder), folds=folds, epochs=1))
    assert len(result.predictions) == groups * each
    assert len(result.folds) == folds


@pytest.mark.slow
def test_activations_are_computed_once(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = ActivationSource.__init__

    def counted(self: ActivationSource, *given: Any, **settings: Any) -> None:
        make(self, *given, **settings)
        made.append(len(given[2]))

    monkeypatch.setattr(ActivationSource, "__init__", counted)
    # The gradients of this network's random weights are huge.
    options = {"model": "mnasnet0_5", "freeze": "layers.8", "clip_norm": 1.0}
    cross_validate(config(**options, epochs=1, lr=1e-4, refit=True, cache=False))
    assert made == [19]


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
def test_an_interrupted_cross_validation_keeps_finished_folds(
    explicit: bool,
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    undisturbed = cross_validate(config(experiment="elsewhere"))
    interrupt(monkeypatch, config(), fold=2, epoch=2)
    (parent,), _ = runs(tmp_path)
    run_id = parent.info.run_id
    assert parent.info.status == "KILLED"
    assert f"resume with: python -m shopee_mlflow cross-validate --resume {run_id}" in (
        capsys.readouterr().out
    )
    again = CrossValidateConfig(resume="last", experiment=tmp_path.name) if explicit else config()
    result = cross_validate(again)
    assert "1 of 3 folds are finished already: fold1" in capsys.readouterr().out
    assert result.run_id == run_id
    assert_same(result, undisturbed)
    (parent,), children = runs(tmp_path)
    assert parent.info.status == "FINISHED"
    told = [(r.data.tags["fold"], r.info.status) for r in children]
    assert told == [
        ("fold1", "FINISHED"),
        ("fold2", "KILLED"),
        ("fold2", "FINISHED"),
        ("fold3", "FINISHED"),
    ]


@pytest.mark.slow
def test_other_options_and_other_photos_start_a_new_one(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, config(), fold=2)
    cross_validate(config(lr=0.02))
    folder = tmp_path / "shop"
    draw_photo(2, 99).save(folder / "train_images" / "more.png")
    table = folder / "train.csv"
    table.write_text(table.read_text() + "p,more.png,title,group2\n")
    cross_validate(config())
    assert [r.info.status for r in runs(tmp_path)[0]] == ["KILLED", "FINISHED", "FINISHED"]
    run_id = runs(tmp_path)[0][0].info.run_id
    with pytest.raises(ConfigError, match="photos, labels or initial weights have changed"):
        cross_validate(config(resume=run_id))
    with pytest.raises(ConfigError, match="lr=0.5: the training began with lr=0.03"):
        cross_validate(config(resume=run_id, lr=0.5))


@pytest.mark.fault
def test_what_cannot_be_resumed_is_told(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    another: str,
) -> None:
    with pytest.raises(ConfigError, match="there is no interrupted cross-validation"):
        cross_validate(config(resume="last"))
    with pytest.raises(ConfigError, match="must be a run id"):
        cross_validate(config(resume="yesterday"))
    interrupt(monkeypatch, config(), fold=2)
    (parent,), children = runs(tmp_path)
    run_id = parent.info.run_id
    for child in (run_id, children[0].info.run_id):
        with pytest.raises(ConfigError, match=f"cross-validate --resume {run_id}"):
            train(TrainConfig(resume=child))
    with pytest.raises(ConfigError, match="is no cross-validation but a run of fold"):
        cross_validate(config(resume=children[0].info.run_id))
    client = mlflow.MlflowClient()
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, PROCESS_TAG, another)
    with pytest.raises(ConfigError, match=f"it is running in process {another}"):
        cross_validate(config(resume=run_id))


def test_a_fold_that_diverges_fails_the_run(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="training diverged"):
        cross_validate(config(lr=90, epochs=9, schedule="constant"))
    (parent,), children = runs(tmp_path)
    assert [parent.info.status, children[-1].info.status] == ["FAILED", "FAILED"]


@pytest.mark.slow
def test_the_final_model_is_trained_on_all_photos_and_claims_the_cross_validated_accuracy(
    config: MakeConfig, tmp_path: Path
) -> None:
    first = cross_validate(config())
    with pytest.raises(ConfigError, match="has finished; there is nothing to resume"):
        cross_validate(config(resume=first.run_id))
    result = cross_validate(config(resume=first.run_id, refit=True))
    assert result.run_id == first.run_id
    assert_same(result, first)
    assert result.model is not None
    _, children = runs(tmp_path)
    final = children[-1]
    assert final.data.tags["kind"] == "refit"
    assert not [name for name in final.data.metrics if name.startswith(("val_", "test_"))]
    epochs = mlflow.MlflowClient().get_metric_history(final.info.run_id, "train_loss")
    assert len(epochs) == round(result.scores["cv_best_epoch"])

    registered = register_model(result.run_id, tmp_path.name)
    assert registered.alias == "champion"
    version = mlflow.MlflowClient().get_model_version(tmp_path.name, registered.version)
    assert float(version.tags["cv_accuracy"]) == result.scores["cv_accuracy"]
    again = register_model(result.run_id, tmp_path.name)
    assert again.alias == "challenger"
    assert "cross-validated accuracy" in again.reason
    assert "is not higher than" in again.reason
    single = train(resolve(TrainConfig, _train_options(config())))
    assert "their splits differ" in register_model(single.run_id, tmp_path.name).reason


def _train_options(config: CrossValidateConfig) -> dict[str, Any]:
    names = ("data", "model", "image_size", "batch_size", "experiment")
    return {**{name: getattr(config, name) for name in names}, "epochs": 1}


@pytest.mark.slow
def test_photos_of_all_folds_are_seen_by_the_final_model(
    config: MakeConfig, tmp_path: Path
) -> None:
    result = cross_validate(config(refit=True, epochs=1))
    assert find_seen(load_dataset(config()).frame, result.run_id).mask.all()
    with pytest.raises(CatalogError, match=f"run={result.run_id}: has no test split"):
        evaluate(f"runs:/{result.run_id}/model", run=result.run_id)


@pytest.mark.slow
def test_two_cross_validations_are_compared_on_all_photos(
    config: MakeConfig, tmp_path: Path
) -> None:
    first, second = cross_validate(config()), cross_validate(config(lr=0.001))
    found = compare([first.run_id, second.run_id], out=tmp_path / "page")
    assert list(found.runs["test_photos"]) == [19, 19]
    assert list(found.runs["test_accuracy_low"]) == [
        first.scores["cv_accuracy_low"],
        second.scores["cv_accuracy_low"],
    ]
    right = [(r.predictions["label_group"] == r.predictions["predicted"]) for r in (first, second)]
    (pair,) = found.pairs.itertuples()
    assert pair.only_first_right == int((right[0] & ~right[1]).sum())
    assert pair.only_second_right == int((~right[0] & right[1]).sum())

    of_experiment = compare(experiment=tmp_path.name, out=tmp_path / "experiment")
    assert set(of_experiment.runs["run_id"]) == {first.run_id, second.run_id}
    (same,) = of_experiment.pairs.itertuples()
    assert {same.only_first_right, same.only_second_right} == {
        *(pair.only_first_right, pair.only_second_right)
    }

    other = cross_validate(config(split_seed=1))
    assert compare([first.run_id, other.run_id], out=tmp_path / "other").pairs.empty


@pytest.mark.fault
def test_more_folds_than_photos_of_a_group_are_an_error_of_the_command(
    config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["cross-validate", "--data", config().data, "--model", "cnn", "--folds", "7"]
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert "folds=7: 2 label groups have too few photos (group1 6, group2 6)" in said


@pytest.mark.fault
@pytest.mark.slow
def test_real_sigkills_end_in_the_same_figures(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    folder = make_catalog(groups=3, each=20)
    options = {**OPTIONS, "data": folder, "epochs": 40, "batch_size": 4, "experiment": "folds"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]

    stores = {name: new_store(tmp_path / f"{name}.db") for name in ("whole", "killed")}

    def run(name: str, folds_before_kill: int | None) -> tuple[int, str]:
        env = {**os.environ, "MLFLOW_TRACKING_URI": stores[name], "PYTHONUNBUFFERED": "1"}
        process = WarmProcess("shopee_mlflow", "cross-validate", *words, env=env)
        said = []
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line)
                done = sum(" of 3: test accuracy" in text for text in said)
                starts = "photos of 3 label groups" in line
                if folds_before_kill is not None and (starts or done) and done >= folds_before_kill:
                    if starts:
                        time.sleep(0.5)  # until the first fold has begun; all of them take longer
                    process.kill()
                    break
        finally:
            process.stdout.close()
            process.wait()
        return process.wait(), "".join(said)

    assert run("whole", None)[0] == 0
    for done in (0, 1, 1):
        assert run("killed", done)[0] == -signal.SIGKILL
    code, said = run("killed", None)
    assert code == 0
    assert "are finished already" in said
    results = []
    for store in stores.values():
        client = mlflow.MlflowClient(store)
        found = client.get_experiment_by_name("folds")
        there = client.search_runs([found.experiment_id], "tags.kind = 'cross-validate'")
        (parent,) = there
        assert parent.info.status == "FINISHED"
        path = client.download_artifacts(parent.info.run_id, "cv/logits.pt", str(tmp_path))
        results.append((torch.load(path)["logits"], parent.data.metrics))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
