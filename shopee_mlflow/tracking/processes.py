"""Unique names of processes, which tell later whether the process of a run is still running."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

# Tolerance in seconds for start times that were read from the wall clock.
_CLOCK_SECONDS = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_name(pid: int | None = None) -> str:
    """A name of a process that is never reused: host, process id and start time.

    :raises psutil.NoSuchProcess: when no process has this id.
    """
    process = psutil.Process(pid)
    start = _start_since_boot(process.pid) or f"{process.create_time():.2f}"
    return f"{platform.node()}:{process.pid}:{start}"


def is_elsewhere(name: str) -> bool:
    """Whether a process runs, or ran, on another machine."""
    return name.rsplit(":", 2)[0] != platform.node()


def is_gone(name: str) -> bool:
    """Whether a process of this machine has ended; False for processes of other machines."""
    host, pid, start = name.rsplit(":", 2)
    if host != platform.node():
        return False
    try:
        process = psutil.Process(int(pid))
        return not _has_start(process, start) or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _has_start(process: psutil.Process, start: str) -> bool:
    """Whether a process was started at this time; a later process may have the same id."""
    try:
        seconds = float(start)
    except ValueError:
        return start == _start_since_boot(process.pid)
    # Earlier versions wrote the time of the wall clock, which changes when the clock is set.
    return abs(process.create_time() - seconds) <= _CLOCK_SECONDS


def _start_since_boot(pid: int) -> str | None:
    """The start of a process as ``BOOT.TICKS``, which does not depend on the wall clock.

    None on systems other than Linux, or if the process is gone.
    """
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()
        # The program's name, in parentheses, may hold any character. Field 22 is starttime, see
        # proc(5).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{boot}.{int(fields[19])}"
    except (OSError, ValueError, IndexError):
        return None
