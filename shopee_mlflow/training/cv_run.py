"""The run of a cross-validation: found again after an interruption, opened, ended."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from ..config import CrossValidateConfig, as_params
from ..console import say
from ..data_config import NONE
from ..errors import ConfigError, TrainingError
from ..options import Role, with_role
from ..tracking.experiment_choice import experiment_in_use
from ..tracking.finding import experiment_id_of, find_run, runs_with_tag, unquoted
from ..tracking.names import CROSS_VALIDATE, CROSS_VALIDATION_TAG, KIND_TAG, PROCESS_TAG
from ..tracking.processes import process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import Run, open_run
from ..tracking.store import STORE_ERRORS, connect, quieten, store_error
from .checkpoints import checkpoints_of, training_facts
from .context import TrainingContext
from .naming import run_name
from .resume import (
    LATEST,
    RUN_ID,
    close_stale_runs,
    living_owner,
    only_resumed_here,
    original_options,
    resume_hint,
)

_FINISHED = "FINISHED"


def resumed_options(
    config: CrossValidateConfig, cli_options: Mapping[str, str]
) -> CrossValidateConfig:
    """The options of the cross-validation that ``resume`` names; its id replaces ``last``.

    :raises ConfigError: when there is none, it is running or finished, or an option differs.
    """
    if config.resume == NONE:
        return config
    quieten()
    run = _named(config)
    run_id, kind = run.info.run_id, run.data.tags.get(KIND_TAG)
    if kind != CROSS_VALIDATE:
        what = f"a run of {kind}" if kind else "a run of another program"
        raise ConfigError([f"resume={run_id}: is no cross-validation but {what}"])
    owner = living_owner(run)
    # A process on another machine cannot be checked. The user who gives the id has to.
    if owner and owner.startswith(f"{platform.node()}:"):
        raise ConfigError([f"resume={run_id}: it is running in process {owner}"])
    params = {name: unquoted(value) for name, value in run.data.params.items()}
    began = original_options(params, config, cli_options, run_id)
    has_model = bool(run.outputs and run.outputs.model_outputs)
    if run.info.status == _FINISHED and (has_model or not config.refit):
        raise ConfigError(
            [
                f"resume={run_id}: this cross-validation has finished; there is nothing to resume. "
                "refit=true would add a final model, once"
            ]
        )
    return began


def result_key(config: CrossValidateConfig, context: TrainingContext) -> str:
    """A digest of all that affects the result: options, photos, labels, folds, first weights."""
    options = as_params(config)
    names = sorted(with_role(type(config), Role.LEARNING, Role.DATA) | {"activation_dtype"})
    facts = training_facts(context.dataset, context.new_model(config))
    parts = [*(f"{name}={options[name]}" for name in names), facts["data_digest"], facts["start"]]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


@contextmanager
def cross_validation_run(
    config: CrossValidateConfig, key: str, held: ExitStack
) -> Iterator[tuple[RunLog, bool]]:
    """Open the run of a cross-validation: a new one, or one that was interrupted.

    :param key: as :func:`result_key` returns it; an interrupted run with this key is resumed.
    :param held: holds a lock; until it is closed, no other process can resume the run.
    :returns: the run, and whether it is resumed.
    :raises ConfigError: when ``resume`` names a run with other data or weights.
    """
    run_id = _interrupted(config, key)
    if run_id:
        checkpoints_of(run_id).prepare()
        held.enter_context(only_resumed_here(run_id, checkpoints_of(run_id).folder))
        say(f"resuming run {run_id}")
    else:
        close_stale_runs(config.experiment)
    tags = {PROCESS_TAG: process_name(), CROSS_VALIDATION_TAG: key}
    try:
        with open_run(
            f"{config.folds} folds: {run_name(config, but=('folds',))}",
            config.experiment,
            kind=CROSS_VALIDATE,
            resume=run_id,
            tags=tags,
        ) as run:
            resumed, run_id = bool(run_id), run.run_id
            yield run, resumed
    except BaseException as error:
        # No hint after divergence: a resumed training would diverge again.
        if run_id and not isinstance(error, TrainingError):
            say(resume_hint(run_id, CROSS_VALIDATE))
        raise
    checkpoints_of(run_id).delete()


def _interrupted(config: CrossValidateConfig, key: str) -> str | None:
    """The run to resume: the named one, else the latest unfinished one of this command."""
    if config.resume != NONE:
        if find_run(config.resume).data.tags.get(CROSS_VALIDATION_TAG) != key:
            raise ConfigError(
                [
                    f"resume={config.resume}: photos, labels or initial weights have changed since "
                    "it began. Start a new cross-validation without resume"
                ]
            )
        return config.resume
    for run in _unfinished(config.experiment, CROSS_VALIDATION_TAG, key):
        return str(run.info.run_id)
    return None


def _named(config: CrossValidateConfig) -> Run:
    if config.resume == LATEST:
        for run in _unfinished(config.experiment, KIND_TAG, CROSS_VALIDATE):
            return run
        raise ConfigError(
            [
                "resume=last: there is no interrupted cross-validation in the experiment "
                f"{config.experiment}"
            ]
        )
    if not RUN_ID.fullmatch(config.resume):
        raise ConfigError(
            [f"resume={config.resume}: must be a run id (32 hexadecimal digits) or last"]
        )
    return find_run(config.resume)


def _unfinished(experiment: str, tag: str, value: str) -> Iterator[Run]:
    """Runs with this tag that have not finished, and whose process is gone; the latest first."""
    try:
        connect()
        experiment_id = experiment_id_of(experiment_in_use(experiment))
        found = runs_with_tag(experiment_id, tag, value) if experiment_id else []
    except STORE_ERRORS as error:
        raise store_error(error) from error
    return (run for run in found if run.info.status != _FINISHED and living_owner(run) is None)
