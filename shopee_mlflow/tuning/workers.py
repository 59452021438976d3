"""Workers: run trials in this process, or in several processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import torch

from ..console import fail, guard_output, say, show_log_messages
from ..data.dataset import load_dataset
from ..errors import ShopeeError, StudyError
from ..modeling.device import choose_machine
from ..tracking.mlflow_run_log import MlflowRunLog
from ..tracking.processes import process_name
from ..tracking.run_log import RunLog
from ..tracking.signals import stop_on_signals
from ..tracking.store import quieten
from ..training.context import TrainingContext
from .space import SearchPlan
from .study import Search
from .trials import run_trial

_STOP_SECONDS = 60.0
_INTERRUPTED = 130
# Most deaths in a row without a finished trial.
_MAX_DEATHS = 5


@dataclass(frozen=True)
class Assignment:
    """The settings of a worker process.

    :ivar folder: the folder of the tracking store, where the study may be.
    :ivar run: id and experiment of the run of the whole study.
    :ivar deadline: in ``time.time()``, or None.
    :ivar parent_pid: the worker stops when this process is gone.
    """

    plan: SearchPlan
    folder: Path
    run: tuple[str, str]
    deadline: float | None
    threads: int
    parent_pid: int


def work(search: Search, context: TrainingContext, parent: RunLog, deadline: float | None) -> None:
    """Run trials in this process until the study has its total, or time is up."""
    for trial, values in search.trials(deadline):
        run_trial(search, context, parent, trial, values)


def work_in_processes(
    search: Search, folder: Path, parent: RunLog, deadline: float | None, jobs: int
) -> None:
    """Run trials in several processes, which share the machine's threads.

    A process that dies by itself, for example out of memory, is replaced, and its trial is retried
    once.

    :raises StudyError: if workers cannot work.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    run = (parent.run_id, parent.experiment_id)
    assignment = Assignment(search.plan, folder, run, deadline, threads, os.getpid())
    spawn = multiprocessing.get_context("spawn")
    names: dict[BaseProcess, str] = {}
    deaths, finished = 0, search.finished()
    say(f"{jobs} processes with {threads} thread{'s' * (threads > 1)} each")
    try:
        for _ in range(jobs):
            _start(spawn.Process(target=_work_alone, args=(assignment,)), names)
        while names:
            wait([process.sentinel for process in names])
            for process in [p for p in names if not p.is_alive()]:
                name = names.pop(process)
                if process.exitcode != 0:
                    before, finished = finished, search.finished()
                    deaths = deaths + 1 if finished == before else 1
                    search.queue.crashed(name)
                    _check_death(name, process.exitcode, deaths)
                    _start(spawn.Process(target=_work_alone, args=(assignment,)), names)
    finally:
        _stop(list(names))


def _start(process: BaseProcess, names: dict[BaseProcess, str]) -> None:
    process.start()
    names[process] = process_name(process.pid)


def _check_death(name: str, code: int | None, deaths: int) -> None:
    """:raises StudyError: if a replacement would end the same way."""
    how = f"exit code {code}"
    with suppress(ValueError):  # not a signal, or one without a name
        how = f"signal {signal.Signals(-(code or 0)).name}"
    if code in (ShopeeError.exit_code, _INTERRUPTED) or deaths > _MAX_DEATHS:
        raise StudyError(
            f"A worker ended with {how}; see its message above. The trials are safe; repeat the "
            "command to resume."
        )
    say(f"worker {name} ended with {how}; starting a replacement")


def _stop(processes: list[BaseProcess]) -> None:
    """Terminate the processes and wait until they have returned their trials to the queue."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _STOP_SECONDS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work_alone(assignment: Assignment) -> None:
    """The main function of a worker process."""
    code = _exit_code(assignment)
    sys.stdout.flush()
    sys.stderr.flush()
    # Skip the interpreter's cleanup, which takes seconds with torch loaded.
    os._exit(code)


def _exit_code(assignment: Assignment) -> int:
    """Run trials until none is left; return the exit code."""
    guard_output()
    show_log_messages()
    quieten()
    torch.set_num_threads(assignment.threads)
    plan = assignment.plan
    try:
        with stop_on_signals(parent=psutil.Process(assignment.parent_pid)):
            search = Search(plan, assignment.folder)
            machine = choose_machine(plan.config.device, plan.config.precision)
            data = load_dataset(plan.config)
            context = TrainingContext(data, machine, augment_all=plan.config.folds > 0)
            work(search, context, MlflowRunLog(*assignment.run), assignment.deadline)
    except ShopeeError as error:
        fail(str(error))
        return error.exit_code
    except (KeyboardInterrupt, psutil.NoSuchProcess):  # NoSuchProcess: the parent has ended already
        return _INTERRUPTED
    return 0
