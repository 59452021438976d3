"""Cross-validate: test every photo once, each by a model that has not seen its fold."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..config import CrossValidateConfig, TrainConfig, as_params
from ..console import duration, say, watch
from ..data.catalog_forms import check_paths
from ..data.dataset import Dataset, load_dataset
from ..modeling.device import choose_machine
from ..modeling.models import ProductClassifier
from ..tracking.environment import machine_tags
from ..tracking.experiment_choice import check_experiment
from ..tracking.finding import find_run
from ..tracking.links import report_link, view_lines
from ..tracking.names import DESCRIPTION_TAG, DIGEST_TAG, REPORT_FILE
from ..tracking.run_log import RunLog
from ..tracking.signals import stop_on_signals
from ..training.context import TrainingContext, check_model
from ..training.cv_run import cross_validation_run, result_key, resumed_options
from ..training.folds import fold_datasets, run_folds, train_on_all
from ..training.job import log_weights_run
from ..training.naming import changed_options
from ..training.pooled_folds import FOLD_METRIC, PooledFolds, log_pooled, pool, summary
from ..training.results import log_data
from ..training.weights_source import initial_weights
from .register import register


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    :ivar run_id: its MLflow run; each fold has a child run.
    :ivar scores: cv_accuracy and cv_macro_f1, each with _low and _high, cv_loss,
        cv_top5_accuracy, cv_calibration_error, cv_best_val_accuracy, cv_best_epoch.
    :ivar folds: one row per fold, with its accuracy and the id of its run.
    :ivar predictions: image, label_group, predicted, probability, fold of each photo.
    :ivar label_issues: the labels that these predictions dispute, the most doubtful ones first;
        with a filled in column ``action`` it is a table for the option ``corrections``.
    :ivar logits: (N, C) float32, in the order of ``predictions``; columns are ``classes``.
    :ivar model: the final model; None without ``refit``.
    """

    run_id: str
    scores: dict[str, float]
    folds: pd.DataFrame = field(repr=False)
    predictions: pd.DataFrame = field(repr=False)
    label_issues: pd.DataFrame = field(repr=False)
    logits: np.ndarray = field(repr=False)
    classes: list[str] = field(repr=False)
    model: ProductClassifier | None = field(repr=False)


def cross_validate(
    config: TrainConfig, cli_options: Mapping[str, str] | None = None
) -> CrossValidation:
    """Train and test a model for each fold; log the predictions of all photos together.

    Copies of a photo are in one fold. The best epoch of each fold is chosen on photos of the other
    folds. All trainings share decoded photos and activations of frozen layers. After an
    interruption the same call resumes: finished folds are kept, and the interrupted one starts
    again.

    :param config: the options; a plain :class:`TrainConfig` has the default number of folds.
    :param cli_options: options as they were typed on the command line; logged in that spelling.
    :raises ShopeeError: for errors that the user can correct.
    """
    started, typed = time.monotonic(), dict(cli_options or {})
    config = resumed_options(_with_folds(config), typed)
    machine = choose_machine(config.device, config.precision)
    # Before the check of the model, which may download weights.
    check_paths(config)
    check_experiment(config.experiment)
    say(f"checking {config.model} and its weights")
    weights = {config.weights: initial_weights(config.weights)}
    check_model(config, weights[config.weights])
    say(f"reading the catalogue ({config.data})")
    data = load_dataset(config, watch)
    datasets = fold_datasets(data, config)
    say(*data.lines())
    context = TrainingContext(data, machine, weights=weights, augment_all=True)
    key, model = result_key(config, context), None
    with stop_on_signals(), ExitStack() as held:
        with cross_validation_run(config, key, held) as (run, resumed):
            _begin(run, config, context, typed, resumed)
            pooled = pool(run_folds(config, context, datasets, run), data)
            log_pooled(run, pooled, data, config, context.label_names)
            if config.refit:
                epochs = round(pooled.scores["cv_best_epoch"])
                model = train_on_all(config, context, epochs, run, pooled.threshold)
                model.temperature = pooled.temperature.value
                run.log_model(model, pooled.scores, config.serialization)
            seconds = time.monotonic() - started
            run.log_tags({DESCRIPTION_TAG: _description(run, pooled, context, config, seconds)})
            say(*summary(pooled, data))
        if config.register:
            register(run.run_id, promote=config.promote)
        say(*view_lines(run, f"{duration(time.monotonic() - started)} in all", beside=True))
    return CrossValidation(
        run.run_id,
        pooled.scores,
        pooled.folds,
        pooled.predictions,
        pooled.issues,
        pooled.logits,
        data.classes,
        model,
    )


def _with_folds(config: TrainConfig) -> CrossValidateConfig:
    if isinstance(config, CrossValidateConfig):
        return config
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    return CrossValidateConfig(**{**values, "split_column": CrossValidateConfig.split_column})


def _begin(
    run: RunLog,
    config: CrossValidateConfig,
    context: TrainingContext,
    typed: Mapping[str, str],
    resumed: bool,
) -> None:
    """Log options and data, unless an earlier attempt has; make way for results logged again."""
    data: Dataset = context.dataset
    run.log_tags(machine_tags(str(context.machine)))
    run.log_params({**as_params(config), **typed})
    if resumed:
        run.skip_logged_metrics([FOLD_METRIC])
        run.delete_logged_models()
    if (start := context.initial_weights(config)) and start.run_id:
        log_weights_run(run, data.frame, start.run_id)
    if resumed and DIGEST_TAG in find_run(run.run_id).data.tags:
        return
    log_data(run, data, config)


def _description(
    run: RunLog,
    pooled: PooledFolds,
    context: TrainingContext,
    config: CrossValidateConfig,
    seconds: float,
) -> str:
    """The result in a few lines of Markdown, which MLflow's UI shows above the metrics."""
    data, other = context.dataset, changed_options(config)
    accuracy, *rest = [f"{line[0].upper()}{line[1:]}." for line in summary(pooled, data)]
    lines = [accuracy, " ".join(rest)]
    final = " The model is trained on all photos." if config.refit else ""
    lines.append(
        f"{config.model}, freeze={config.freeze}; {len(data):,} photos of {len(data.classes):,} "
        f"label groups; {duration(seconds)} on {context.machine}.{final}"
    )
    report = report_link(run.experiment_id, run.run_id, REPORT_FILE)
    lines.append(f"Not default: {', '.join(other) or 'nothing'}. Report: {report}")
    # Two spaces end a line in Markdown.
    return "  \n".join(lines)
