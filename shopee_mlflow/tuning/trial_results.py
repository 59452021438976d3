"""Results of a study's trials, read from its storage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from .queue import FAILURE, PLANNED

# The trials with the original's settings, and the one with the package's defaults.
BASELINE, DEFAULT = "baseline", "default"
FIXED, RUN_ID = "fixed", "run_id"
EPOCHS = "epochs"
VAL_ACCURACY, VAL_LOSS, BEST_EPOCH, SECONDS = "val_accuracy", "val_loss", "best_epoch", "seconds"
NAMES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
# The status of a trial's run, by the trial's final state.
RUN_STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial, or its progress.

    :ivar state: complete, pruned, failed, running or waiting.
    :ivar values: of the searched options.
    :ivar score: the monitored metric of its best epoch; of a pruned trial, of its last.
    :ivar val_accuracy: of its best epoch, like ``val_loss``. With the option ``folds``, these are
        of the validation photos of all folds together, and ``epochs`` is the sum over them.
    :ivar baseline: whether it has the original's settings; ``default`` the package's defaults.
    """

    number: int
    state: str
    values: Mapping[str, Any]
    score: float | None
    val_accuracy: float | None
    val_loss: float | None
    best_epoch: int | None
    epochs: int
    seconds: float | None
    baseline: bool
    default: bool
    failure: str
    run_id: str | None

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key of complete trials: score, then negative loss."""
        return self.score or 0.0, -(self.val_loss or 0.0)


def read_result(trial: FrozenTrial, names: Iterable[str]) -> TrialResult:
    """A trial's result.

    :param names: of the searched options.
    """
    attrs = trial.user_attrs
    values = {**attrs.get(PLANNED, {}), **trial.params, **attrs.get(FIXED, {})}
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return TrialResult(
        number=trial.number,
        state=NAMES[trial.state],
        values={name: values.get(name) for name in names},
        score=trial.value if ended else None,
        val_accuracy=attrs.get(VAL_ACCURACY),
        val_loss=attrs.get(VAL_LOSS),
        best_epoch=attrs.get(BEST_EPOCH),
        epochs=attrs.get(EPOCHS, len(trial.intermediate_values)),
        seconds=attrs.get(SECONDS),
        baseline=BASELINE in attrs,
        default=DEFAULT in attrs,
        failure=attrs.get(FAILURE, ""),
        run_id=attrs.get(RUN_ID),
    )


def as_table(results: Sequence[TrialResult]) -> pd.DataFrame:
    """One row per trial, with the searched values after its state."""
    rows = []
    for result in results:
        row = dataclasses.asdict(result)
        values = row.pop("values")
        rows.append({"trial": row.pop("number"), "state": row.pop("state"), **values, **row})
    return pd.DataFrame(rows)
