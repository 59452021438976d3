"""The pixel cache: photos are decoded once, never stale, never partial."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import shutil
import stat
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.queues import Queue
from pathlib import Path

import imagehash
import numpy as np
import pytest
from conftest import draw_photo
from PIL import Image

from shopee_mlflow.cache_folder import cache_folder
from shopee_mlflow.data import pixel_cache as cache
from shopee_mlflow.data.array_cache import clear_cache
from shopee_mlflow.data.pixel_cache import (
    Pixels,
    compute_phashes,
    hash_files,
    load_pixels,
)
from shopee_mlflow.errors import CatalogError, ImageError

SIZE = 32


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test."""
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Four photos, of which the third does not decode."""
    files = [tmp_path / f"photo{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        draw_photo(number, 0).save(file)
    files[2].write_bytes(b"no photo")
    return files


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The photos that were decoded in the course of the test."""
    calls: list[bytes] = []
    real = cache.read_pixels

    def read(photo: bytes, size: int, resize: str) -> np.ndarray:
        calls.append(photo)
        return real(photo, size, resize)

    monkeypatch.setattr(cache, "read_pixels", read)
    return calls


def load(files: Sequence[Path], size: int = SIZE, **options: object) -> Pixels:
    return load_pixels(files, hash_files(files), size, **options)


def assert_same(first: Pixels, second: Pixels) -> None:
    np.testing.assert_array_equal(first.values, second.values)
    assert first.values.dtype == second.values.dtype == np.uint8
    assert first.bad == second.bad


def files_in(folder: Path) -> list[str]:
    """Endings of the files there; locks are empty, and stay for the next process."""
    there = folder.iterdir() if folder.exists() else ()
    return sorted(file.suffix or file.name for file in there if file.suffix != ".lock")


def test_second_call_maps_the_file_of_the_first(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(photos)
    monkeypatch.setattr(cache, "read_pixels", lambda *_: pytest.fail("decoded again"))
    second = load(photos)
    assert isinstance(second.values, np.memmap)
    assert_same(first, second)


def test_cached_and_uncached_pixels_are_equal(photos: list[Path], folder: Path) -> None:
    plain = load(photos, cache=False)
    assert not folder.exists()
    assert plain.values.shape == (4, SIZE, SIZE, 3)
    for row in (0, 1, 3):
        np.testing.assert_array_equal(plain.values[row], cache.read_pixels(photos[row], SIZE))
    assert_same(plain, load(photos))
    assert_same(plain, load(photos))


def test_bad_photos_are_remembered_with_their_reasons(
    photos: list[Path], decoded: list[bytes], tmp_path: Path
) -> None:
    photos.append(tmp_path / "absent.png")
    first = load(photos)
    assert set(first.bad) == {2, 4}
    assert "no JPEG, PNG" in first.bad[2]
    assert "No such file" in first.bad[4]
    assert not first.values[[2, 4]].any()
    decoded.clear()
    assert_same(first, load(photos))
    assert decoded == []


def change_size(files: list[Path], _: pytest.MonkeyPatch) -> tuple[list[Path], int]:
    return files, SIZE + 1


def change_content(files: list[Path], _: pytest.MonkeyPatch) -> tuple[list[Path], int]:
    draw_photo(0, 99).save(files[0])
    return files, SIZE


def change_order(files: list[Path], _: pytest.MonkeyPatch) -> tuple[list[Path], int]:
    return files[::-1], SIZE


def change_recipe(files: list[Path], patch: pytest.MonkeyPatch) -> tuple[list[Path], int]:
    patch.setattr(cache, "RECIPE", "another")
    return files, SIZE


def change_decoder(files: list[Path], patch: pytest.MonkeyPatch) -> tuple[list[Path], int]:
    patch.setattr(cache, "pillow_version", "99.0")
    return files, SIZE


@pytest.mark.parametrize(
    "change", [change_size, change_content, change_order, change_recipe, change_decoder]
)
def test_whatever_shapes_the_pixels_makes_another_file(
    photos: list[Path],
    decoded: list[bytes],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[list[Path], pytest.MonkeyPatch], tuple[list[Path], int]],
) -> None:
    load(photos)
    decoded.clear()
    files, size = change(photos, monkeypatch)
    again = load(files, size)
    assert len(decoded) == 4
    assert len(list(folder.glob("*.bin"))) == len(list(folder.glob("*.json"))) == 2
    assert_same(again, load(files, size, cache=False))


