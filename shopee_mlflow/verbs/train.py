"""Train: photos in, a tracked, evaluated, logged model out. The main function is the story."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..config import AUTO, NONE, TrainConfig, as_params
from ..console import TrainingProgress, duration, mute, say, watch
from ..data.dataset import Dataset, load_dataset
from ..errors import CheckpointError, TrainingError
from ..modeling.architectures import check_architecture
from ..modeling.device import choose_machine
from ..modeling.epochs import Best, Epoch, epochs_without_progress
from ..modeling.group import ALONE, Group
from ..modeling.metrics import scores_of_test
from ..modeling.models import ProductClassifier
from ..modeling.rendezvous import backend_for, joined_group
from ..tracking.environment import machine_tags
from ..tracking.follow import follow_run
from ..tracking.processes import PROCESS_TAG, process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run
from ..tracking.signals import Stopped, graceful_stop
from ..training.context import TrainingContext
from ..training.launch import check_group, cleanup, make_known, resumed_after_restart
from ..training.results import log_data, log_results
from ..training.resume import (
    CheckpointWriter,
    ResumeState,
    check_facts,
    checkpoints_of,
    close_stale_runs,
    facts_of,
    find_resume_state,
    go_on,
    how_to_go_on,
    kept_on_disk,
)
from ..training.session import Training
from .register import register

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    :ivar run_id: its MLflow run.
    :ivar model: with the weights of the best epoch, in eval mode.
    :ivar dataset: what it was trained on.
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
    """Train a classifier as the options say, and log everything about it to MLflow.

    The epoch with the best validation accuracy is kept; the test split is looked at once, after
    that. Started by torchrun, all processes train one model together; the first of them does all
    else.

    :param cli_options: options as a person wrote them on the command line; logged in that spelling.
    :param parent: the run to make this one a child of.
    :param name: of the run; by default the option run_name, else the model's.
    :raises ShopeeError: for what the user can mend, always with what, where and what to do.
    """
    with joined_group(backend_for(config.device)) as group:
        mute(not group.leads)
        return _train(config, cli_options or {}, parent, name, group)


def _train(
    config: TrainConfig,
    cli_options: Mapping[str, str],
    parent: RunLog | None,
    name: str | None,
    group: Group,
) -> TrainResult:
    started = time.monotonic()
    past = None
    if group.leads:
        config = resumed_after_restart(config, group)
        past = find_resume_state(config, cli_options) if config.resume != NONE else None
    past = group.from_leader(past)
    config = past.config if past else config
    machine = choose_machine(config.device, config.precision, group.local_rank)
    check_group(config, group, machine)
    check_architecture(config.model)
    with begin_run(name or run_name(config), config, parent, past, group) as run:
        if past is None:
            run.log_params({**as_params(config), **cli_options})
        run.log_tags({**machine_tags(str(machine)), "processes": str(group.size)})
        dataset = load_dataset(config, watch)
        say(*dataset.lines())
        if past is None:
            log_data(run, dataset, config)
        bench = TrainingContext(dataset, machine, group)
        model = bench.new_model(config)
        facts = facts_of(dataset, model)
        group.agree({"data": facts["data_digest"], "weights": facts["start"]})
        if past:
            check_facts(past, facts)
        say(f"{config.model} on {machine}, {_trainable(model, config)}")
        part = bench.prepare(model, config)
        _tell_compiling(run, part.step is not None)
        best = Best(part.split_model.trainable)
        keeper = CheckpointWriter(run.run_id, config, facts, group.leads)
        training = Training(
            part.split_model.trainable, part.train, part.val, config, machine, part.step, group
        )
        if past:
            go_on(past, run, keeper, training, best)
        epochs = run_epochs(run, training, best, keeper, config, group)
        best.restore()
        model.eval().requires_grad_(True)
        model.tta = config.tta
        labels, logits = bench.test(model, part)
        scores = {**best.scores(), **scores_of_test(labels, logits)}
        history = pd.DataFrame([{"epoch": e.number, **e.metrics()} for e in epochs])
        if not group.leads:
            return TrainResult(run.run_id, "", model, dataset, history, scores, labels, logits)
        with kept_on_disk(keeper, training, best, model):
            run.wait_for_store()
            # The model first: hours of work are in it, and a page is drawn again in seconds.
            model_id = run.log_model(model, scores, config.serialization)
            log_results(run, bench, model, config, history, labels, logits, scores)
            run.flush()
        say(*summary(scores, len(labels), run, time.monotonic() - started))
    with cleanup(run.run_id, keeper.checkpoints, group):
        if config.register:
            register(run.run_id, promote=config.promote)
    return TrainResult(run.run_id, model_id, model, dataset, history, scores, labels, logits)


def run_name(config: TrainConfig) -> str:
    """The run's name in MLflow: the one asked for, else the model's."""
    return config.model if config.run_name == AUTO else config.run_name


@contextmanager
def begin_run(
    name: str, config: TrainConfig, parent: RunLog | None, past: ResumeState | None, group: Group
) -> Iterator[RunLog]:
    """The run of a training; one that is stopped says how to go on with it."""
    if not group.leads:
        with follow_run(group.from_leader("")) as run:
            yield run
        return
    if past is None and parent is None:
        close_stale_runs(config.experiment)
    owner = {PROCESS_TAG: process_name()}
    resume = past.run_id if past else None
    run_id = resume
    try:
        with open_run(
            name,
            config.experiment,
            parent=parent,
            resume=resume,
            tags=owner,
            shared=group.size > 1,
        ) as run:
            run_id = group.from_leader(run.run_id)
            make_known(run_id, group)
            yield run
    except BaseException as error:
        # What has diverged would diverge again.
        again = not isinstance(error, TrainingError)
        if again and run_id and checkpoints_of(run_id).is_there():
            say(how_to_go_on(run_id))
        raise


def run_epochs(
    run: RunLog,
    training: Training,
    best: Best,
    keeper: CheckpointWriter,
    config: TrainConfig,
    group: Group = ALONE,
) -> list[Epoch]:
    """Train, log each epoch, keep the best and a checkpoint, and stop early where ``patience``
    says so."""
    epochs = keeper.history
    with (
        TrainingProgress(training.photos, config.epochs, len(epochs)) as progress,
        graceful_stop_with_checkpoint(training, best, keeper, group) as check_stop,
    ):
        loop = training.epochs(progress.batch, check_stop)
        while not _is_stale(epochs, config) and (epoch := next(loop, None)):
            improved = best.update(epoch)
            run.log_metrics(epoch.metrics(), step=epoch.number)
            progress.epoch(epoch.number, epoch.metrics(), improved)
            keeper.add(epoch, training, best)
            check_stop()
    return epochs


@contextmanager
def graceful_stop_with_checkpoint(
    training: Training, best: Best, keeper: CheckpointWriter, group: Group
) -> Iterator[Callable[[], None]]:
    """The first stop waits for the end of a batch and leaves a checkpoint of it."""
    with graceful_stop(group.any if group.size > 1 else None) as check_stop:

        def stop_with_checkpoint() -> None:
            try:
                check_stop()
            except Stopped:
                training.sync_totals()
                try:
                    keeper.save(training, best)
                except CheckpointError as error:
                    _log.warning("%s", error)
                raise

        yield stop_with_checkpoint


def _is_stale(epochs: list[Epoch], config: TrainConfig) -> bool:
    stale = bool(config.patience and epochs) and epochs_without_progress(epochs) >= config.patience
    if stale:
        say(f"stopped: no better val_accuracy for {config.patience} epochs")
    return stale


def summary(scores: Mapping[str, float], photos: int, run: RunLog, seconds: float) -> list[str]:
    """The result in words."""
    return [
        f"best epoch {scores['best_epoch']:.0f}: val accuracy {scores['best_val_accuracy']:.1%}",
        f"test accuracy {scores['test_accuracy']:.1%} of {photos} photos, 95 % interval "
        f"{scores['test_accuracy_low']:.1%} to {scores['test_accuracy_high']:.1%}",
        f"run {run.run_id}, {duration(seconds)} in all. See it with: mlflow ui",
    ]


def _tell_compiling(run: RunLog, compiled: bool) -> None:
    run.log_tags({"compiled": str(compiled).lower()})
    if compiled:
        say("the training step is compiled first, which takes a minute or two")


def _trainable(model: ProductClassifier, config: TrainConfig) -> str:
    total = sum(p.numel() for p in model.parameters())
    return f"{total:,} parameters, freeze={config.freeze}"
