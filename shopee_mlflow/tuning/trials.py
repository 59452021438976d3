"""One trial: a training whose epochs are reported to the study, in a run of its own."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import Trial, TrialState

from ..config import TrainConfig, as_params
from ..console import duration, say, watch
from ..errors import ShopeeError, StudyError, TrackingError
from ..modeling.epochs import Best, Epoch, epochs_without_progress
from ..options import as_text
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run
from ..tracking.store import SILENCE
from ..training.context import TrainingContext
from ..training.session import fit
from .queue import FAILURE, OWNER, REPEATS
from .storage import reachable
from .study import Search
from .trial_results import BASELINE, BEST_EPOCH, RUN_ID, SECONDS, VAL_LOSS

WEIGHTS_FILE = "trial/weights.pt"
HISTORY_FILE = "trial/history.csv"
STATE_TAG, TRIAL_TAG, REPEATS_TAG = "state", "trial", "repeats"
_OVERTAKEN = "taken for dead, and repeated by another process"


@dataclass(frozen=True)
class _Outcome:
    """The epochs of a training, and whether the pruner has ended it."""

    epochs: list[Epoch]
    best: Epoch
    pruned: bool
    kept: bool


def run_trial(
    search: Search, bench: TrainingContext, parent: RunLog, trial: Trial, values: dict[str, Any]
) -> None:
    """Train with these values and tell the study what came of it.

    What goes wrong in the training itself (a loss that is no number, a lack of memory, a crash)
    is recorded and the study goes on. What ends the whole search (a signal, a store that is gone)
    gives the trial back to be repeated. Where that was done already, since this process was taken
    for dead, what it found does not count.
    """
    started = time.monotonic()
    number = trial.number
    repeated = trial.user_attrs.get(REPEATS)
    tags = {TRIAL_TAG: str(number), "process": trial.user_attrs[OWNER]}
    if repeated is not None:
        tags[REPEATS_TAG] = str(repeated)
    name = f"trial {number}" + (" (original)" if BASELINE in trial.user_attrs else "")
    with open_run(name, parent=parent, tags=tags, measure=False) as run:
        try:
            with reachable(search.study):
                trial.set_user_attr(RUN_ID, run.run_id)
            config = search.plan.trial_config(values)
            run.log_params(as_params(config))
            outcome = _train(search, bench, run, trial, config)
            _record(search, run, trial, values, outcome, time.monotonic() - started)
        except (StudyError, TrackingError, *SILENCE):
            _give_back(search, run, trial)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this trial
            _record_failure(search, run, trial, values, error)
        except BaseException:
            _give_back(search, run, trial)
            raise


def _train(
    search: Search, bench: TrainingContext, run: RunLog, trial: Trial, config: TrainConfig
) -> _Outcome:
    model = bench.new_model(config)
    part = bench.prepare(model, config)
    best = Best(part.split_model.trainable)
    epochs: list[Epoch] = []
    pruned = False
    progress = watch(f"trial {trial.number}, epochs")
    rest = part.split_model.trainable
    for epoch in fit(rest, part.train, part.val, config, bench.machine, None, part.step):
        epochs.append(epoch)
        best.update(epoch)
        run.log_metrics(epoch.metrics(), step=epoch.number)
        progress(epoch.number, config.epochs)
        pruned = search.should_stop(trial, epoch.number, epoch.val_accuracy)
        stale = bool(config.patience) and epochs_without_progress(epochs) >= config.patience
        if pruned or stale:
            break
    found = best.restore()
    kept = not pruned and (
        BASELINE in trial.user_attrs or search.is_best(found.val_accuracy, found.val_loss)
    )
    if kept:
        # Those of the best trial and of the original's settings are tested at the end.
        run.log_weights(model.state_dict(), WEIGHTS_FILE)
        history = pd.DataFrame([{"epoch": e.number, **e.metrics()} for e in epochs])
        run.log_table(history, HISTORY_FILE)
    return _Outcome(epochs, found, pruned, kept)


def _record(
    search: Search,
    run: RunLog,
    trial: Trial,
    values: dict[str, Any],
    outcome: _Outcome,
    seconds: float,
) -> None:
    best = outcome.best
    run.log_metrics({"best_val_accuracy": best.val_accuracy, "best_epoch": float(best.number)})
    about = {VAL_LOSS: best.val_loss, BEST_EPOCH: best.number, SECONDS: round(seconds, 2)}
    state = "pruned" if outcome.pruned else "complete"
    if outcome.pruned:
        told = search.queue.end(trial, TrialState.PRUNED, about=about)
    else:
        told = search.queue.complete(trial, best.val_accuracy, about)
    if not told:
        return _leave(run, trial, values)
    # Only now: what the run says of the trial, the study knows.
    run.log_tags({STATE_TAG: state, "weights_kept": as_text(outcome.kept)})
    after = f"after {len(outcome.epochs)} epochs" if outcome.pruned else f"in {duration(seconds)}"
    say(
        f"{_title(trial, values)}: val accuracy {best.val_accuracy:6.1%} (epoch {best.number}), "
        f"{state} {after}"
    )
    return None


def _record_failure(
    search: Search, run: RunLog, trial: Trial, values: dict[str, Any], error: Exception
) -> None:
    reason = str(error)
    if not isinstance(error, ShopeeError):
        reason = f"{type(error).__name__}: {reason}"
    if not search.queue.end(trial, TrialState.FAIL, about={FAILURE: reason}):
        # That is what went wrong: the study takes no more reports of it.
        return _leave(run, trial, values)
    run.log_tags({STATE_TAG: "failed"})
    run.end_as("FAILED", reason)
    say(f"{_title(trial, values)}: failed: {reason.splitlines()[0]}")
    return None


def _give_back(search: Search, run: RunLog, trial: Trial) -> None:
    state = "interrupted"
    # Where the storage is silent itself, the next session finds the trial lost.
    with suppress(StudyError):
        search.queue.interrupt(trial)
        state, _ = search.state_of(trial.number)
    with suppress(*SILENCE):
        run.log_tags({STATE_TAG: state})


def _leave(run: RunLog, trial: Trial, values: dict[str, Any]) -> None:
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
