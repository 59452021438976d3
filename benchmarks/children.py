"""Run one measurement in a separate process with new folders, and record its memory."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .job import Job

ROOT = Path(__file__).parents[1]
_POLL_SECONDS = 0.2
_GPU_POLL_SECONDS = 1.0
# Shared pages are counted only when the sum has grown by this many bytes, since it is slow.
_GROWN = 1.02
_MIB = 2**20
_OURS = ("ours_frozen", "ours_full")


@dataclass
class Watched:
    """How a process and its own children ended.

    :ivar rss: peak resident memory in bytes, summed over the processes.
    :ivar pss: the same with shared pages counted once; 0 if it is unknown.
    :ivar gpu: peak GPU memory in bytes above that in use before; 0 without a GPU.
    """

    began: float
    seconds: float = 0.0
    code: int = 0
    rss: int = 0
    pss: int = 0
    gpu: int = 0

    def facts(self) -> dict[str, float | None]:
        """Peaks in MiB."""
        return {
            "peak_mib": self.rss / _MIB,
            "peak_shared_once_mib": self.pss / _MIB if self.pss else None,
            "peak_gpu_mib": self.gpu / _MIB if self.gpu else None,
        }


def measure(job: Job, keep: bool = False) -> dict[str, Any]:
    """The result of a job; if it fails, the reason under ``failed``.

    :param keep: keep the job's folder with its log.
    """
    scratch = Path(job.scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        return _measure_ours(job) if job.name in _OURS else _measure_child(job)
    finally:
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)


def _measure_child(job: Job) -> dict[str, Any]:
    watched, result = _run_child(job)
    if "failed" in result:
        return result
    if result.get("whole_job") is None:
        result["whole_job"] = watched.seconds
    return {**result, **watched.facts()}


def _measure_ours(job: Job) -> dict[str, Any]:
    """Time the real command; a second process reads its results."""
    from .systems import ours

    log = Path(job.scratch) / "command.log"
    watched = watch_process(ours.command(job), _environment(job), Path(job.scratch), log)
    if watched.code:
        return {"failed": _last_words(log)}
    _, result = _run_child(dataclasses.replace(job, started=watched.began))
    if "failed" in result:
        return result
    result["whole_job"] = watched.seconds
    if result["epochs_run"] < job.epochs:
        result["whole_job"] += (job.epochs - result["epochs_run"]) * result["later_epoch"]
        result["scaled"] += ["whole_job"]
    return {**result, **watched.facts()}


def _run_child(job: Job) -> tuple[Watched, dict[str, Any]]:
    scratch = Path(job.scratch)
    job.write(scratch / "job.json")
    log, answer = scratch / "child.log", scratch / "result.json"
    command = [sys.executable, "-m", "benchmarks.child", str(scratch / "job.json"), str(answer)]
    watched = watch_process(command, _environment(job), scratch, log)
    if not answer.is_file():
        return watched, {"failed": _last_words(log) or f"ended with {watched.code}"}
    return watched, json.loads(answer.read_text(encoding="utf-8"))


def _environment(job: Job) -> dict[str, str]:
    """An environment without caches, stores or kernels of earlier measurements."""
    scratch = Path(job.scratch)
    # The measurement must not join an active run of the caller.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db",
        "SHOPEE_MLFLOW_CACHE": str(scratch / "cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "kernels"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "FASTAI_HOME": str(scratch / "fastai"),
    }


def watch_process(
    command: list[str], environment: Mapping[str, str], place: Path, log: Path
) -> Watched:
    """Start a command, wait for its end, and record its peak memory."""
    before, stop = _gpu_bytes(), threading.Event()
    with log.open("wb") as stream:
        watched = Watched(began=time.time())
        began = time.perf_counter()
        child = subprocess.Popen(
            command, env=dict(environment), cwd=place, stdout=stream, stderr=subprocess.STDOUT
        )
        # In a thread, since a query may take longer than the process runs.
        looking = threading.Thread(target=_look, args=(child.pid, watched, before, stop))
        looking.start()
        try:
            watched.code = child.wait()
            watched.seconds = time.perf_counter() - began
        finally:
            stop.set()
            _end(child)
            looking.join()
    return watched


def _look(pid: int, watched: Watched, before: int | None, stop: threading.Event) -> None:
    """Record the memory of a process and its children until ``stop`` is set."""
    asked = 0.0
    while not stop.wait(_POLL_SECONDS):
        _note_memory(pid, watched)
        if before is not None and time.perf_counter() - asked > _GPU_POLL_SECONDS:
            watched.gpu = max(watched.gpu, (_gpu_bytes() or 0) - before)
            asked = time.perf_counter()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the process and its children if recording was interrupted."""
    if child.poll() is not None:
        return
    for process in [*psutil.Process(child.pid).children(recursive=True), child]:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    child.wait()


def _note_memory(pid: int, watched: Watched) -> None:
    try:
        parent = psutil.Process(pid)
        tree = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    rss = sum(_rss(process) for process in tree)
    if rss > watched.rss * _GROWN:
        # This query is slower, so it is made only at a new peak.
        watched.pss = max(watched.pss, sum(_pss(process.pid) for process in tree))
    watched.rss = max(watched.rss, rss)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _gpu_bytes() -> int | None:
    """Bytes in use on all GPUs together; None without nvidia-smi."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return sum(int(line) for line in done.stdout.split()) * _MIB


def _last_words(log: Path) -> str:
    """The last line that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
