"""Endurance tests, which take minutes: run them with ``python -m pytest --endurance``."""

from __future__ import annotations

import gc
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from conftest import MakeCatalog

from shopee_mlflow import TrainConfig, train, tune
from shopee_mlflow.config import resolve
from shopee_mlflow.tuning import trials

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.endurance
KILLS, EPOCHS = 20, 10
RUNS, WARM, TRIALS = 200, 20, 100
# Of the resident memory; glibc's heap moves by some MiB from run to run.
_LEVEL_MIB = 24
_POOL = 3


class Trainer:
    """``train`` as a process of its own, on a store of its own."""

    def __init__(self, place: Path, catalog: Path) -> None:
        place.mkdir()
        self.place = place
        self.env = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
            "SHOPEE_MLFLOW_STATE": str(place),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        options = {"data": catalog, "model": "mobilenet_v3_small", "image_size": 64}
        options |= {"epochs": EPOCHS, "batch_size": 16, "lr": 0.02, "augment": "original"}
        self.begin = [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "shopee_mlflow", "train", *words]
        return subprocess.Popen(
            command,
            env=self.env,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def history(self) -> dict[str, list[float]]:
        """What the store has of the only run."""
        client = mlflow.MlflowClient(self.env["MLFLOW_TRACKING_URI"])
        found = client.get_experiment_by_name("shopee")
        assert found is not None
        (run,) = client.search_runs([found.experiment_id])
        assert run.info.status == "FINISHED"
        names = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
        histories = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        for name, points in histories.items():
            assert [point.step for point in points] == list(range(1, EPOCHS + 1)), name
        scores = {k: [v] for k, v in run.data.metrics.items() if k.startswith("test_")}
        return {name: [p.value for p in points] for name, points in histories.items()} | scores


def test_sigkill_at_random_moments_changes_no_value(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    catalog = make_catalog(groups=4, each=120, px=64)
    undisturbed = Trainer(tmp_path / "undisturbed", catalog)
    said, _ = (process := undisturbed.start(*undisturbed.begin)).communicate()
    assert process.returncode == 0, said

    killed, chance = Trainer(tmp_path / "killed", catalog), random.Random(7)
    words, done = killed.begin, []
    for _ in range(KILLS):
        process = killed.start(*words)
        assert process.stdout is not None
        for line in process.stdout:
            if "parameters, freeze=" in line:
                break
        time.sleep(chance.uniform(0, 4))
        process.kill()
        said, _ = process.communicate()
        assert process.returncode == -9, said
        if list(killed.place.glob("checkpoints/*/last.pt")):
            words = ["--resume", "last"]
            done.append(said.count("epoch "))
        else:
            # Killed before there was anything to go on from: the next start begins anew.
            remove_runs(killed)
    process = killed.start(*words)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    print(f"{KILLS} kills; epochs ended in each process: {done}; the last: {said.count('epoch ')}")
    assert killed.history() == undisturbed.history()


def remove_runs(trainer: Trainer) -> None:
    client = mlflow.MlflowClient(trainer.env["MLFLOW_TRACKING_URI"])
    found = client.get_experiment_by_name("shopee")
    for run in client.search_runs([found.experiment_id]) if found else []:
        client.delete_run(run.info.run_id)


def levels() -> tuple[float, int, int]:
    """Resident MiB, threads, open files of this process and those that it has started."""
    gc.collect()
    me = psutil.Process()
    family = [me, *me.children(recursive=True)]
    memory = sum(process.memory_info().rss for process in family) / 2**20
    return memory, threading.active_count(), sum(process.num_fds() for process in family)


def check_level(measured: list[tuple[float, int, int]], title: str) -> None:
    """The last tenth is as the tenth after the warm-up."""
    part = max(1, len(measured) // 10)
    warm, last = measured[WARM : WARM + part], measured[-part:]
    early = [statistics.median(column) for column in zip(*warm, strict=True)]
    late = [statistics.median(column) for column in zip(*last, strict=True)]
    print(f"{title}: MiB, threads, files {early} after {WARM}, {late} at the end")
    assert late[0] - early[0] < _LEVEL_MIB
    assert late[1] <= early[1]
    # SQLAlchemy's pool opens a few connections when they are first needed, and keeps them.
    assert late[2] - early[2] <= _POOL


def test_hundreds_of_short_runs_leave_nothing_behind(make_catalog: MakeCatalog) -> None:
    options = tiny(make_catalog())
    measured = []
    for number in range(RUNS):
        train(resolve(TrainConfig, {**options, "seed": str(number)}))
        measured.append(levels())
    check_level(measured, f"{RUNS} runs")


def test_a_study_of_a_hundred_trials_leaves_nothing_behind(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[float, int, int]] = []
    record = trials._record

    def recorded(*arguments: Any) -> None:
        record(*arguments)
        measured.append(levels())

    monkeypatch.setattr(trials, "_record", recorded)
    # One by one in this process; those that are pruned are no shorter, so none is.
    (space := Path("space.yaml")).write_text("pruner: none\nspace: {lr: {low: 0.001, high: 0.1}}\n")
    words = {"n_trials": str(TRIALS), "register": "false", "config": str(space)}
    tune({**tiny(make_catalog()), **words})
    assert len(measured) == TRIALS
    check_level(measured, f"{TRIALS} trials")


def tiny(folder: Path) -> dict[str, str]:
    """A training that ends in a moment."""
    options = {"model": "cnn", "image_size": "32", "epochs": "2", "batch_size": "8"}
    return {**options, "data": str(folder)}
