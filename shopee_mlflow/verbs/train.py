"""Train a classifier, test it, and log the model and its results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import nn

from ..config import TrainConfig
from ..console import TrainingProgress, duration, say
from ..data.dataset import Dataset
from ..modeling.models import ProductClassifier
from ..tracking.links import view_lines
from ..tracking.run_log import RunLog
from ..training.custom import (
    CustomParts,
    OptimizerFactory,
    TransformFn,
    check_parts,
    options_of,
)
from ..training.job import delete_checkpoints, training_job
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

    @property
    def uri(self) -> str:
        """The logged model, as ``Classifier.load`` and MLflow's functions take it."""
        return f"models:/{self.model_id}"

    def __repr__(self) -> str:
        return (
            f"TrainResult(run {self.run_id}, {self.model.architecture}, test accuracy "
            f"{self.scores['test_accuracy']:.1%} of {len(self.test_labels)} photos)"
        )


def train(
    config: TrainConfig,
    cli_options: Mapping[str, str] | None = None,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    transform: TransformFn | None = None,
    optimizer: OptimizerFactory | None = None,
    parent: RunLog | None = None,
    name: str | None = None,
) -> TrainResult:
    """Train a classifier with these options, and log the model and its results to MLflow.

    The epoch with the best validation metric is kept; the test split is predicted once, after
    that. Started by torchrun, all processes train one model together, and the first one tracks it.

    Objects of yours can replace what options name; they are logged by the names of their classes.
    A training with a model, transform or optimizer of yours writes no checkpoints.

    :param cli_options: options as they were typed on the command line; logged in that spelling.
    :param model: a network with logits for the label groups in order, which is copied. It takes
        (N, 3, S, S) float photos as torchvision's networks do, where S is the option image_size;
        or it is a :class:`ProductClassifier`, such as a model that was trained before.
    :param dataset: what :func:`load_dataset` returned, in place of loading the data; its options
        of the data are used.
    :param transform: an augmentation in place of the option augment: photos (n, 3, S, S) uint8 ->
        photos of that shape, uint8 or float 0..1. A transform of torchvision gets one photo at a
        time, since it draws once a call.
    :param optimizer: a list of parameters -> an optimizer, in place of the options optimizer, lr,
        momentum and weight_decay; the schedule multiplies its learning rate.
    :param parent: the run to make this one a child of.
    :param name: name of the run; by default the option run_name, else the model and the options
        that differ from the defaults.
    :raises ShopeeError: for errors that the user can correct.
    """
    started, model_id = time.monotonic(), ""
    custom = CustomParts(model, transform, optimizer)
    check_parts(custom, config)
    if model is not None:
        config = dataclasses.replace(config, model=custom.params(config)["model"])
    if dataset is not None:
        config = options_of(dataset, config)
    with training_job(config, cli_options or {}, parent, name, custom, dataset) as job:
        session = job.session()
        done, epochs = len(session.history), job.config.epochs
        with TrainingProgress(session.trainer.photos, epochs, done) as progress:
            session.fit(progress)
        test = session.test()
        if job.leads:
            with saved_on_disk(session):
                seconds = time.monotonic() - started
                model_id = log_training(session, test, seconds)
            say(*summary(test.scores, len(test.labels)), test.temperature.words)
            say(*test.strangers.words)
    if job.leads:
        if job.config.register:
            register(job.run.run_id, promote=job.config.promote)
        if job.group.size > 1:
            delete_checkpoints(job.run.run_id)
        say(*view_lines(job.run, f"{duration(time.monotonic() - started)} in all", beside=True))
    return TrainResult(
        job.run.run_id,
        model_id,
        session.model,
        job.dataset,
        session.history_table(),
        test.scores,
        test.labels,
        test.logits,
    )


def summary(scores: Mapping[str, float], photos: int) -> list[str]:
    """The result in words."""
    best = ", ".join(
        f"{name.removeprefix('best_')} {value:.1%}"
        for name, value in scores.items()
        if name.startswith("best_val_")
    )
    return [
        f"best epoch {scores['best_epoch']:.0f} (the last one marked with *): {best}",
        f"test accuracy {scores['test_accuracy']:.1%} of {photos} photos, 95 % interval "
        f"{scores['test_accuracy_low']:.1%} to {scores['test_accuracy_high']:.1%}",
    ]
