"""Devices: detection, precision, and freed memory."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from warm_process import WarmProcess

from shopee_mlflow.modeling import device as machine
from shopee_mlflow.modeling.device import choose_machine

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")


@pytest.mark.parametrize("able", [True, False])
def test_bf16_without_instructions_is_told(
    able: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able}, raising=False)
    with caplog.at_level(logging.WARNING):
        assert choose_machine("cpu", "bf16").precision == "bf16"
    said = ["precision=bf16: this CPU has no instructions for it; fp32 would be faster"]
    assert caplog.messages == ([] if able else said)


def number_from(script: str, *words: str) -> int:
    """What a script prints, run in a process of its own."""
    process = WarmProcess("-c", script, *words)
    said, _ = process.communicate(timeout=120)
    assert process.wait() == 0, said
    return int(said)


PAGES = """
import resource, sys, torch
from shopee_mlflow.modeling.device import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def step():
    return torch.ones(2**24)  # 64 MiB
for _ in range(20):  # until what is small has found its place between what is large
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@on_linux
def test_freed_memory_is_kept_for_the_next_step() -> None:
    # 64 MiB are 16,384 pages of 4 KiB, taken in each of the five steps or in almost none.
    assert number_from(PAGES, "keep") < 20_000
    assert number_from(PAGES, "leave") > 60_000


class OldAllocator:
    """Takes no threshold above 32 MiB, or none at all."""

    def __init__(self, largest: int) -> None:
        self.largest, self.taken = largest, []

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == -3 and value > self.largest:
            return 0
        self.taken.append((parameter, value))
        return 1


@pytest.mark.parametrize(("largest", "taken"), [(2**25, [(-3, 2**25), (-1, -1)]), (0, [])])
def test_an_older_allocator_gets_what_it_takes(
    largest: int, taken: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = OldAllocator(largest)
    monkeypatch.setattr(machine, "_glibc", lambda: old)
    machine.keep_freed_memory()
    assert old.taken == taken


HELD = """
import sys, psutil, torch
from shopee_mlflow.modeling import device as machine
machine.keep_freed_memory()
machine._RELEASE_ABOVE = float(sys.argv[1])
blocks = [torch.ones(2**20) for _ in range(40)]  # 4 MiB each
del blocks[:-1]
before = psutil.Process().memory_info().rss
machine.release_memory(machine.choose_machine("cpu"))
print((before - psutil.Process().memory_info().rss) // 2**20)
"""


@pytest.mark.slow
@on_linux
def test_freed_memory_is_given_back_where_it_is_much() -> None:
    assert number_from(HELD, "0") > 100
    assert number_from(HELD, "1") < 10


def test_a_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("asked for")

    monkeypatch.setattr(machine, "_glibc", fail)
    machine.release_memory(machine.Machine(torch.device("cuda"), "fp32"))
