"""Small searches, shared by test modules, and helpers to inspect their runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.entities import Run

from shopee_mlflow.modeling.epochs import Epoch
from shopee_mlflow.tracking.mlflow_run_log import MlflowRunLog
from shopee_mlflow.training.trainer import Trainer
from shopee_mlflow.tuning.space import SearchPlan, plan_search
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
LR = {"low": 1e-4, "high": 0.1, "log": True}
CLIENT = mlflow.MlflowClient
TIMELESS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]

Call = Callable[..., TuneResult | None]


def search_file(folder: Path, **content: Any) -> Path:
    """A YAML file of a search that ends in a moment, with these options beside."""
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump({**CONTENT, **content}))
    return file


def quick_search(shop: Path, place: Path, patch: pytest.MonkeyPatch) -> Call:
    """A search on a catalogue, in an experiment named like its place.

    Its end is without figures, page and model, which take seconds.

    :returns: a function of options cli_options, and of those in its file.
    """
    module = "shopee_mlflow.verbs.tune"
    patch.setattr(f"{module}.log_results", lambda run, *given: run.log_metrics(given[-1].scores))
    patch.setattr(f"{module}.draw_plots", lambda *_: iter(()))
    patch.setattr(MlflowRunLog, "log_model", lambda self, *_: self.log_tags({"model": "logged"}))

    def call(cli_options: dict[str, Any] | None = None, **content: Any) -> TuneResult | None:
        file = search_file(place, **{"data": str(shop), "experiment": place.name, **content})
        return tune({"config": str(file), **(cli_options or {})})

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

    epochs_of = Trainer.epochs

    def wrapped(self: Trainer, *given: Any) -> Iterator[Epoch]:
        number = len(begun)
        begun.append(number)
        epochs = epochs_of(self, *given)
        for epoch in itertools.count(1):
            at_epoch(number, epoch)
            found = next(epochs, None)
            if found is None:
                return
            yield found

    monkeypatch.setattr(Trainer, "epochs", wrapped)


def plan_of(tmp_path: Path, content: dict[str, Any] | str, **cli_options: Any) -> SearchPlan:
    """The plan of a YAML file with this content, and of options given beside it."""
    file = tmp_path / "search.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    file.write_text(text, encoding="utf-8")
    return plan_search({"config": str(file), **cli_options})
