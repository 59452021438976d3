"""Going on with an interrupted training: what it was, and whether this is still the same."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ..config import NONE, TrainConfig, as_params, resolve
from ..console import say
from ..data.dataset import Dataset
from ..errors import CheckpointError, ConfigError, TrackingError
from ..modeling.checkpoint import BEST, LAST, Checkpoints
from ..modeling.epochs import Best, Epoch
from ..modeling.metrics import FINAL_METRICS
from ..modeling.models import ProductClassifier
from ..tracking.flavor import save_in_folder
from ..tracking.processes import PROCESS_TAG, is_gone, process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import Run, close_run, experiment_in_use, find_run, running_runs
from ..tracking.store import STORE_ERRORS, local_folder, quieten, store_error
from .session import Training

LATEST = "last"
_FOLDER = "checkpoints"
_RUN_ID = re.compile(r"[0-9a-f]{32}")
# Options that may be others than when the training began. They say where things are, which are
# compared by their content, or how to compute, which changes the last digits at most.
FREE = {
    *("resume", "config", "data", "images", "weights", "workers", "cache", "device", "compile"),
    *("register", "promote", "run_name", "nproc"),
}
_SAVE_SECONDS = 1.0
# Tags of searches and their trials, whose stale runs tune ends when it goes on.
_SEARCHES = {"study", "trial"}


@dataclass(frozen=True)
class ResumeState:
    """An interrupted training.

    :ivar config: its options, with those that may change as they are given now.
    :ivar history: its epochs.
    """

    run_id: str
    config: TrainConfig
    history: list[Epoch]
    last: dict[str, Any] = field(repr=False)
    best: dict[str, Any] | None = field(repr=False)


def checkpoints_of(run_id: str) -> Checkpoints:
    """A run's checkpoints: beside a tracking store on this machine, else in the current folder."""
    return Checkpoints(local_folder() / _FOLDER / run_id)


def find_resume_state(config: TrainConfig, cli_options: Mapping[str, str]) -> ResumeState:
    """The training that ``config.resume`` names, with the options that it began with.

    :raises ConfigError: when there is none, it is under way, or an option given is another.
    :raises CheckpointError: when its checkpoint cannot be read.
    """
    quieten()
    run_id = _latest() if config.resume == LATEST else config.resume
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigError([f"resume={run_id}: must be a run's id (32 hexadecimal digits) or last"])
    checkpoints = checkpoints_of(run_id)
    run = find_run(run_id)
    if run.info.status == "FINISHED" and not checkpoints.is_there():
        raise ConfigError([f"resume={run_id}: this run has finished; there is nothing left to do"])
    owner = _living_owner(run)
    # Whether a process of another machine lives, nobody knows but who types its run's id.
    if owner and owner.startswith(f"{platform.node()}:"):
        raise ConfigError([f"resume={run_id}: it is under way, in process {owner}"])
    last, best = checkpoints.load()
    given, now = _given(config, cli_options), as_params(config)
    # How many go on is nothing that the training was begun with.
    free = {name: now[name] for name in given & FREE | {"nproc"}}
    then = resolve(TrainConfig, {**last["params"], **free, "resume": run_id, "config": NONE})
    _check_options(then, config, given - FREE)
    return ResumeState(
        run_id,
        then,
        [Epoch(**facts) for facts in last["history"]],
        last,
        best,
    )


def _latest() -> str:
    found = sorted(
        (local_folder() / _FOLDER).glob(f"*/{LAST}"), key=lambda file: file.stat().st_mtime
    )
    for file in reversed(found):
        run_id = file.parent.name
        if _RUN_ID.fullmatch(run_id) and _living_owner(find_run(run_id)) is None:
            return run_id
    where = Path(local_folder()).resolve()
    under_way = f"; {len(found)} under way" if found else ""
    raise ConfigError([f"resume=last: there is no interrupted training in {where}{under_way}"])


def _living_owner(run: Run) -> str | None:
    """Another process that may be training this run at this moment."""
    owner = run.data.tags.get(PROCESS_TAG, "")
    if run.info.status != "RUNNING" or not owner or owner == process_name() or is_gone(owner):
        return None
    return str(owner)


def _given(config: TrainConfig, cli_options: Mapping[str, str]) -> set[str]:
    """Options that somebody chose, as far as can be seen."""
    fields = dataclasses.fields(config)
    return {f.name for f in fields if getattr(config, f.name) != f.default} | set(cli_options)


def _check_options(then: TrainConfig, config: TrainConfig, given: set[str]) -> None:
    before, now = as_params(then), as_params(config)
    problems = [
        f"{name}={now[name]}: the training began with {name}={before[name]}; leave it out to go "
        "on, or leave resume out to begin another"
        for name in sorted(given)
        if now[name] != before[name]
    ]
    if problems:
        raise ConfigError(problems)


def facts_of(dataset: Dataset, model: ProductClassifier) -> dict[str, Any]:
    """What must be the same for a training to go on.

    :param model: as it was before the first step.
    """
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {
        "data_digest": dataset.digest,
        "classes": list(dataset.classes),
        "photos": len(dataset.frame),
        "start": digest.hexdigest(),
    }


