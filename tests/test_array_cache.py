"""Cached arrays: built once by one process, resumed when interrupted, never read half-built."""

from __future__ import annotations

import errno
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from shopee_mlflow.data import array_cache
from shopee_mlflow.data.array_cache import RETRY, Fill, clear_cache, has_room, load_or_build
from shopee_mlflow.errors import CatalogError

NAME, ROWS, WIDTH = "pixels-parts", 300, 16
PART = 64
STARTS = list(range(0, ROWS, PART))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test, and parts of 64 rows."""
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_cache, "_PART", PART * WIDTH * 4)
    return tmp_path / "cache"


def right() -> np.ndarray:
    return np.arange(ROWS * WIDTH, dtype=np.int32).reshape(ROWS, WIDTH)


def filler(starts: list[int], then: Callable[[int], object] = lambda _: None) -> Fill:
    """Fills a part as it should be, notes where it began, and does something more."""

    def fill(values: np.ndarray, start: int) -> dict[str, Any]:
        starts.append(start)
        values[:] = right()[start : start + len(values)]
        then(start)
        return {"first": {str(start): int(values[0, 0])}}

    return fill


def build(fill: Fill) -> tuple[np.ndarray, dict[str, Any]]:
    return load_or_build(NAME, (ROWS, WIDTH), np.int32, fill, "rows")


def interrupt(at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    """A build that ends in the part that begins there."""

    def stop(start: int) -> None:
        if start == at:
            raise error

    with pytest.raises(error):
        build(filler([], stop))


def files_in(folder: Path) -> list[str]:
    return sorted(file.suffix for file in folder.iterdir() if file.suffix != ".lock")


def test_parts_make_the_whole_with_all_that_was_told(folder: Path) -> None:
    starts: list[int] = []
    values, about = build(filler(starts))
    assert starts == STARTS
    np.testing.assert_array_equal(values, right())
    assert about == {"first": {str(start): start * WIDTH for start in STARTS}}
    assert files_in(folder) == [".bin", ".json"]
    again, told = build(filler(starts))
    assert starts == STARTS
    np.testing.assert_array_equal(again, right())
    assert told == about


@pytest.mark.fault
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_build_goes_on_where_it_stopped(
    folder: Path, error: type[BaseException]
) -> None:
    interrupt(STARTS[3], error)
    assert files_in(folder) == [".bin", ".json"]
    starts: list[int] = []
    values, about = build(filler(starts))
    assert starts == STARTS[3:]
    np.testing.assert_array_equal(values, right())
    assert len(about["first"]) == len(STARTS)
    assert files_in(folder) == [".bin", ".json"]


@pytest.mark.parametrize("damage", ["file", "description", "shape", "absent"])
def test_an_unfinished_array_that_does_not_fit_is_built_anew(folder: Path, damage: str) -> None:
    interrupt(STARTS[2])
    [file], [description] = folder.glob("*.bin"), folder.glob("*.json")
    if damage == "file":
        file.write_bytes(b"no array")
    elif damage == "description":
        description.unlink()
    elif damage == "shape":
        description.write_text(description.read_text().replace("300", "301"))
    else:
        file.unlink()
    starts: list[int] = []
    values, _ = build(filler(starts))
    assert starts == STARTS
    np.testing.assert_array_equal(values, right())


def test_a_damaged_part_is_built_again_with_those_after_it(folder: Path) -> None:
    build(filler([]))
    [file] = folder.glob("*.bin")
    content = bytearray(file.read_bytes())
    content[STARTS[3] * WIDTH * 4] ^= 1
    file.write_bytes(content)
    starts: list[int] = []
    values, _ = build(filler(starts))
    assert starts == STARTS[3:]
    np.testing.assert_array_equal(values, right())


def test_parts_to_retry_are_valid_for_their_builder_alone(folder: Path) -> None:
    def fill(values: np.ndarray, start: int) -> dict[str, Any]:
        values[:] = right()[start : start + len(values)]
        if start == STARTS[1]:
            values[0] = 0
            return {RETRY: {str(start): True}}
        return {}

    values, about = build(fill)
    assert about == {RETRY: {str(STARTS[1]): True}}
    assert not values[STARTS[1]].any()
    starts: list[int] = []
    values, about = build(filler(starts))
    assert starts == [STARTS[1]]
    assert RETRY not in about
    np.testing.assert_array_equal(values, right())


@pytest.mark.parametrize("damaged", [False, True])
def test_a_mapped_array_keeps_its_values_when_parts_are_built_again(
    folder: Path, damaged: bool
) -> None:
    def fill(values: np.ndarray, start: int) -> dict[str, Any]:
        values[:] = right()[start : start + len(values)]
        return {RETRY: {str(start): True}} if start == STARTS[1] and not damaged else {}

    def fail(values: np.ndarray, start: int) -> dict[str, Any]:
        return {RETRY: {str(start): True}}

    mapped, _ = build(fill)
    if damaged:
        [file] = folder.glob("*.bin")
        with file.open("r+b") as stream:
            stream.seek(STARTS[4] * WIDTH * 4)
            stream.write(b"?")
    values, _ = build(fail)
    again = STARTS[4] if damaged else STARTS[1]
    assert not values[again : again + PART].any()
    np.testing.assert_array_equal(mapped[: STARTS[4]], right()[: STARTS[4]])
    np.testing.assert_array_equal(mapped[STARTS[4] + 1 :], right()[STARTS[4] + 1 :])


def test_a_disk_that_fills_up_is_told_and_what_was_written_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, notes = Path.write_text, 0

    def write(file: Path, *arguments: Any, **options: Any) -> int:
        nonlocal notes
        notes += 1
        if notes == 4:
            raise OSError(28, "No space left on device")
        return real(file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write)
        with pytest.raises(CatalogError, match=r"No space left.*SHOPEE_MLFLOW_CACHE"):
            build(filler([]))
    starts: list[int] = []
    values, _ = build(filler(starts))
    assert starts == STARTS[2:]
    np.testing.assert_array_equal(values, right())
    assert files_in(folder) == [".bin", ".json"]


def test_room_is_needed_for_the_missing_part_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(STARTS[4])
    free = array_cache._DISK_RESERVE + right()[STARTS[4] :].nbytes
    monkeypatch.setattr(array_cache.shutil, "disk_usage", lambda _: type("U", (), {"free": free}))
    assert has_room(NAME, (ROWS, WIDTH), np.int32)
    assert not has_room("pixels-others", (ROWS, WIDTH), np.int32)
    free -= 1
    assert not has_room(NAME, (ROWS, WIDTH), np.int32)


def test_a_finished_array_needs_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    build(filler([]))
    monkeypatch.setattr(array_cache.shutil, "disk_usage", lambda _: type("U", (), {"free": 0}))
    assert has_room(NAME, (ROWS, WIDTH), np.int32)


def test_clearing_leaves_a_build_that_is_under_way(folder: Path) -> None:
    starts: list[int] = []
    cleared: list[int] = []
    values, _ = build(filler(starts, lambda _: cleared.append(clear_cache())))
    assert cleared == [0] * len(STARTS)
    assert starts == STARTS
    np.testing.assert_array_equal(values, right())
    assert clear_cache() > right().nbytes
    interrupt(STARTS[2])
    assert clear_cache() > 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_files_deleted_during_a_build_are_built_again(folder: Path, what: str) -> None:
    def delete(_: int) -> None:
        if len(starts) == len(STARTS):
            if what == "file":
                [file] = folder.glob("*.bin")
                file.unlink()
            else:
                shutil.rmtree(folder)

    starts: list[int] = []
    values, _ = build(filler(starts, delete))
    assert starts == 2 * STARTS
    np.testing.assert_array_equal(values, right())


def test_a_part_that_was_listed_and_not_written_is_noticed(folder: Path) -> None:
    """As after a power cut between the two."""
    interrupt(STARTS[3])
    [file] = folder.glob("*.bin")
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    values, _ = build(filler([]))
    np.testing.assert_array_equal(values, right())


def test_a_disk_without_locks_gets_no_file_that_outlives_its_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    values, _ = build(filler([]))
    np.testing.assert_array_equal(values, right())
    assert all(not lock.read_bytes() for lock in folder.glob("*.lock"))
    told = [message for message in caplog.messages if "cannot be locked" in message]
    assert len(told) == 1
    assert str(folder) in told[0]


@pytest.mark.parametrize("locks", [True, False])
def test_of_two_at_once_one_builds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    if not locks:
        monkeypatch.setattr(FileLock, "acquire", refuse)
    starts: list[int] = []
    results: list[np.ndarray] = []
    second = threading.Thread(target=lambda: results.append(build(filler(starts))[0]))

    def join_in(start: int) -> None:
        if start == STARTS[1] and not second.ident:
            second.start()
            if not locks:
                second.join()

    results.append(build(filler(starts, join_in))[0])
    second.join()
    assert len(results) == 2
    for values in results:
        np.testing.assert_array_equal(values, right())
    assert sorted(starts) == (STARTS if locks else sorted(2 * STARTS))
    assert files_in(folder) == [".bin", ".json"]


def build_slowly(queue: Queue, wait_at: int) -> None:
    """In another process: make parts, and stay for ever in one of them."""

    def wait(start: int) -> None:
        queue.put(start)
        if start == wait_at:
            time.sleep(600)

    array_cache._PART = PART * WIDTH * 4
    build(filler([], wait))


@pytest.mark.fault
@pytest.mark.slow
def test_a_build_whose_process_was_killed_is_resumed_by_one_that_waits(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue: Queue[int] = context.Queue()
    process = context.Process(target=build_slowly, args=(queue, STARTS[2]))
    process.start()
    assert [queue.get(timeout=300) for _ in range(3)] == STARTS[:3]
    starts: list[int] = []
    results: list[np.ndarray] = []
    waiting = threading.Thread(target=lambda: results.append(build(filler(starts))[0]))
    waiting.start()
    waiting.join(0.2)
    assert starts == []
    process.kill()
    process.join()
    waiting.join()
    queue.close()
    assert starts == STARTS[2:]
    np.testing.assert_array_equal(results[0], right())
    assert files_in(folder) == [".bin", ".json"]
