"""Workers: who runs trials, in this process or in several on this machine."""

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

from ..console import fail, say, show_log_messages
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

_STOPPING_SECONDS = 60.0
_INTERRUPTED = 130
# One after the other, without a trial that ended meanwhile.
_MOST_DEATHS = 5


@dataclass(frozen=True)
class Assignment:
    """What a worker process is told.

    :ivar folder: of the tracking store, where the study may be kept.
    :ivar parent: id and experiment of the run of the whole study.
    :ivar deadline: in ``time.time()``, or None.
    """

    plan: SearchPlan
    folder: Path
    parent: tuple[str, str]
    deadline: float | None
    threads: int
    boss: int


def work(search: Search, context: TrainingContext, parent: RunLog, deadline: float | None) -> None:
    """Run trials in this process until the study has its total, or time is up."""
    for trial, values in search.trials(deadline):
        run_trial(search, context, parent, trial, values)


def work_in_processes(
    search: Search, folder: Path, parent: RunLog, deadline: float | None, jobs: int
) -> None:
    """The same in several processes, among which the machine's threads are shared out.

    One that ends by itself (killed by the system for its memory, say) is replaced; what it was at
    is tried once more.

    :raises StudyError: when workers cannot work.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    assignment = Assignment(
        search.plan, folder, (parent.run_id, parent.experiment_id), deadline, threads, os.getpid()
    )
    context = multiprocessing.get_context("spawn")
    names: dict[BaseProcess, str] = {}

    def start() -> None:
        process = context.Process(target=_work_alone, args=(assignment,))
        process.start()
        names[process] = process_name(process.pid)

    say(f"{jobs} processes with {threads} thread{'s' * (threads > 1)} each")
    deaths, finished = 0, search.finished()
    try:
        for _ in range(jobs):
            start()
        while names:
            wait([process.sentinel for process in names])
            for process in [p for p in names if not p.is_alive()]:
                process.join()
                if process.exitcode == 0:
                    del names[process]
                    continue
                before, finished = finished, search.finished()
                deaths = deaths + 1 if finished == before else 1
                _bury(process, search, names.pop(process), deaths)
                start()
    finally:
        _stop(names)


def _bury(process: BaseProcess, search: Search, name: str, deaths: int) -> None:
    """Give back the trial of a worker that ended by itself.

    :raises StudyError: where another in its place would end the same way.
    """
    search.queue.crashed(name)
    code = process.exitcode
    if code in (ShopeeError.exit_code, _INTERRUPTED) or deaths > _MOST_DEATHS:
        raise StudyError(
            f"A worker has ended with {_exit_in_words(code)}; its message stands above. The "
            "trials so far are safe, and the same command goes on with them."
        )
    say(f"worker {name} has ended with {_exit_in_words(code)}; another takes its place")


def _stop(processes: dict[BaseProcess, str]) -> None:
    """Ask all that are left to give their trials back; wait for that."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + _STOPPING_SECONDS
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
    # Python would tidy up all that torch has loaded, for seconds that the main process waits.
    os._exit(code)


def _exit_code(assignment: Assignment) -> int:
    """Work until there is nothing left to do, or a reason to end."""
    show_log_messages()
    quieten()
    torch.set_num_threads(assignment.threads)
    plan = assignment.plan
    try:
        with stop_on_signals(parent=psutil.Process(assignment.boss)):
            search = Search(plan, assignment.folder)
            machine = choose_machine(plan.config.device, plan.config.precision)
            context = TrainingContext(load_dataset(plan.config), machine)
            work(search, context, MlflowRunLog(*assignment.parent), assignment.deadline)
    except ShopeeError as error:
        fail(str(error))
        return error.exit_code
    except (KeyboardInterrupt, psutil.NoSuchProcess):  # or the one that started us is gone already
        return _INTERRUPTED
    return 0


def _exit_in_words(code: int | None) -> str:
    if code is not None and code < 0:
        with suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
