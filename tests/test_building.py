"""Files of the cache are made in parts: each once, by whoever is there, resumed when stopped."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from shopee_mlflow.data import building
from shopee_mlflow.data.array_cache import clear_cache, has_room, load_or_build
from shopee_mlflow.data.building import Fill
from shopee_mlflow.errors import CatalogError

NAME, ROWS, WIDTH = "pixels-parts", 300, 16
PART = 64
STARTS = list(range(0, ROWS, PART))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test, and parts of 64 rows."""
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "_PART", PART * WIDTH * 4)
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
    assert files_in(folder) == [".json", ".npy"]
    again, told = build(filler(starts))
    assert starts == STARTS
    np.testing.assert_array_equal(again, right())
    assert told == about


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_build_goes_on_where_it_stopped(
    folder: Path, error: type[BaseException]
) -> None:
    interrupt(STARTS[3], error)
    assert files_in(folder) == [".part", ".parts"]
    starts: list[int] = []
    values, about = build(filler(starts))
    assert starts == STARTS[3:]
    np.testing.assert_array_equal(values, right())
    assert len(about["first"]) == len(STARTS)
    assert files_in(folder) == [".json", ".npy"]


@pytest.mark.parametrize("damage", ["file", "notes", "shape"])
def test_an_unfinished_file_that_does_not_fit_is_begun_again(folder: Path, damage: str) -> None:
    interrupt(STARTS[2])
    [part], [notes] = folder.glob("*.part"), folder.glob("*.parts")
    if damage == "file":
        part.write_bytes(b"no array")
    elif damage == "notes":
        notes.rename(folder / "elsewhere")
    else:
        np.save(folder / "other.npy", np.zeros((ROWS, 1), np.int32))
        (folder / "other.npy").replace(part)
    starts: list[int] = []
    values, _ = build(filler(starts))
    assert starts == STARTS
    np.testing.assert_array_equal(values, right())


def test_a_disk_that_fills_up_is_told_and_what_was_written_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, notes = Path.write_text, 0

    def write(file: Path, *arguments: Any, **options: Any) -> int:
        nonlocal notes
        notes += 1
        if notes == 3:
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
    assert files_in(folder) == [".json", ".npy"]


def test_room_is_asked_for_what_is_missing_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(STARTS[4])
    [part] = folder.glob("*.part")
    assert part.stat().st_blocks > 0
    free = building._DISK_RESERVE + right().nbytes - 1
    monkeypatch.setattr(building.shutil, "disk_usage", lambda _: type("U", (), {"free": free}))
    assert has_room(NAME, (ROWS, WIDTH), np.int32)
    assert not has_room("pixels-others", (ROWS, WIDTH), np.int32)


def test_clearing_leaves_a_build_that_is_under_way(folder: Path) -> None:
    interrupt(STARTS[2])
    assert clear_cache() == 0
    assert files_in(folder) == [".part", ".parts"]
    for place in (*folder.glob("*.part"), *folder.glob("*.parts")):
        os.utime(place, (0, 0))
    assert clear_cache() > 0
    assert files_in(folder) == []


def test_a_file_deleted_while_it_is_made_is_made_again(folder: Path) -> None:
    def delete(_: int) -> None:
        if len(starts) == len(STARTS):
            [part] = folder.glob("*.part")
            part.unlink()

    starts: list[int] = []
    values, _ = build(filler(starts, delete))
    assert starts == 2 * STARTS
    np.testing.assert_array_equal(values, right())


def test_a_part_that_was_noted_and_not_written_is_noticed(folder: Path) -> None:
    """As after a power cut between the two."""

    interrupt(STARTS[3])
    [part] = folder.glob("*.part")
    content = bytearray(part.read_bytes())
    content[200:400] = bytes(200)
    part.write_bytes(content)
    values, _ = build(filler([]))
    np.testing.assert_array_equal(values, right())


def test_who_leaves_takes_nothing_from_who_works(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """A file of one part, and another process that waits for it and is stopped."""
    monkeypatch.setattr(building, "_PART", 2**20)
    real = FileLock.acquire
    main = threading.current_thread()

    def leave(lock: FileLock, *arguments: Any, **options: Any) -> object:
        if lock.lock_file.endswith("000000.lock") and threading.current_thread() is not main:
            raise KeyboardInterrupt
        return real(lock, *arguments, **options)

    def come_and_go(_: int) -> None:
        def join() -> None:
            with pytest.raises(KeyboardInterrupt):
                build(filler([]))

        other = threading.Thread(target=join)
        other.start()
        other.join()

    monkeypatch.setattr(FileLock, "acquire", leave)
    starts: list[int] = []
    values, _ = build(filler(starts, come_and_go))
    assert starts == [0]
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
def test_two_at_once_share_the_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no flock here")

    if not locks:
        monkeypatch.setattr(FileLock, "acquire", refuse)
    both_within = threading.Barrier(2, timeout=20)

    def meet(start: int) -> None:
        if start in STARTS[:2] and both_within.n_waiting < 2 and not met.is_set():
            both_within.wait()
            met.set()

    met = threading.Event()
    starts: list[int] = []
    results: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: results.append(build(filler(starts, meet))[0]))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    for values in results:
        np.testing.assert_array_equal(values, right())
    assert set(starts) == set(STARTS)
    if locks:
        assert len(starts) == len(STARTS)
    assert files_in(folder) == [".json", ".npy"]


def build_slowly(queue: Queue, wait_at: int) -> None:
    """In another process: make parts, and stay for ever in one of them."""

    def wait(start: int) -> None:
        queue.put(start)
        if start == wait_at:
            time.sleep(600)

    building._PART = PART * WIDTH * 4
    build(filler([], wait))


@pytest.mark.slow
def test_the_part_of_a_process_that_was_killed_is_made_by_another(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue: Queue[int] = context.Queue()
    process = context.Process(target=build_slowly, args=(queue, STARTS[1]))
    process.start()
    assert [queue.get(timeout=60) for _ in range(2)] == STARTS[:2]
    starts: list[int] = []

    def kill(start: int) -> None:
        if start == STARTS[-1]:
            process.kill()

    values, _ = build(filler(starts, kill))
    process.join()
    queue.close()
    assert starts == [*STARTS[2:], STARTS[1]]
    np.testing.assert_array_equal(values, right())
    assert files_in(folder) == [".json", ".npy"]
