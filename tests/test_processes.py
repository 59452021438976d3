"""Process identities: whether a process is alive, despite clock changes and reused ids."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from small_queue import DEAD, ELSEWHERE

from shopee_mlflow.tracking import processes
from shopee_mlflow.tracking.processes import is_elsewhere, is_gone, process_name

linux = pytest.mark.skipif(not psutil.LINUX, reason="other systems tell the wall clock only")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as started:
        yield started


def name_of_earlier_versions(pid: int, later: float = 0.0) -> str:
    return f"{platform.node()}:{pid}:{psutil.Process(pid).create_time() + later:.2f}"


def test_a_process_is_known_by_host_id_and_start(another: str) -> None:
    assert not is_gone(process_name())
    assert not is_gone(another)
    assert is_gone(DEAD)
    free = next(pid for pid in range(40_000, 10**6) if not psutil.pid_exists(pid))
    assert is_gone(process_name().replace(f":{os.getpid()}:", f":{free}:"))
    assert is_gone(f"{platform.node()}:{free}:{psutil.Process().create_time():.2f}")


def test_a_process_that_has_ended_is_gone(child: subprocess.Popen[bytes]) -> None:
    names = [process_name(child.pid), name_of_earlier_versions(child.pid)]
    assert not any(is_gone(name) for name in names)
    child.communicate(b"\n")
    assert all(is_gone(name) for name in names)


def test_of_processes_of_other_machines_nobody_knows() -> None:
    with_colons = process_name().replace(platform.node(), "host:with:colons")
    for name in (ELSEWHERE, DEAD.replace(platform.node(), "host:with:colons"), with_colons):
        assert is_elsewhere(name)
        assert not is_gone(name)
    assert not is_elsewhere(process_name())


@pytest.mark.fault
@linux
@pytest.mark.parametrize("step", [-3600.0, 60.0, 86_400.0])
def test_a_step_of_the_clock_makes_nobody_gone(
    step: float, monkeypatch: pytest.MonkeyPatch, another: str
) -> None:
    mine, told = process_name(), psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: told(process) + step)
    assert (process_name(), process_name(os.getppid())) == (mine, another)
    assert not is_gone(mine)
    assert not is_gone(another)


@linux
def test_another_boot_or_another_start_is_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, pid, start = process_name().rsplit(":", 2)
    boot, ticks = start.rsplit(".", 1)
    assert is_gone(f"{host}:{pid}:{boot}.{int(ticks) + 1}")
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("5c0d2b1a-9f70-4a2e-8a55-000000000000\n")
    monkeypatch.setattr(processes, "_BOOT_ID", boot_id)
    assert is_gone(f"{host}:{pid}:{start}")
    assert not is_gone(process_name())


def test_where_only_the_clock_tells_a_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "_BOOT_ID", tmp_path / "none")
    assert process_name() == name_of_earlier_versions(os.getpid())
    assert not is_gone(process_name())


def test_names_that_earlier_versions_wrote_are_understood() -> None:
    assert not is_gone(name_of_earlier_versions(os.getpid()))
    # The system's notion of a start moves a little with its clock.
    assert not is_gone(name_of_earlier_versions(os.getpid(), later=2.0))
    assert is_gone(name_of_earlier_versions(os.getpid(), later=60.0))
