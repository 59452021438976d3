"""Train a classifier, test it, and log the model and its results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..config import TrainConfig
from ..console import TrainingProgress, duration, say, watch
from ..data.dataset import Dataset, load_dataset
from ..modeling.models import ProductClassifier
from ..tracking.run_log import RunLog
from ..training.job import cleanup, training_job
from ..training.results import log_training
from ..training.resume import saved_on_disk
from .register import register


@dataclass(frozen=True)
class TrainResult:
    """The result of a training.

    :ivar run_id: its MLflow run.
    :ivar model: with the weights of the best epoch, in eval mode.
    :ivar dataset: the data that it was trained on.
    :ivar history: one row an epoch, columns epoch and the metrics of an epoch.
    :ivar scores: best_val_accuracy, best_epoch, test_accuracy, test_accuracy_low,
        test_accuracy_high, test_loss.
    :ivar test_labels: (T,) int64 and ``test_logits`` (T, C) float32, in the order of
        ``dataset.rows("test")``.
    """

    run_id: str
    model_id: str
    model: ProductClassifier
    dataset: Dataset = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    scores: dict[str, float]
    test_labels: np.ndarray = field(repr=False)
    test_logits: np.ndarray = field(repr=False)


def train(
    config: TrainConfig,
    cli_options: Mapping[str, str] | None = None,
    *,
    parent: RunLog | None = None,
    name: str | None = None,
) -> TrainResult:
    """Train a classifier with these options, and log the model and its results to MLflow.

    The epoch with the best validation metric is kept; the test split is predicted once, after
    that. Started by torchrun, all processes train one model together, and the first one tracks it.

    :param cli_options: options as they were typed on the command line; logged in that spelling.
    :param parent: the run to make this one a child of.
    :param name: name of the run; by default the option run_name, else the model's name.
    :raises ShopeeError: for errors that the user can correct.
    """
    started, model_id = time.monotonic(), ""
    with training_job(config, cli_options or {}, parent, name) as job:
        say(f"run {job.run.run_id}: reading the catalogue ({job.config.data})")
        dataset = load_dataset(job.config, watch)
        say(*dataset.lines())
        session = job.session(dataset)
        done, epochs = len(session.history), job.config.epochs
        with TrainingProgress(session.trainer.photos, epochs, done) as progress:
            session.fit(progress)
        test = session.test()
        if job.leads:
            with saved_on_disk(session):
                model_id = log_training(session, test)
            say(*summary(test.scores, len(test.labels), job.run, time.monotonic() - started))
    if job.leads:
        with cleanup(job.run.run_id, job.group):
            if job.config.register:
                register(job.run.run_id, promote=job.config.promote)
    return TrainResult(
        job.run.run_id,
        model_id,
        session.model,
        dataset,
        session.history_table(),
        test.scores,
        test.labels,
        test.logits,
    )


def summary(scores: Mapping[str, float], photos: int, run: RunLog, seconds: float) -> list[str]:
    """The result in words."""
    best = ", ".join(
        f"{name.removeprefix('best_')} {value:.1%}"
        for name, value in scores.items()
        if name.startswith("best_val_")
    )
    return [
        f"best epoch {scores['best_epoch']:.0f}: {best}",
        f"test accuracy {scores['test_accuracy']:.1%} of {photos} photos, 95 % interval "
        f"{scores['test_accuracy_low']:.1%} to {scores['test_accuracy_high']:.1%}",
        f"run {run.run_id}, {duration(seconds)} in all. See it with: mlflow ui",
    ]
