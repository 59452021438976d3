"""Optuna's samplers and pruners for a search plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial

from ..data_config import NONE
from ..errors import ConfigError
from .space import Choice, Range, SearchPlan

# Settings of pruners that count steps, which are epochs without folds.
_IN_EPOCHS = ("n_warmup_steps", "interval_steps", "min_resource", "max_resource")


def suggest(trial: Trial, name: str, where: Range | Choice) -> Any:
    """The value of one option: fixed in the trial, or chosen by the sampler."""
    if not isinstance(where, Range):
        return trial.suggest_categorical(name, list(where.values))
    if where.whole:
        low, high = int(where.low), int(where.high)
        return trial.suggest_int(name, low, high, step=where.step or 1, log=where.log)
    return trial.suggest_float(name, where.low, where.high, log=where.log)


def make_sampler(plan: SearchPlan, seed: int) -> BaseSampler:
    """The sampler that the plan names.

    :raises ConfigError: if it does not accept its settings.
    """
    if "seed" in plan.sampler_settings:
        raise ConfigError(["sampler_settings: seed: use the option seed instead"])
    kinds = {"tpe": TPESampler, "random": RandomSampler}
    return _make(kinds[plan.config.sampler], "sampler_settings", plan.sampler_settings, seed=seed)


def make_pruner(plan: SearchPlan) -> BasePruner:
    """The pruner that the plan names.

    :raises ConfigError: if it does not accept its settings.
    """
    folds, settings = plan.config.folds, dict(plan.pruner_settings)
    if plan.config.pruner == NONE:
        return NopPruner()
    if folds:
        # A step is a fold. Numbers of epochs mean nothing then.
        settings = {k: v for k, v in settings.items() if k not in _IN_EPOCHS}
    if plan.config.pruner == "hyperband":
        epochs = plan.space.get("epochs", Choice((plan.config.epochs,)))
        given = {"max_resource": folds or max(epochs.ends), **settings}
        return _make(HyperbandPruner, "pruner_settings", given)
    return _make(MedianPruner, "pruner_settings", settings)


def _make(kind: Any, section: str, settings: Mapping[str, Any], **ours: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**{**settings, **ours})
    except (TypeError, ValueError) as error:
        raise ConfigError(
            [f"{section}: Optuna's {kind.__name__} does not accept {dict(settings)}: {error}"]
        ) from error
