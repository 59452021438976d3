"""Queues of trials, shared by test modules: each is a worker, run step by step."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable

import optuna
from optuna.storages import BaseStorage
from optuna.trial import Trial

from shopee_mlflow.tracking.processes import process_name
from shopee_mlflow.tuning.queue import TrialQueue

DEAD = f"{platform.node()}:{os.getpid()}:1.00"  # this process id, in another life
ELSEWHERE = "another-machine:12:1700000000.00"

OpenQueue = Callable[..., TrialQueue]


def queue_of(storage: BaseStorage, total: int, owner: str | None = None) -> TrialQueue:
    study = optuna.create_study(
        storage=storage, study_name="study", direction="maximize", load_if_exists=True
    )
    return TrialQueue(study, storage, total, owner or process_name())


def start(queue: TrialQueue) -> Trial:
    """The next trial, with a value chosen, as :class:`Search` does it."""
    trial = next(iter(queue.trials()))
    trial.suggest_float("lr", 0.1, 0.9)
    return trial


def run_all(queue: TrialQueue) -> list[Trial]:
    done = []
    for trial in queue.trials():
        trial.suggest_float("lr", 0.1, 0.9)
        queue.end(trial, 0.5)
        done.append(trial)
    return done