def test_renamed_photos_keep_their_file(photos: list[Path], decoded: list[bytes]) -> None:
    first = load(photos)
    decoded.clear()
    renamed = [file.rename(file.with_suffix(".renamed")) for file in photos]
    assert_same(first, load(renamed))
    assert decoded == []


def change_byte(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


def flip_pixel(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def change_part(file: Path, part: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "parts": [part]}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated.bin": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "first-row.bin": lambda file: file.write_bytes(file.read_bytes()[: SIZE * SIZE * 3]),
    "empty.bin": lambda file: file.write_bytes(b""),
    "zip.bin": lambda file: file.write_bytes(b"PK\x03\x04" + bytes(200)),
    "absent.bin": lambda file: file.unlink(),
    "flipped-pixel.bin": flip_pixel,
    "longer.bin": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "absent.json": lambda file: file.unlink(),
    "empty.json": lambda file: file.write_text(""),
    "garbage.json": lambda file: file.write_bytes(b"\xff\xfe{garbage"),
    "list.json": lambda file: file.write_text("[]"),
    "null.json": lambda file: file.write_text("null"),
    "nothing-in-it.json": lambda file: file.write_text("{}"),
    "no-checksum.json": lambda file: change_byte(file, b"crc32", b"crc31"),
    "other-checksum.json": lambda file: change_byte(file, b'"crc32": ', b'"crc32": 1'),
    "other-reason.json": lambda file: change_byte(file, b"no JPEG", b"no GIF"),
    "other-type.json": lambda file: change_byte(file, b"|u1", b"|i1"),
    "no-parts.json": lambda file: change_part(file, {}),
    "part-is-text.json": lambda file: change_part(file, "part"),
    "about-is-no-mapping.json": lambda file: change_part(file, {"about": [1], "crc32": 1}),
    "nested.json": lambda file: file.write_text("[" * 100_000),
}


@pytest.mark.fault
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_files_are_made_again(
    photos: list[Path],
    decoded: list[bytes],
    folder: Path,
    damage: str,
) -> None:
    right = load(photos, cache=False)
    load(photos)
    [file] = folder.glob(f"*{Path(damage).suffix}")
    DAMAGES[damage](file)
    decoded.clear()
    assert_same(right, load(photos))
    assert len(decoded) == 4
    decoded.clear()
    assert_same(right, load(photos))
    assert decoded == []


@pytest.mark.parametrize("again", [False, True])
def test_writing_to_the_pixels_does_not_change_the_file(
    photos: list[Path], folder: Path, again: bool
) -> None:
    right = load(photos, cache=False)
    if again:
        load(photos)
    mine = load(photos).values
    [file] = folder.glob("*.bin")
    before = file.read_bytes()
    mine[:] = 7
    del mine
    assert file.read_bytes() == before
    assert_same(right, load(photos))


@pytest.mark.fault
def test_small_disk_is_an_error_with_two_ways_out(
    photos: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 150 * 2**20})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(CatalogError, match="150 MiB free") as caught:
        load(photos)
    assert str(folder) in str(caught.value)
    assert "SHOPEE_MLFLOW_CACHE" in str(caught.value)
    assert "cache=false" in str(caught.value)
    assert files_in(folder) == []
    assert_same(load(photos, cache=False), load(photos, cache=False))


@pytest.mark.fault
def test_disk_that_fills_up_meanwhile_is_an_error_and_leaves_nothing(
    photos: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(CatalogError, match=r"No space left.*SHOPEE_MLFLOW_CACHE, or set cache=f"):
        load(photos)
    assert set(files_in(folder)) <= {".bin"}


def test_cache_folder_that_cannot_be_made_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path / "file"))
    with pytest.raises(CatalogError, match=r"file cannot be created .*SHOPEE_MLFLOW_CACHE"):
        cache_folder()


def test_default_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOPEE_MLFLOW_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "shopee_mlflow"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "shopee_mlflow"
    assert (tmp_path / "xdg" / "shopee_mlflow").is_dir()


