"""A training session: model, inputs, trainer, best epoch, checkpoints and resumed state.

``train``, each trial of ``tune`` and each fold of ``cross-validate`` run this loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from ..config import TrainConfig
from ..console import say
from ..errors import CheckpointError
from ..modeling.epochs import BestEpoch, Epoch, epochs_without_progress
from ..modeling.metrics import scores_of_test
from ..modeling.strangers import StrangerResult
from ..modeling.temperature import Temperature
from ..tracking.run_log import RunLog
from ..tracking.signals import Stopped, graceful_stop
from .checkpoints import CheckpointWriter, ResumeState, check_facts, training_facts
from .context import TrainingContext
from .refusal import attach_detector
from .trainer import Trainer

_log = logging.getLogger(__name__)


class Progress(Protocol):
    """Displays the progress of a training."""

    def batch(self, done: int, loss: float, accuracy: float) -> None:
        """Called at intervals: photos done in this epoch, running loss and accuracy."""

    def epoch(self, number: int, metrics: Mapping[str, float], best: bool) -> None:
        """Called after each epoch; ``best``: whether it is the best epoch so far."""


@dataclass(frozen=True)
class TestResult:
    """The test split, predicted once with the weights of the best epoch.

    :ivar labels: (T,) int64, in the order of the split.
    :ivar logits: (T, C) float32, in the same order, divided by the temperature.
    :ivar scores: of the best epoch (best_epoch, best_val_accuracy) and of the test split
        (test_accuracy, test_accuracy_low, test_accuracy_high, test_loss), and
        strangers_accepted, the share of photos of other label groups that get one, if measured.
    :ivar strangers: the detector of these photos, and its measurement.
    """

    labels: np.ndarray
    logits: np.ndarray
    scores: dict[str, float]
    temperature: Temperature = field(default_factory=Temperature)
    strangers: StrangerResult = field(default_factory=StrangerResult)


class TrainingSession:
    """A training from its first epoch, or from a checkpoint, to its test.

    :ivar model: the model; after :meth:`test` or :meth:`load_best` it has the best weights and is
        in eval mode.
    :ivar history: the completed epochs, including those before a resume.
    :ivar pruned: whether ``prune`` has ended :meth:`fit`.
    """

    def __init__(
        self,
        config: TrainConfig,
        context: TrainingContext,
        run: RunLog,
        *,
        resume: ResumeState | None = None,
        checkpoints: bool = False,
    ) -> None:
        """
        :param run: the run to which the metrics of each epoch are logged.
        :param resume: the interrupted training to continue.
        :param checkpoints: write checkpoints, also before a stop signal ends the training.
        :raises CheckpointError: when data, label groups or weights differ from those of ``resume``.
        """
        self.config, self.context, self.run = config, context, run
        group = context.group
        self.model = context.new_model(config)
        facts = training_facts(context.dataset, self.model)
        group.check_equal({"data": facts["data_digest"], "weights": facts["start"]})
        if resume:
            check_facts(resume, facts)
        self.inputs = context.prepare(self.model, config)
        self.best = BestEpoch(self.inputs.parts.trainable, config.monitor)
        self.trainer = Trainer(
            self.inputs.parts.trainable,
            self.inputs.train,
            self.inputs.val,
            config,
            context.machine,
            loss=self.inputs.loss,
            compiled=self.inputs.compiled,
            backbone=self.inputs.parts.backbone,
            group=group,
            optimizer=context.custom.optimizer,
        )
        self.history: list[Epoch] = []
        self.pruned = False
        self._writer = CheckpointWriter(run.run_id, config, facts) if checkpoints else None
        if self._writer and group.leads:
            self._writer.checkpoints.prepare()
        if resume:
            self._restore(resume)

    def fit(self, progress: Progress, prune: Callable[[Epoch], bool] | None = None) -> None:
        """Train until the last epoch, until ``patience`` runs out, or until ``prune`` returns True.

        :param prune: called after each epoch; returns whether to end the training.
        :raises TrainingError: when training diverges.
        """
        with self._stop_with_checkpoint() as check_stop:
            epochs = self.trainer.epochs(progress.batch, check_stop)
            while not self._out_of_patience() and (epoch := next(epochs, None)):
                improved = self.best.update(epoch, self.trainer.validated)
                self.history.append(epoch)
                self.run.log_metrics(epoch.metrics, step=epoch.number)
                progress.epoch(epoch.number, epoch.metrics, improved)
                if self._writer and self._writer.is_due():
                    self.save_checkpoint()
                check_stop()
                if prune and prune(epoch):
                    self.pruned = True
                    return

    def test(self) -> TestResult:
        """Load the best weights, calibrate them on val, and predict the test split once.

        The model gets a detector of strangers, unless ``unknown`` is none.
        """
        self.load_best()
        labels, logits, temperature = self.context.test(self.model, self.inputs)
        scores = {**self.best.scores(), **scores_of_test(labels, logits)}
        found = attach_detector(self.config, self.context, self.model, self.inputs)
        scores |= found.scores()
        return TestResult(labels, logits, scores, temperature, found)

    def load_best(self) -> None:
        """Give the model the weights of the best epoch, ready to predict."""
        self.best.load_weights()
        self.model.eval().requires_grad_(True)
        self.model.tta = self.config.tta

    def history_table(self) -> pd.DataFrame:
        """One row per epoch, with a column ``epoch`` and one for each metric."""
        return pd.DataFrame([{"epoch": e.number, **e.metrics} for e in self.history])

    def save_checkpoint(self) -> None:
        """Write a checkpoint now.

        :raises CheckpointError: when it cannot be written.
        """
        if self._writer and self.context.group.leads:
            self._writer.save(self.trainer, self.best, self.history)

    def _restore(self, resume: ResumeState) -> None:
        """Load the checkpoint, and log epochs that the tracking store lacks."""
        self.trainer.restore(resume.last["training"])
        self.history += resume.history
        if resume.best:
            self.best.restore_state(resume.best)
        for epoch in resume.history:
            self.run.log_metrics(epoch.metrics, step=epoch.number)
        done, epochs = len(resume.history), resume.config.epochs
        say(f"resuming run {resume.run_id} after epoch {done} of {epochs}")

    def _out_of_patience(self) -> bool:
        patience, monitor = self.config.patience, self.config.monitor
        if not (patience and self.history):
            return False
        if epochs_without_progress(self.history, monitor) < patience:
            return False
        say(f"stopped: {monitor} has not improved for {patience} epochs")
        return True

    @contextmanager
    def _stop_with_checkpoint(self) -> Iterator[Callable[[], None]]:
        """Defer the first stop signal to the end of the batch, and write a checkpoint there.

        Without checkpoints, a signal stops the training immediately.
        """
        if self._writer is None:
            yield lambda: None
            return
        group = self.context.group
        with graceful_stop(group.any if group.size > 1 else None) as check_stop:

            def stop_with_checkpoint() -> None:
                try:
                    check_stop()
                except Stopped:
                    self.trainer.sync_totals()
                    try:
                        self.save_checkpoint()
                    except CheckpointError as error:
                        _log.warning("%s", error)
                    raise

            yield stop_with_checkpoint
