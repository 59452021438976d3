"""What the trials of a study found, read from its storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from .queue import FAILURE, PLANNED

BASELINE, FIXED, RUN_ID = "baseline", "fixed", "run_id"
VAL_LOSS, BEST_EPOCH, SECONDS = "val_loss", "best_epoch", "seconds"
NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class TrialResult:
    """What a trial found, or how far it came.

    :ivar state: complete, pruned, failed, running or waiting.
    :ivar values: of the searched options.
    :ivar val_accuracy: of its best epoch; of a pruned trial, of its last.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    val_accuracy: float | None
    val_loss: float | None
    best_epoch: int | None
    epochs: int
    seconds: float | None
    failure: str
    baseline: bool
    run_id: str | None


def read_result(trial: FrozenTrial, names: Iterable[str]) -> TrialResult:
    """A trial's result.

    :param names: of the searched options.
    """
    about = trial.user_attrs
    values = {**about.get(PLANNED, {}), **trial.params, **about.get(FIXED, {})}
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return TrialResult(
        number=trial.number,
        state=NAMES[trial.state],
        values={name: values.get(name) for name in names},
        val_accuracy=trial.value if ended else None,
        val_loss=about.get(VAL_LOSS),
        best_epoch=about.get(BEST_EPOCH),
        epochs=len(trial.intermediate_values),
        seconds=about.get(SECONDS),
        failure=about.get(FAILURE, ""),
        baseline=BASELINE in about,
        run_id=about.get(RUN_ID),
    )


def as_table(results: Sequence[TrialResult]) -> pd.DataFrame:
    """A row a trial."""
    rows = [
        {
            "trial": t.number,
            "state": t.state,
            **t.values,
            "val_accuracy": t.val_accuracy,
            "val_loss": t.val_loss,
            "best_epoch": t.best_epoch,
            "epochs": t.epochs,
            "seconds": t.seconds,
            "baseline": t.baseline,
            "failure": t.failure,
            "run_id": t.run_id,
        }
        for t in results
    ]
    return pd.DataFrame(rows)
