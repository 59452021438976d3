"""Names of processes for all time: a run says whose it is, and it is known who still lives."""

from __future__ import annotations

import platform

import psutil

# How far two readings of one process's start may differ, in seconds.
_CLOCK_SECONDS = 5.0


def process_name(pid: int | None = None) -> str:
    """Names a process on any machine for all time: host, process id, start time."""
    process = psutil.Process(pid)
    return f"{platform.node()}:{process.pid}:{process.create_time():.2f}"


def is_elsewhere(name: str) -> bool:
    """Whether a process is, or was, on another machine."""
    return name.rsplit(":", 2)[0] != platform.node()


def is_gone(name: str) -> bool:
    """Whether a process of this machine is no more; of other machines' processes nobody knows."""
    host, pid, started = name.rsplit(":", 2)
    if host != platform.node():
        return False
    try:
        process = psutil.Process(int(pid))
        # The system's notion of when it was started moves a little with its clock.
        another = abs(process.create_time() - float(started)) > _CLOCK_SECONDS
        return another or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
