"""The contents of a checkpoint, and whether they match the training that is resumed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import TrainConfig, as_params
from ..data.dataset import Dataset
from ..data_config import NONE
from ..errors import CheckpointError
from ..modeling.checkpoint import Checkpoints
from ..modeling.epochs import BestEpoch, Epoch
from ..modeling.models import ProductClassifier
from ..modeling.state_files import state_digest
from ..tracking.store import local_folder
from .trainer import Trainer

CHECKPOINTS = "checkpoints"
_SAVE_SECONDS = 1.0


@dataclass(frozen=True)
class ResumeState:
    """An interrupted training.

    :ivar config: its options; those that may change on resume have their current values.
    :ivar history: its completed epochs.
    :ivar last: contents of the last checkpoint.
    :ivar best: contents of the best epoch's checkpoint; None if there is none.
    """

    run_id: str
    config: TrainConfig
    history: list[Epoch]
    last: dict[str, Any] = field(repr=False)
    best: dict[str, Any] | None = field(repr=False)


def checkpoints_of(run_id: str) -> Checkpoints:
    """The checkpoints of a run, in its own folder inside :func:`checkpoint_folder`."""
    return Checkpoints(checkpoint_folder() / run_id)


def checkpoint_folder() -> Path:
    """The folder that holds the checkpoints of all runs."""
    return local_folder() / CHECKPOINTS


class CheckpointWriter:
    """Writes the checkpoints of one run, at most once a second."""

    def __init__(self, run_id: str, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """
        :param facts: the result of :func:`training_facts`.
        """
        self.run_id, self.checkpoints = run_id, checkpoints_of(run_id)
        self._config, self._facts = config, facts
        self._saved_best = -1
        self._saved = float("-inf")

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than a second."""
        return time.monotonic() - self._saved > _SAVE_SECONDS

    def save(self, trainer: Trainer, best: BestEpoch, history: Sequence[Epoch]) -> None:
        """Write a checkpoint. The best epoch's weights are written only if they have changed.

        :raises CheckpointError: when it cannot be written.
        """
        number = best.epoch.number if best.epoch else 0
        last = {
            "params": as_params(dataclasses.replace(self._config, resume=NONE, config=NONE)),
            "facts": dict(self._facts),
            "history": [epoch.state() for epoch in history],
            "training": trainer.state(),
        }
        changed = number and number != self._saved_best
        self.checkpoints.save(last, best.state() if changed else None)
        self._saved_best, self._saved = number, time.monotonic()


def training_facts(dataset: Dataset, model: ProductClassifier) -> dict[str, Any]:
    """Facts that must not change when a training is resumed: data, label groups, first weights.

    :param model: the model before the first training step.
    """
    return {
        "data_digest": dataset.digest,
        "classes": list(dataset.classes),
        "photos": len(dataset.frame),
        "start": state_digest(model.state_dict()),
    }


def check_facts(resume: ResumeState, facts: Mapping[str, Any]) -> None:
    """Check that data, label groups and initial weights are those of the checkpoint.

    :raises CheckpointError: naming what has changed.
    """
    saved = resume.last["facts"]
    if set(saved["classes"]) != set(facts["classes"]):
        removed = sorted(set(saved["classes"]) - set(facts["classes"]))
        added = sorted(set(facts["classes"]) - set(saved["classes"]))
        changes = [f"removed: {', '.join(removed[:5])}"] if removed else []
        changes += [f"added: {', '.join(added[:5])}"] if added else []
        raise CheckpointError(
            "The label groups have changed since the training began "
            f"({len(saved['classes']):,} then, {len(facts['classes']):,} now; "
            f"{'; '.join(changes)})."
        )
    if saved["data_digest"] != facts["data_digest"]:
        raise CheckpointError(
            f"The data have changed since the training began: {saved['photos']:,} photos with "
            f"digest {saved['data_digest']} then, {facts['photos']:,} with {facts['data_digest']} "
            "now. The run's data/manifest.csv lists the original photos."
        )
    if saved["start"] != facts["start"]:
        raise CheckpointError(
            "The initial weights of the network have changed since the training began. Use the "
            "same weights file."
        )
