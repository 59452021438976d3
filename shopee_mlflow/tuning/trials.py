"""One trial: a training that reports its epochs to the study and logs to a run of its own."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from optuna.trial import Trial, TrialState

from ..config import TrainConfig, as_params
from ..console import EpochBar, duration, say
from ..errors import ConfigError, ShopeeError, StudyError, TrackingError
from ..modeling.epochs import Epoch
from ..options import as_text
from ..tracking.names import (
    PROCESS_TAG,
    REPEATS_TAG,
    STATE_TAG,
    TRIAL,
    TRIAL_HISTORY_FILE,
    TRIAL_TAG,
    TRIAL_WEIGHTS_FILE,
)
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run
from ..tracking.signals import stop_behind
from ..tracking.store import REQUEST_ERRORS
from ..training.context import TrainingContext
from ..training.session import TrainingSession
from .queue import FAILURE, OWNER, REPEATS
from .storage import reachable
from .study import Search
from .trial_folds import TrialOutcome, train_folds
from .trial_results import (
    BASELINE,
    BEST_EPOCH,
    DEFAULT,
    EPOCHS,
    RUN_ID,
    RUN_STATUS,
    SECONDS,
    VAL_ACCURACY,
    VAL_LOSS,
)

_KINDS = {BASELINE: "original", DEFAULT: "defaults"}
_OVERTAKEN = "presumed dead and repeated by another process"


def run_trial(
    search: Search, context: TrainingContext, parent: RunLog, trial: Trial, values: dict[str, Any]
) -> None:
    """Train with these values and report the result to the study.

    Errors of the training itself (a NaN loss, out of memory) fail the trial, and the study
    continues. Errors that end the whole search (a signal, an unreachable store) interrupt the
    trial, which is then repeated. The result is ignored if the study has given the trial to another
    process in the meantime.
    """
    started = time.monotonic()
    attrs = trial.user_attrs
    tags = {TRIAL_TAG: str(trial.number), PROCESS_TAG: attrs[OWNER]}
    if REPEATS in attrs:
        tags[REPEATS_TAG] = str(attrs[REPEATS])
    kinds = [word for mark, word in _KINDS.items() if mark in attrs]
    name = f"trial {trial.number}" + (f" ({', '.join(kinds)})" if kinds else "")
    with open_run(name, parent=parent, kind=TRIAL, tags=tags) as run:
        try:
            # The outer block also takes a stop while a failure is recorded.
            try:
                with reachable(search.study):
                    trial.set_user_attr(RUN_ID, run.run_id)
                config = search.plan.trial_config(values)
                run.log_params(as_params(config))
                train = _train_folds if search.plan.config.folds else _train
                outcome = train(search, context.with_resize(config.resize), run, trial, config)
                _record(search, run, trial, values, outcome, time.monotonic() - started)
            except (StudyError, TrackingError, *REQUEST_ERRORS):
                raise
            except Exception as error:
                if stopped := stop_behind(error):
                    raise stopped from error
                _record_failure(search, run, trial, values, error)
        except BaseException:
            _give_back(search, run, trial)
            raise


def _train(
    search: Search, context: TrainingContext, run: RunLog, trial: Trial, config: TrainConfig
) -> TrialOutcome:
    """Train with early stopping by the pruner."""

    def prune(epoch: Epoch) -> bool:
        return search.should_stop(trial, epoch.number, epoch[config.monitor])

    session = TrainingSession(config, context, run)
    session.fit(EpochBar(f"trial {trial.number}", config.epochs), prune)
    best = session.best.load_weights()
    kept = not session.pruned and (
        any(mark in trial.user_attrs for mark in _KINDS)
        or search.is_best(best[config.monitor], best["val_loss"])
    )
    if kept:
        # The best trial and those with the original's and default settings are tested at the end.
        run.log_weights(session.model.state_dict(), TRIAL_WEIGHTS_FILE)
        run.log_table(session.history_table(), TRIAL_HISTORY_FILE)
    best, epochs = session.best.found, len(session.history)
    return TrialOutcome(dict(best.metrics), best.number, epochs, session.pruned, kept)


def _train_folds(
    search: Search, context: TrainingContext, run: RunLog, trial: Trial, config: TrainConfig
) -> TrialOutcome:
    """Train each fold, unless the pruner ends the trial after one of them."""
    return train_folds(
        context,
        run,
        config,
        search.plan.config,
        lambda fold: EpochBar(f"trial {trial.number}, fold {fold}", config.epochs),
        lambda folds, score: search.should_stop(trial, folds, score),
    )


def _record(
    search: Search,
    run: RunLog,
    trial: Trial,
    values: dict[str, Any],
    outcome: TrialOutcome,
    seconds: float,
) -> None:
    best, monitor, pruned = outcome.best, search.plan.config.monitor, outcome.pruned
    scores = {f"best_{name}": best[name] for name in dict.fromkeys(["val_accuracy", monitor])}
    run.log_metrics({**scores, "best_epoch": float(outcome.best_epoch)})
    attrs = {
        VAL_ACCURACY: best["val_accuracy"],
        VAL_LOSS: best["val_loss"],
        BEST_EPOCH: outcome.best_epoch,
        EPOCHS: outcome.epochs,
        SECONDS: round(seconds, 2),
    }
    state = "pruned" if pruned else "complete"
    how = (None, attrs, TrialState.PRUNED) if pruned else (best[monitor], attrs)
    if not search.queue.end(trial, *how):
        return _ignore(run, trial, values)
    # Logged after the study has the result, so that the run is never ahead of the study.
    run.log_tags({STATE_TAG: state, "weights_kept": as_text(outcome.kept)})
    after = f"after {outcome.epochs} epochs" if pruned else f"in {duration(seconds)}"
    say(
        f"{_title(trial, values)}: {monitor} {best[monitor]:6.1%} (epoch {outcome.best_epoch}), "
        f"{state} {after}"
    )
    return None


def _record_failure(
    search: Search, run: RunLog, trial: Trial, values: dict[str, Any], error: Exception
) -> None:
    # Messages show the first line alone.
    reason = "; ".join(error.problems) if isinstance(error, ConfigError) else str(error)
    if not isinstance(error, ShopeeError):
        reason = f"{type(error).__name__}: {reason}"
    if not search.queue.end(trial, None, {FAILURE: reason}, TrialState.FAIL):
        # The error may come from the study itself, which accepts no more reports.
        return _ignore(run, trial, values)
    run.log_tags({STATE_TAG: "failed"})
    run.end_as("FAILED", reason)
    say(f"{_title(trial, values)}: failed: {reason.splitlines()[0]}")
    return None


def _give_back(search: Search, run: RunLog, trial: Trial) -> None:
    """Interrupt the trial, unless the study already has its result."""
    state = "interrupted"
    # If the storage is unreachable, the next call finds the trial lost.
    with suppress(StudyError):
        search.queue.interrupt(trial)
        state, why = search.state_of(trial.number)
        if state in RUN_STATUS:
            run.end_as(RUN_STATUS[state], why)
    with suppress(*REQUEST_ERRORS):
        run.log_tags({STATE_TAG: state})


def _ignore(run: RunLog, trial: Trial, values: dict[str, Any]) -> None:
    run.log_tags({STATE_TAG: "interrupted"})
    run.end_as("KILLED", _OVERTAKEN)
    say(f"{_title(trial, values)}: {_OVERTAKEN}")


def _title(trial: Trial, values: dict[str, Any]) -> str:
    return f"trial {trial.number} ({in_words(values)})"


def in_words(values: Any) -> str:
    """Values of options in one line, numbers to three digits."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {as_text(value)}"
        for name, value in values.items()
    )
