"""Mapped arrays: a process holds a window of them, and photos left out are not copied."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from shopee_mlflow.data import mapped_arrays
from shopee_mlflow.data.array_cache import load_or_build
from shopee_mlflow.data.batches import PixelSource
from shopee_mlflow.data.mapped_arrays import Window

SHAPE = (64, 16, 16, 3)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A mapped array of 48 KiB, other values in each row."""
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path))

    def fill(values: np.ndarray, start: int) -> dict[str, object]:
        values[:] = np.arange(len(values))[:, None, None, None]
        return {}

    return load_or_build("pixels-window", SHAPE, np.uint8, fill, "rows")[0]


def held(name: str) -> int:
    """KiB of this file that this process has in memory."""
    maps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    found = re.findall(rf"{name}\.bin\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    assert found, "the file is not mapped"
    return sum(int(size) for size in found)


@pytest.mark.skipif(sys.platform != "linux", reason="what is held is read from /proc")
def test_no_more_than_a_window_is_held(stored: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_arrays, "_WINDOW", stored.nbytes + 1)
    window = Window(stored)
    total = int(stored.sum())
    window.passed(stored.nbytes)
    assert held("pixels-window") >= 48
    window.passed(stored.nbytes)
    assert held("pixels-window") == 0
    assert int(stored.sum()) == total


@pytest.mark.skipif(sys.platform != "linux", reason="what is held is read from /proc")
def test_reading_batches_lets_go_of_what_was_read(
    stored: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_arrays, "_WINDOW", 1)
    source = PixelSource(stored)
    batch = source.take(np.array([3, 60]))
    assert batch[:, 0, 0, 0].tolist() == [3, 60]
    assert held("pixels-window") == 0


def test_an_array_in_memory_is_left_alone() -> None:
    values = np.ones(10)
    Window(values).passed(2**40)
    assert values.sum() == 10


def test_a_source_may_hold_more_photos_than_rows(stored: np.ndarray) -> None:
    source = PixelSource(stored, cache_rows=np.array([5, 7, 9]))
    batch = source.take(np.array([2, 0]))
    assert batch[:, 0, 0, 0].tolist() == [9, 5]