def check_facts(past: ResumeState, facts: Mapping[str, Any]) -> None:
    """:raises CheckpointError: when data, label groups or weights are others, saying which."""
    then = past.last["facts"]
    if set(then["classes"]) != set(facts["classes"]):
        gone = sorted(set(then["classes"]) - set(facts["classes"]))
        new = sorted(set(facts["classes"]) - set(then["classes"]))
        changes = [f"gone: {', '.join(gone[:5])}"] if gone else []
        changes += [f"new: {', '.join(new[:5])}"] if new else []
        raise CheckpointError(
            "The label groups are others than when the training began "
            f"({len(then['classes']):,} then, {len(facts['classes']):,} now; {'; '.join(changes)})."
        )
    if then["data_digest"] != facts["data_digest"]:
        raise CheckpointError(
            f"The data are others than when the training began: {then['photos']:,} photos with the "
            f"digest {then['data_digest']} then, {facts['photos']:,} with {facts['data_digest']} "
            "now. The run's data/manifest.csv lists what it began with."
        )
    if then["start"] != facts["start"]:
        raise CheckpointError(
            "The weights that the network starts from are others than when the training began. "
            "Give the same weights file."
        )


@contextmanager
def kept_on_disk(
    keeper: CheckpointWriter, training: Training, best: Best, model: ProductClassifier
) -> Iterator[None]:
    """Around the end of a training, when the store gets the results: where it does not take them,
    they are on the disk, and the error says where.

    :raises TrackingError: in the place of the store's error.
    """
    keeper.save(training, best)
    try:
        yield
    except (*STORE_ERRORS, TrackingError, RuntimeError) as error:
        # A RuntimeError is how torch tells that the disk is full while it writes the model.
        reason = error if isinstance(error, TrackingError) else store_error(error)
        folder = keeper.leave(model)
        raise TrackingError(
            f"{reason}\nThe training has ended; nothing is lost. The model and its history are in "
            f"{folder.resolve()}. When the store answers again, {how_to_go_on(keeper.run_id)}"
        ) from error


class CheckpointWriter:
    """Keeps a training's checkpoints: after each epoch, once a second at most, and when asked."""

    def __init__(
        self, run_id: str, config: TrainConfig, facts: Mapping[str, Any], writes: bool = True
    ) -> None:
        """
        :param writes: whether this is the process of a group that writes.
        """
        self.run_id, self.checkpoints = run_id, checkpoints_of(run_id)
        self._config, self._facts, self._writes = config, facts, writes
        self.history: list[Epoch] = []
        self._saved_best = -1
        self._saved = float("-inf")
        if writes:
            self.checkpoints.prepare()

    def add(self, epoch: Epoch, training: Training, best: Best) -> None:
        """An epoch has ended."""
        self.history.append(epoch)
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save(training, best)

    def save(self, training: Training, best: Best) -> None:
        """Write a checkpoint now.

        :raises CheckpointError: when it cannot be written.
        """
        if not self._writes:
            return
        number = best.epoch.number if best.epoch else 0
        last = {
            "params": as_params(dataclasses.replace(self._config, resume=NONE, config=NONE)),
            "facts": dict(self._facts),
            "history": [vars(epoch) for epoch in self.history],
            "training": training.state(),
        }
        self.checkpoints.save(last, best.state() if number and number != self._saved_best else None)
        self._saved_best, self._saved = number, time.monotonic()

    def leave(self, model: ProductClassifier) -> Path:
        """Write the model as MLflow loads it from a folder, and the history as a table.

        :raises CheckpointError: when that fails.
        """
        folder = self.checkpoints.folder
        try:
            save_in_folder(model, folder / "model")
            table = pd.DataFrame([vars(epoch) for epoch in self.history])
            table.to_csv(folder / "history.csv", index=False)
        except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
            raise CheckpointError(
                f"The store does not answer, and the model could not be written to {folder} "
                f"({str(error).splitlines()[0]}); its weights are in {BEST} there."
            ) from error
        return folder


def close_stale_runs(experiment: str) -> None:
    """End the runs of trainings on this machine whose processes are no more, and offer to go on.

    :raises TrackingError: when the store does not answer.
    """
    quieten()
    try:
        for run in running_runs(experiment_in_use(experiment), "host", platform.node()):
            owner = run.data.tags.get(PROCESS_TAG, "")
            if not owner or _SEARCHES & run.data.tags.keys() or not is_gone(owner):
                continue
            run_id = run.info.run_id
            close_run(run_id, "KILLED", {"failure": f"its process {owner} is gone"})
            say(f"run {run_id} was left by a process that is gone; it is marked as KILLED now")
            if checkpoints_of(run_id).is_there():
                say(f"  {how_to_go_on(run_id)}")
    except STORE_ERRORS as error:
        raise store_error(error) from error


def how_to_go_on(run_id: str) -> str:
    """The command, for people."""
    return f"go on with: python -m shopee_mlflow train --resume {run_id}"


def go_on(
    past: ResumeState, run: RunLog, keeper: CheckpointWriter, training: Training, best: Best
) -> None:
    """Put a training into the state of its checkpoint, and log what the store lacks of its epochs.

    :raises CheckpointError: when the checkpoint does not fit.
    """
    try:
        training.resume(past.last["training"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"The checkpoint of run {past.run_id} does not fit: {error}"
        ) from error
    keeper.history += past.history
    if past.best:
        best.resume(past.best)
    run.know_metrics([*Epoch.metric_names(), *FINAL_METRICS])
    run.forget_models()
    for epoch in past.history:
        run.log_metrics(epoch.metrics(), step=epoch.number)
    say(f"going on after epoch {len(past.history)} of run {past.run_id}")
