"""Names of processes for all time: a run says whose it is, and it is known who still lives."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

# How far two readings of one process's start may differ, in seconds, where only the wall clock
# tells it.
_CLOCK_SECONDS = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_name(pid: int | None = None) -> str:
    """Names a process on any machine for all time: host, process id, start.

    :raises psutil.NoSuchProcess: when there is none of this id.
    """
    process = psutil.Process(pid)
    start = _start_since_boot(process.pid) or f"{process.create_time():.2f}"
    return f"{platform.node()}:{process.pid}:{start}"


def is_elsewhere(name: str) -> bool:
    """Whether a process is, or was, on another machine."""
    return name.rsplit(":", 2)[0] != platform.node()


def is_gone(name: str) -> bool:
    """Whether a process of this machine is no more; of other machines' processes nobody knows."""
    host, pid, start = name.rsplit(":", 2)
    if host != platform.node():
        return False
    try:
        process = psutil.Process(int(pid))
        return not _has_start(process, start) or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _has_start(process: psutil.Process, start: str) -> bool:
    """Whether a process is the one that was started then, and no later one of the same id."""
    try:
        seconds = float(start)
    except ValueError:
        return start == _start_since_boot(process.pid)
    # Earlier versions wrote the wall clock's time, which moves when the clock is set.
    return abs(process.create_time() - seconds) <= _CLOCK_SECONDS


def _start_since_boot(pid: int) -> str | None:
    """A process's start as ``BOOT.TICKS``, which no setting of the clock changes.

    None where the system does not tell (other than Linux), or the process is gone.
    """
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        # The program's name, in parentheses, may hold anything. Field 22, starttime: see proc(5).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{boot}.{int(fields[19])}"
    except (OSError, ValueError, IndexError):
        return None
