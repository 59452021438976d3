"""Runs to compare: a few trained ones, shared by test modules, and artificial ones."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.entities import Metric, Param, RunTag
from small_run import SmallRun, small_run

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve


@cache
def trained_runs(base: Path) -> tuple[SmallRun, str, str]:
    """A run, the id of one that differs in lr and name, and of one with another split."""
    first = small_run(base)
    given = {"data": str(first.shop), "model": "cnn", "image_size": 32, "batch_size": 8}
    others = ({"lr": 0.05, "epochs": 2, "run_name": "fast"}, {"split_seed": 1, "epochs": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOPEE_MLFLOW_CACHE", str(base / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
            patch.delenv(name, raising=False)
        patch.chdir(first.shop.parent)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            ids = [train(resolve(TrainConfig, {**given, **other})).run_id for other in others]
        finally:
            torch.set_num_threads(threads)
    return first, ids[0], ids[1]


def made_run(
    experiment: str,
    name: str,
    wrong: Sequence[int] = (),
    *,
    photos: int = 20,
    digest: str = "d1",
    status: str = "FINISHED",
    metrics: dict[str, float] | None = None,
    tags: dict[str, str] | None = None,
    backwards: bool = False,
    sets: Sequence[int] | None = range(20),
    **options: str,
) -> str:
    """A run that looks like a training which got these test photos wrong; gives its id.

    :param metrics: instead of those that a training logs at its end.
    :param backwards: its predictions are in the opposite order.
    :param sets: the set of copies of each photo; None as of an earlier version.
    """
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    right = photos - len(set(wrong))
    ended = {"best_val_accuracy": 0.5, "best_epoch": 2.0, "test_accuracy": right / photos}
    final = ended if metrics is None else metrics
    logged = [Metric(key, value, 0, 0) for key, value in final.items()]
    for epoch in (1, 2, 3):
        by_epoch = {"val_loss": 2.0 / epoch, "val_accuracy": 0.2 * epoch}
        logged += [Metric(key, value, 0, epoch) for key, value in by_epoch.items()]
    run_id = client.create_run(experiment_id, run_name=name).info.run_id
    noted = {**({"data_digest": digest} if digest else {}), **(tags or {})}
    client.log_batch(
        run_id,
        logged,
        [Param(key, shlex.quote(value)) for key, value in options.items()],
        [RunTag(key, value) for key, value in noted.items()],
    )
    numbers = range(photos)[:: -1 if backwards else 1]
    rows = [(f"{n}.jpg", "a", "b" if n in wrong else "a", "0.9") for n in numbers]
    columns = ("image", "label_group", "predicted", "probability")
    table = pd.DataFrame(rows, columns=list(columns))
    if sets is not None:
        table["copy_set"] = [sets[n] for n in numbers]
    client.log_text(run_id, table.to_csv(index=False), "test/predictions.csv")
    client.set_terminated(run_id, status)
    return str(run_id)
