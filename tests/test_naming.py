"""Names of runs, and the way to their pages."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import mlflow
import pytest

from shopee_mlflow.config import CrossValidateConfig, TrainConfig
from shopee_mlflow.tracking.links import view_lines
from shopee_mlflow.tracking.names import FOLD, NOT_STARTED, TRAIN, TRIAL, analyses_of
from shopee_mlflow.tracking.run_log import NullRunLog
from shopee_mlflow.tracking.runs import open_run
from shopee_mlflow.training.naming import run_name

PAGE = "#/experiments/3/runs/abc?workflowType=machine_learning"


RUN = NullRunLog("abc", "3")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "effnet_pretrained"),
        ({"model": "cnn", "data": "shop", "device": "cpu"}, "cnn"),
        (
            {"image_size": 128, "freeze": "features.6"},
            "effnet_pretrained freeze=features.6 image_size=128",
        ),
        ({"lr": 0.05, "run_name": "mine"}, "mine"),
    ],
)
def test_a_name_has_the_model_and_what_differs(options: dict[str, object], name: str) -> None:
    assert run_name(TrainConfig(**options)) == name


def test_a_name_leaves_out_what_is_said_beside_it() -> None:
    config = CrossValidateConfig(folds=3, epochs=9)
    assert run_name(config) == "effnet_pretrained epochs=9 folds=3"
    assert run_name(config, but=("folds",)) == "effnet_pretrained epochs=9"


def test_a_long_name_counts_the_rest() -> None:
    config = TrainConfig(
        model="cnn", augment="none", epochs=3, batch_size=8, optimizer="adamw", lr=0.05,
        weight_decay=0.001, schedule="constant", warmup_epochs=0, seed=1, split_seed=2,
    )  # fmt: skip
    name = run_name(config)
    assert name.startswith("cnn augment=none epochs=3 batch_size=8 ")
    assert name.endswith(" +3")
    assert len(name) <= 104


def test_comparisons_are_beside_the_trainings() -> None:
    assert analyses_of("shopee") == analyses_of("shopee-analysis") == "shopee-analysis"
    assert analyses_of("shoes") == "shoes-analysis"


def test_a_local_store_is_named_with_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``mlflow ui`` ignores MLFLOW_TRACKING_URI, and may be called in another folder."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///my runs.db")
    assert view_lines(RUN, "3 s in all") == [
        "run abc, 3 s in all. See it with this command and link:",
        f"  mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/my runs.db'",
        f"  this run: http://127.0.0.1:5000/{PAGE}",
    ]


def test_the_table_of_all_runs_opens_with_its_accuracies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.shop:8080")
    table = "runs?workflowType=machine_learning&viewStateShareKey=accuracy"
    assert f"  all runs: http://mlflow.shop:8080/#/experiments/3/{table}" in view_lines(
        RUN, "", beside=True
    )


@pytest.mark.slow
def test_the_first_training_saves_the_view_of_the_table() -> None:
    with open_run("first", "viewed", kind=TRAIN) as run:
        pass
    tag = mlflow.get_experiment(run.experiment_id).tags["mlflow.sharedViewState.accuracy"]
    view = json.loads(tag)
    packed = view["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert view["name"] == "Accuracy"
    assert {"metrics.`test_accuracy`", "metrics.`cv_accuracy`"} <= set(state["selectedColumns"])
    client = mlflow.MlflowClient()
    for kind in (FOLD, TRIAL, NOT_STARTED):
        with open_run(kind, "viewed", kind=kind):
            pass
    found = client.search_runs([run.experiment_id], state["searchFilter"])
    assert [each.info.run_name for each in found] == ["first"]
    client.set_experiment_tag(run.experiment_id, "mlflow.sharedViewState.accuracy", "{}")
    with open_run("second", "viewed", kind=TRAIN):
        pass
    tags = mlflow.get_experiment(run.experiment_id).tags
    assert tags["mlflow.sharedViewState.accuracy"] == "{}", "a person's change is kept"


def test_a_server_needs_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow.shop:8080/")
    lines = view_lines(RUN, "3 s in all")
    assert lines[1].endswith(f"mlflow.shop:8080/{PAGE}")
    assert "secret" not in "".join(lines)


def test_the_password_of_a_database_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/runs")
    assert view_lines(RUN, "")[1] == '  mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'


def test_a_run_that_is_not_stored_has_no_page() -> None:
    assert view_lines(NullRunLog(), "") == []