def test_interrupted_build_leaves_nothing_and_stops(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = tmp_path / "photo.png"
    draw_photo(0, 0).save(photo)
    files = [photo] * 300
    calls = []

    def read(*_: object) -> np.ndarray:
        calls.append(1)
        time.sleep(0.01)
        return np.ones((SIZE, SIZE, 3), np.uint8)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_pixels", read)
        with pytest.raises(KeyboardInterrupt) as caught:
            load(files, workers=1, progress=interrupt)
        stopped = len(calls)
        assert stopped < len(files)
        time.sleep(0.05)
        # The error, and with it every frame, is still alive: nothing may go on behind it.
        assert caught.value is not None
        assert len(calls) == stopped
    assert files_in(folder) == []
    assert_same(load(files), load(files, cache=False))


def test_error_of_the_callback_is_its_own_and_leaves_nothing(
    photos: list[Path], folder: Path
) -> None:
    def fail(done: int, total: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        load(photos, progress=fail)
    assert files_in(folder) == []


def test_of_two_threads_one_decodes_and_the_other_waits(
    photos: list[Path], decoded: list[bytes], folder: Path
) -> None:
    right = load(photos, cache=False)
    decoded.clear()
    second: list[Pixels] = []
    waiting = threading.Thread(target=lambda: second.append(load(photos)))

    def start_the_second(done: int, total: int) -> None:
        if done == 1:
            waiting.start()
            time.sleep(0.1)

    first = load(photos, progress=start_the_second)
    waiting.join()
    assert len(decoded) == 4
    for result in (first, *second, load(photos)):
        assert_same(right, result)
    assert files_in(folder) == [".bin", ".json"]


@pytest.mark.fault
@pytest.mark.slow
def test_two_processes_at_once_decode_once_and_both_get_the_right_pixels(
    photos: list[Path], folder: Path
) -> None:
    right = load(photos, cache=False)
    context = multiprocessing.get_context("spawn")
    both_ready = context.Barrier(2, timeout=300)
    queue = context.Queue()
    processes = [
        context.Process(target=build_and_send, args=(photos, both_ready, queue)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    queue.close()
    queue.join_thread()
    for values, bad, _ in results:
        assert_same(right, Pixels(values, bad))
    assert sorted(calls for *_, calls in results) == [0, 4]
    assert files_in(folder) == [".bin", ".json"]


def build_and_send(photos: list[Path], both_ready: threading.Barrier, queue: Queue) -> None:
    calls: list[int] = []
    both_ready.wait()
    pixels = load(photos, progress=lambda done, total: calls.append(done))
    queue.put((np.array(pixels.values), pixels.bad, len(calls)))


@pytest.mark.parametrize("workers", [0, 1, 7])
def test_workers_do_not_change_the_pixels(photos: list[Path], workers: int) -> None:
    pixels = load(photos, cache=False, workers=workers)
    assert_same(pixels, load(photos, workers=workers))


def test_progress_counts_every_photo_once(photos: list[Path]) -> None:
    calls: list[tuple[int, int]] = []
    load(photos, progress=lambda *state: calls.append(state))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    calls.clear()
    load(photos, progress=lambda *state: calls.append(state))
    assert calls == []
    compute_phashes(photos, progress=lambda *state: calls.append(state))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_clear_cache_frees_the_pixels_alone(photos: list[Path], folder: Path) -> None:
    load(photos)
    (folder / "sample").mkdir()
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    assert clear_cache() == size > 4 * SIZE * SIZE * 3
    assert files_in(folder) == ["sample"]
    assert not list(folder.glob("*.lock"))
    assert clear_cache() == 0
    assert_same(load(photos), load(photos, cache=False))


def test_hash_files_digests_the_bytes(photos: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.dat"
    copy.write_bytes(photos[0].read_bytes())
    digests = hash_files([*photos, copy, tmp_path / "absent", tmp_path])
    expected = [hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file in photos]
    assert digests == [*expected, expected[0], "", ""]
    assert len(set(expected)) == 4
    assert hash_files(photos, workers=3) == expected


def test_phashes_are_those_of_imagehash(photos: list[Path], tmp_path: Path) -> None:
    jpeg, palette = tmp_path / "photo.jpg", tmp_path / "palette.png"
    draw_photo(5, 5, 80).save(jpeg)
    draw_photo(5, 6, 80).quantize(16).save(palette)
    bad = photos.pop(2)
    good = [*photos, jpeg, palette]
    phashes = compute_phashes([*good, bad, tmp_path / "absent"], workers=2)
    assert phashes[-2:] == ["", ""]
    for phash, file in zip(phashes[:-2], good, strict=True):
        with Image.open(file) as picture:
            assert phash == str(imagehash.phash(picture))
    assert all(len(phash) == 16 for phash in phashes[:-2])
    assert len(set(phashes)) == len(good) + 1


def test_transparency_has_no_part_in_phashes(tmp_path: Path) -> None:
    # Pillow warns, in vain, that the transparency of such a file is lost in grey.
    opaque, transparent = tmp_path / "opaque.png", tmp_path / "transparent.png"
    picture = draw_photo(5, 6, 80).quantize(16)
    picture.save(opaque)
    picture.save(transparent, transparency=bytes(range(16)))
    first, second = compute_phashes([opaque, transparent])
    assert first == second != ""


def test_decoding_goes_on_after_a_bad_photo(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {file.read_bytes(): file.stem for file in photos}

    def read(photo: bytes, size: int, *_: object) -> np.ndarray:
        if names[photo] != "photo3":
            raise ImageError(f"cannot see {names[photo]}")
        return np.full((size, size, 3), 9, np.uint8)

    monkeypatch.setattr(cache, "read_pixels", read)
    pixels = load(photos)
    assert pixels.bad == {row: f"cannot see photo{row}" for row in range(3)}
    assert pixels.values.reshape(4, -1).max(axis=1).tolist() == [0, 0, 0, 9]


@pytest.mark.fault
def test_a_photo_replaced_after_its_digest_is_left_out_and_decoded_next_time(
    photos: list[Path], decoded: list[bytes]
) -> None:
    right = load(photos, cache=False)
    contents, old = hash_files(photos), photos[1].read_bytes()
    draw_photo(7, 7).save(photos[1])
    decoded.clear()
    for use_cache in (True, False):
        pixels = load_pixels(photos, contents, SIZE, cache=use_cache)
        assert set(pixels.bad) == {1, 2}
        assert "changed" in pixels.bad[1]
        assert not pixels.values[1].any()
    assert photos[1].read_bytes() not in decoded
    photos[1].write_bytes(old)
    assert_same(right, load(photos))
    decoded.clear()
    assert_same(right, load(photos))
    assert decoded == []


TRANSIENT = {
    "memory": ImageError("not enough memory to decode it", transient=True),
    "decoder": ImageError("no decoder for HEIC is installed", transient=True),
}


@pytest.mark.fault
@pytest.mark.parametrize("error", list(TRANSIENT))
def test_transient_failures_are_reported_and_not_remembered(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    right = load(photos, cache=False)

    def fail(*_: object) -> None:
        raise TRANSIENT[error]

    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_pixels", fail)
        assert load(photos).bad == dict.fromkeys(range(4), str(TRANSIENT[error]))
    assert_same(right, load(photos))
    monkeypatch.setattr(cache, "read_pixels", lambda *_: pytest.fail("decoded again"))
    assert_same(right, load(photos))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_a_passing_read_error_is_reported_and_not_remembered(
    photos: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    right = load(photos, cache=False)
    real = Path.read_bytes

    def read(file: Path) -> bytes:
        if file == photos[3]:
            raise error
        return real(file)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        pixels = load(photos)
    assert any("photo3.png" in message and reason in message for message in caplog.messages)
    assert reason in pixels.bad.pop(3)
    assert pixels.bad == right.bad
    assert_same(right, load(photos))


def test_a_photo_without_a_digest_is_never_decoded(
    photos: list[Path], decoded: list[bytes]
) -> None:
    contents = ["", *hash_files(photos[1:])]
    for _ in range(2):
        pixels = load_pixels(photos, contents, SIZE)
        assert set(pixels.bad) == {0, 2}
    assert len(decoded) == 3


def test_a_new_cache_folder_is_its_owners_alone(tmp_path: Path, folder: Path) -> None:
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700
    folder.chmod(0o755)
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o755


@pytest.mark.fault
def test_clear_cache_leaves_what_others_made(
    photos: list[Path], folder: Path, tmp_path: Path
) -> None:
    load(photos)
    [ours] = folder.glob("*.json")
    outside = tmp_path / "outside.json"
    outside.write_text(ours.read_text())
    (folder / "pixels-2019").mkdir()
    (folder / "pixels-2019" / "raw.tif").write_text("precious")
    (folder / "pixels-folder.json").mkdir()
    (folder / "pixels-notes.txt").write_text("precious")
    (folder / "pixels-notes.json").write_text('{"format": "mine"}')
    (folder / "pixels-list.json").write_text("[1]")
    (folder / "activations-table.bin").write_text("precious")
    (folder / "activations-linked.json").symlink_to(outside)
    others = sorted(set(folder.rglob("*")) - set(folder.glob(f"{ours.stem}.*")))
    assert clear_cache() > 0
    assert sorted(folder.rglob("*")) == others
    assert outside.exists()
