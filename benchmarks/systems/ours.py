"""This project: the train command, measured by what it logs to the tracking store."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from shopee_mlflow.config import TrainConfig, resolve
from shopee_mlflow.data.batches import Batch, Batches
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.modeling.device import choose_machine, computes_bf16
from shopee_mlflow.training.context import TrainingContext
from shopee_mlflow.training.trainer import Trainer

from ..job import MANIFEST, Job

FROZEN, FULL = "ours_frozen", "ours_full"
# Photos times epochs from which compiling saves time on a CPU when all layers are trained.
_LONG = 45_000
# Epochs of a scaled job: one that warms up, and one like all later ones.
_FEWEST = 2
# Batches to measure waiting with, if the whole epoch would take minutes.
_WAIT_BATCHES = 4


def options(job: Job) -> dict[str, Any]:
    """The options of the training."""
    given: dict[str, Any] = {
        "data": job.catalog,
        "model": "effnet_pretrained" if job.weights else "effnet",
        "epochs": epochs(job),
        "batch_size": job.batch_size,
        "image_size": job.image_size,
        "device": job.device,
    }
    if job.name == FROZEN and choose_machine(job.device).device.type == "cpu" and computes_bf16():
        # The trainable part is mostly matrix products, which are faster in bf16.
        given["precision"] = "bf16"
    if job.weights:
        given["weights"] = job.weights
    if job.name == FULL:
        given |= {"freeze": "none", "augment": "none"}
        # What auto decides for the whole job; in a scaled job it would see two epochs only.
        given["compile"] = str(job.compile and job.size * job.epochs > _LONG).lower()
    else:
        given |= {"freeze": "features.6", "augment": "original", "label_smoothing": 0.1}
    return given


def epochs(job: Job) -> int:
    """Number of epochs to run."""
    return job.epochs if job.to_the_end else min(_FEWEST, job.epochs)


def command(job: Job) -> list[str]:
    """The command line of the training."""
    words = [word for name, value in options(job).items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "shopee_mlflow", "train", *words]


def measure(job: Job) -> dict[str, Any]:
    """The figures of the command that ran in this job's folder, and the input wait.

    Times come from the metrics in the tracking store; ``job.started`` is the start of the command.
    """
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run.info.run_id, "epoch_seconds")
    history.sort(key=lambda metric: metric.step)
    speeds = client.get_metric_history(run.info.run_id, "images_per_second")
    later = [metric.value for metric in history if metric.step > 1]
    figures: dict[str, Any] = {
        "first_epoch_done": history[0].timestamp / 1000 - job.started,
        "later_epoch": statistics.median(later) if later else None,
        "images_per_second": statistics.median(m.value for m in speeds if m.step > 1 or not later),
        "epochs_run": len(history),
        "scaled": [],
        "flags": _flags(job, compiled=run.data.tags.get("compiled") == "true"),
        "input_wait": input_wait(job),
    }
    if len(history) == job.epochs:
        test = {k.removeprefix("test_"): v for k, v in run.data.metrics.items() if "test_" in k}
        photos = int((pd.read_csv(Path(job.catalog) / MANIFEST)["split"] == "test").sum())
        figures["test"] = {**test, "photos": photos}
    return figures


def _flags(job: Job, compiled: bool) -> str:
    given = options(job)
    words = [f"{name}={given[name]}" for name in ("freeze", "lr", "precision") if name in given]
    return ", ".join([*words, *(["compile"] if compiled else [])])


class WatchedBatches(Batches):
    """The batches of the training, with the seconds of waiting for each."""

    def epoch(self, number: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches and time the waiting."""
        waits = _waits.setdefault(number, [])
        batches = super().epoch(number, skip)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waits.append(time.perf_counter() - asked)
            if batch is None:
                return
            yield batch


# By epoch; the batches themselves are frozen.
_waits: dict[int, list[float]] = {}


def input_wait(job: Job) -> float:
    """Share of a warm epoch, without validation, spent waiting for the next batch.

    The training loop runs for two epochs on the prepared photos or activations; the second counts.
    """
    # The length of the whole job decides whether to compile.
    config = resolve(TrainConfig, {**options(job), "epochs": max(job.epochs, 2)})
    machine = choose_machine(config.device, config.precision)
    context = TrainingContext(load_dataset(config), machine)
    inputs = context.prepare(context.new_model(config), config)
    rows = inputs.train.rows
    if job.name == FULL:
        rows = rows[: _WAIT_BATCHES * config.batch_size]
    batches = WatchedBatches(**{**vars(inputs.train), "rows": rows})
    trainer = Trainer(
        inputs.parts.trainable, batches, inputs.val, config, machine, compiled=inputs.compiled
    )
    loop = trainer.epochs()
    next(loop)
    warm = next(loop)
    return sum(_waits[2]) / (len(rows) / warm["images_per_second"])
