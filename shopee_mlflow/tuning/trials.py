"""One trial: a training that reports its epochs to the study and logs to a run of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from optuna.trial import Trial, TrialState

from ..config import TrainConfig, as_params
from ..console import duration, say, watch
from ..errors import ShopeeError, StudyError, TrackingError
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
from ..tracking.store import REQUEST_ERRORS
from ..training.context import TrainingContext
from ..training.session import TrainingSession
from .queue import FAILURE, OWNER, REPEATS
from .storage import reachable
from .study import Search
from .trial_results import BASELINE, BEST_EPOCH, DEFAULT, RUN_ID, SECONDS, VAL_ACCURACY, VAL_LOSS

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
            with reachable(search.study):
                trial.set_user_attr(RUN_ID, run.run_id)
            config = search.plan.trial_config(values)
            run.log_params(as_params(config))
            session, kept = _train(search, context, run, trial, config)
            _record(search, run, trial, values, session, kept, time.monotonic() - started)
        except (StudyError, TrackingError, *REQUEST_ERRORS):
            _give_back(search, run, trial)
            raise
        except Exception as error:  # noqa: BLE001 - any error of the training fails the trial
            _record_failure(search, run, trial, values, error)
        except BaseException:
            _give_back(search, run, trial)
            raise


class _TrialProgress:
    """A bar that counts epochs."""

    def __init__(self, trial: Trial, epochs: int) -> None:
        self._show, self._epochs = watch(f"trial {trial.number}", "epochs"), epochs

    def batch(self, done: int, loss: float, accuracy: float) -> None:
        """Show nothing."""

    def epoch(self, number: int, metrics: Mapping[str, float], best: bool) -> None:  # noqa: ARG002
        """Count an epoch."""
        self._show(number, self._epochs)


def _train(
    search: Search, context: TrainingContext, run: RunLog, trial: Trial, config: TrainConfig
) -> tuple[TrainingSession, bool]:
    """Train with early stopping by the pruner; returns whether the best weights were logged."""

    def prune(epoch: Epoch) -> bool:
        return search.should_stop(trial, epoch.number, epoch[config.monitor])

    session = TrainingSession(config, context, run)
    session.fit(_TrialProgress(trial, config.epochs), prune)
    best = session.best.load_weights()
    kept = not session.pruned and (
        any(mark in trial.user_attrs for mark in _KINDS)
        or search.is_best(best[config.monitor], best["val_loss"])
    )
    if kept:
        # The best trial and those with the original's and default settings are tested at the end.
        run.log_weights(session.model.state_dict(), TRIAL_WEIGHTS_FILE)
        run.log_table(session.history_table(), TRIAL_HISTORY_FILE)
    return session, kept


def _record(
    search: Search,
    run: RunLog,
    trial: Trial,
    values: dict[str, Any],
    session: TrainingSession,
    kept: bool,
    seconds: float,
) -> None:
    best, monitor = session.best.found, session.config.monitor
    run.log_metrics(session.best.scores())
    attrs = {
        VAL_ACCURACY: best["val_accuracy"],
        VAL_LOSS: best["val_loss"],
        BEST_EPOCH: best.number,
        SECONDS: round(seconds, 2),
    }
    state = "pruned" if session.pruned else "complete"
    how = (None, attrs, TrialState.PRUNED) if session.pruned else (best[monitor], attrs)
    if not search.queue.end(trial, *how):
        return _ignore(run, trial, values)
    # Logged after the study has the result, so that the run is never ahead of the study.
    run.log_tags({STATE_TAG: state, "weights_kept": as_text(kept)})
    after = f"after {len(session.history)} epochs" if session.pruned else f"in {duration(seconds)}"
    say(
        f"{_title(trial, values)}: {monitor} {best[monitor]:6.1%} (epoch {best.number}), "
        f"{state} {after}"
    )
    return None


def _record_failure(
    search: Search, run: RunLog, trial: Trial, values: dict[str, Any], error: Exception
) -> None:
    reason = str(error)
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
    state = "interrupted"
    # If the storage is unreachable, the next call finds the trial lost.
    with suppress(StudyError):
        search.queue.interrupt(trial)
        state, _ = search.state_of(trial.number)
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
