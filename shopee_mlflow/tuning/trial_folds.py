"""A trial of several folds: one training for each, validated together as one split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from ..config import TrainConfig, TuneConfig
from ..data.fold_splits import validation_folds
from ..modeling.epochs import validation_metrics
from ..modeling.scoring import predict_logits
from ..tracking.run_log import NullRunLog, RunLog
from ..training.context import TrainingContext
from ..training.session import Progress, TrainingSession

_NOT_LOGGED = NullRunLog()
# The accuracy on the validation photos of each fold; its number is the step.
FOLD_METRIC = "fold_val_accuracy"


@dataclass(frozen=True)
class TrialOutcome:
    """What a trial has reached.

    :ivar best: metrics of the best epoch; of folds, those of all their validation photos together.
    :ivar best_epoch: its number; of folds, the mean, rounded. ``epochs`` that were trained, in all.
    :ivar kept: whether the best weights were logged.
    """

    best: dict[str, float]
    best_epoch: int
    epochs: int
    pruned: bool
    kept: bool = False


def train_folds(
    context: TrainingContext,
    run: RunLog,
    config: TrainConfig,
    search: TuneConfig,
    bar: Callable[[int], Progress],
    prune: Callable[[int, float], bool],
) -> TrialOutcome:
    """Train each fold from the same initial weights; after each, the trial may be pruned.

    The best epoch of a fold is chosen on its validation photos, as in a trial without folds.

    :param context: its test photos are in no fold.
    :param bar: number of a fold -> its progress.
    :param prune: takes the number of folds done and ``monitor`` over their validation photos;
        returns whether to end the trial.
    """
    data = context.dataset
    labels, logits, histories, best_epochs, pruned = [], [], [], list[int](), False
    for number, split in enumerate(validation_folds(data.frame, search), start=1):
        dataset = data.with_splits(split)
        session = TrainingSession(config, context.with_dataset(dataset), _NOT_LOGGED)
        session.fit(bar(number))
        session.best.load_weights()
        inputs = session.inputs
        true, predicted = predict_logits(inputs.parts.trainable, inputs.val, context.machine)
        labels.append(true)
        logits.append(predicted)
        histories.append(session.history_table())
        best_epochs.append(session.best.found.number)
        run.log_metrics({FOLD_METRIC: session.best.found["val_accuracy"]}, step=number)
        best = _metrics(np.concatenate(labels), np.concatenate(logits))
        if prune(number, best[config.monitor]):
            pruned = number < search.folds
            break
    epochs = pd.concat(histories)
    _log_curves(run, epochs)
    return TrialOutcome(best, round(float(np.mean(best_epochs))), len(epochs), pruned)


def _metrics(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    loss = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return {**validation_metrics(labels, logits), "val_loss": loss}


def _log_curves(run: RunLog, epochs: pd.DataFrame) -> None:
    """Log the means of the folds' metrics in each epoch."""
    for epoch, values in epochs.groupby("epoch").mean().iterrows():
        run.log_metrics({str(name): float(v) for name, v in values.items()}, step=int(str(epoch)))
