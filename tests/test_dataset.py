"""Loading a dataset: from options to photos in memory, and errors in a catalogue."""

from __future__ import annotations

import csv
import mmap
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeCatalog, draw_photo, write_csv

from shopee_mlflow.data.dataset import Dataset, load_dataset
from shopee_mlflow.data.images import read_pixels
from shopee_mlflow.data.splits import SPLITS
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.errors import CatalogError

SIZE = 32


def load(data: Path | str, **options: object) -> Dataset:
    return load_dataset(DataConfig(data=str(data), image_size=SIZE, **options))


def read_rows(shop: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    with (shop / "train.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = [tuple(row) for row in csv.reader(file)]
    return header, rows


def sizes_of(dataset: Dataset) -> tuple[int, ...]:
    return tuple(len(dataset.rows(split)) for split in SPLITS)


@pytest.fixture
def shop(make_catalog: MakeCatalog) -> Path:
    """3 groups of 8 photos, one of them truncated, one missing, one row repeated."""
    shop = make_catalog()
    photo = shop / "train_images" / "g0n0.png"
    photo.write_bytes(photo.read_bytes()[:100])
    (shop / "train_images" / "g1n3.png").unlink()
    header, rows = read_rows(shop)
    repeated = ("p_again", *rows[5][1:])
    write_csv(shop / "train.csv", header, [*rows, repeated])
    return shop


def test_every_problem_is_counted(shop: Path) -> None:
    dataset = load(shop)
    assert dataset.cleaning.counts() == {
        "rows": 25,
        "incomplete_rows": 0,
        "outside_largest_groups": 0,
        "repeated_rows": 1,
        "conflicting_files": 0,
        "unsafe_paths": 0,
        "missing_files": 1,
        "bad_images": 1,
        "conflicting_contents": 0,
        "small_groups": 0,
        "images": 22,
    }
    assert len(dataset.frame) == len(dataset.pixels) == 22
    assert sum(sizes_of(dataset)) == 22
    text = "\n".join(dataset.lines())
    assert "1 that do not decode (g0n0.png)" in text
    assert "(g1n3.png)" in text
    assert "22 photos of 3 label groups: 18 train / 3 val / 1 test" in text
    assert (
        "0 of 1 test photos have a copy in train (equal bytes, or phashes up to 4 bits apart)"
        in text
    )
    assert dataset.source == shop / "train.csv"


def test_pixels_labels_and_rows_belong_together(shop: Path) -> None:
    dataset = load(shop)
    frame = dataset.frame
    assert list(frame.index) == list(range(22))
    assert dataset.pixels.shape == (22, SIZE, SIZE, 3)
    assert dataset.pixels.dtype == np.uint8
    assert dataset.classes == ["group0", "group1", "group2"]
    assert frame["label"].dtype == np.int64
    for row in frame.itertuples():
        assert row.file == shop / "train_images" / row.image
        assert f"group{row.image[1]}" == row.label_group == dataset.classes[row.label]
        np.testing.assert_array_equal(dataset.pixels[row.Index], read_pixels(row.file, SIZE))
    rows = np.concatenate([dataset.rows(split) for split in SPLITS])
    assert sorted(rows) == list(range(22))
    assert rows.dtype == np.int64


def test_frame_has_all_columns(shop: Path) -> None:
    frame = load(shop).frame
    named = {"posting_id", "title", "image", "label_group", "image_phash", "content", "file"}
    assert set(frame.columns) == named | {"copy_set", "split", "label"}
    assert frame["image_phash"].str.fullmatch("[0-9a-f]{16}").all()
    assert frame["content"].str.fullmatch("[0-9a-f]{32}").all()


def test_classes_are_sorted_as_text(make_catalog: MakeCatalog) -> None:
    shop = make_catalog(groups=3, each=4)
    header, rows = read_rows(shop)
    names = {"group0": "9", "group1": "10", "group2": "NA"}
    write_csv(shop / "train.csv", header, [(*row[:3], names[row[3]]) for row in rows])
    dataset = load(shop)
    assert dataset.classes == ["10", "9", "NA"]
    firsts = dataset.frame.groupby("label")["image"].first()
    assert [name[:2] for name in firsts] == ["g1", "g0", "g2"]


def test_digest_is_the_same_in_any_row_order(shop: Path) -> None:
    before = load(shop)
    header, rows = read_rows(shop)
    random.Random(0).shuffle(rows)
    write_csv(shop / "train.csv", header, rows)
    after = load(shop)
    assert after.digest == before.digest
    pd.testing.assert_frame_equal(after.frame, before.frame)
    np.testing.assert_array_equal(after.pixels, before.pixels)
    pd.testing.assert_frame_equal(after.manifest(), before.manifest())


def test_digest_tells_seeds_and_photos_apart(shop: Path) -> None:
    digests = {load(shop, split_seed=seed).digest for seed in range(3)}
    draw_photo(2, 99).save(shop / "train_images" / "g2n0.png")
    digests.add(load(shop).digest)
    assert len(digests) == 4


def test_bad_images_may_be_an_error_that_names_them(shop: Path) -> None:
    (shop / "train_images" / "g2n1.png").write_bytes(b"")
    with pytest.raises(CatalogError, match="2 photos do not decode") as caught:
        load(shop, bad_images="error")
    assert "g0n0.png: " in str(caught.value)
    assert "g2n1.png: the file is empty" in str(caught.value)


@pytest.mark.parametrize("cache", [True, False])
def test_bad_photo_is_remembered_and_left_out_again(shop: Path, cache: bool) -> None:
    first, second = load(shop, cache=cache), load(shop, cache=cache)
    pd.testing.assert_frame_equal(first.frame, second.frame)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.cleaning == second.cleaning


def test_photos_left_out_are_passed_over_not_copied_away(shop: Path) -> None:
    dataset = load(shop)
    assert isinstance(dataset.decoded.base, np.memmap | mmap.mmap)
    assert len(dataset.decoded) == len(dataset.frame) + 1
    rows = np.array([5, 0])
    np.testing.assert_array_equal(dataset.photos(rows), dataset.pixels[rows])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("resize", ["pad", "crop"])
def test_photos_made_square_in_another_way_keep_their_splits(
    shop: Path, resize: str, cache: bool
) -> None:
    for number in range(1, 8):
        draw_photo(0, number).resize((80, 40)).save(shop / "train_images" / f"g0n{number}.png")
    dataset = load_dataset(str(shop), image_size=32, cache=cache)
    other = load_dataset(str(shop), image_size=32, cache=cache, resize=resize)
    again = dataset.with_resize(resize)
    np.testing.assert_array_equal(again.pixels, other.pixels)
    assert (again.pixels != dataset.pixels).any()
    assert (again.digest, again.config) == (other.digest, other.config)
    pd.testing.assert_frame_equal(again.frame, other.frame)


@pytest.mark.fault
def test_a_photo_that_has_changed_is_not_made_square_in_another_way(shop: Path) -> None:
    dataset = load_dataset(str(shop), image_size=32)
    file = dataset.frame["file"][3]
    file.write_bytes(file.read_bytes() + b"more")
    said = f"1 of {len(dataset)} photos cannot be read again for resize=crop, such as {file}"
    with pytest.raises(CatalogError, match=re.escape(said)):
        dataset.with_resize("crop")


def test_only_the_largest_groups_are_loaded(make_catalog: MakeCatalog) -> None:
    shop = make_catalog(groups=4, each=6)
    header, rows = read_rows(shop)
    write_csv(shop / "train.csv", header, rows[2:])
    dataset = load(shop, largest_groups=2)
    assert dataset.classes == ["group1", "group2"]
    assert dataset.cleaning.counts()["outside_largest_groups"] == 10


def test_small_groups_are_left_out(make_catalog: MakeCatalog) -> None:
    shop = make_catalog(groups=3, each=6)
    header, rows = read_rows(shop)
    write_csv(shop / "train.csv", header, rows[4:])
    dataset = load(shop)
    assert dataset.classes == ["group1", "group2"]
    assert dataset.cleaning.counts()["small_groups"] == 2
    assert len(load(shop, min_group=2).classes) == 3


def test_equal_bytes_under_two_labels_are_left_out(make_catalog: MakeCatalog) -> None:
    shop = make_catalog()
    photos = shop / "train_images"
    (photos / "g0n0.png").write_bytes((photos / "g1n0.png").read_bytes())
    dataset = load(shop)
    assert dataset.cleaning.counts()["conflicting_contents"] == 2
    assert {"g0n0.png", "g1n0.png"}.isdisjoint(dataset.frame["image"])


def test_copies_stay_on_one_side_unless_random(make_catalog: MakeCatalog) -> None:
    shop = make_catalog(groups=2, each=20)
    photos = shop / "train_images"
    for number in range(0, 20, 2):
        for group in range(2):
            content = (photos / f"g{group}n{number}.png").read_bytes()
            (photos / f"g{group}n{number + 1}.png").write_bytes(content)
    clean, leaky = load(shop), load(shop, split="random")
    assert clean.leaks == 0
    assert sizes_of(clean) == sizes_of(leaky) == (32, 4, 4)
    assert clean.frame.groupby("content")["split"].nunique().max() == 1
    assert leaky.leaks > 0


def test_csv_alone_with_photos_elsewhere(make_catalog: MakeCatalog, tmp_path: Path) -> None:
    shop = make_catalog()
    catalog = (shop / "train.csv").rename(tmp_path / "catalog.csv")
    dataset = load(catalog, images=str(shop / "train_images"))
    assert len(dataset.frame) == 24
    assert dataset.source == catalog
    with pytest.raises(CatalogError, match=r"images=.*train_images: no such folder"):
        load(catalog)


def test_given_phashes_are_used(make_catalog: MakeCatalog) -> None:
    shop = make_catalog(groups=2, each=8)
    header, rows = read_rows(shop)
    # Two photos that look different and are copies by the catalogue's word; one that is no phash.
    phashes = ["0f" * 8, "0f" * 8, "nonsense"]
    phashes += [f"{row * 0x9E3779B97F4A7C15 % 2**64:016x}" for row in range(3, 16)]
    named = [(*row, phash) for row, phash in zip(rows, phashes, strict=True)]
    write_csv(shop / "train.csv", (*header, "image_phash"), named)
    for seed in range(5):
        dataset = load(shop, split_seed=seed)
        frame = dataset.frame.set_index("image")
        assert frame["split"]["g0n0.png"] == frame["split"]["g0n1.png"]
    assert frame["image_phash"]["g0n1.png"] == "0f" * 8
    assert dataset.cleaning.counts()["invalid_phashes"] == 1
    assert len(frame["image_phash"]["g0n2.png"]) == 16


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda photo: photo.unlink(), r"None of the catalogue's photos is in .*24 whose file"),
        (lambda photo: photo.write_bytes(b""), r"at least 3 photos.*24 that do not decode"),
        (lambda photo: draw_photo(0, 0).save(photo), r"24 equal, byte for byte"),
    ],
    ids=["missing", "empty", "equal"],
)
def test_nothing_usable_is_a_clear_error(
    make_catalog: MakeCatalog, spoil: Callable[[Path], object], reason: str
) -> None:
    shop = make_catalog()
    for photo in (shop / "train_images").iterdir():
        spoil(photo)
    with pytest.raises(CatalogError, match=f"(?s){reason}"):
        load(shop)


def test_folder_of_the_user_is_left_alone(shop: Path) -> None:
    def state() -> dict[Path, tuple[int, bytes]]:
        files = [file for file in shop.rglob("*") if file.is_file()]
        return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = state()
    dataset = load(shop)
    dataset.pixels[:] = 0
    assert state() == before


def test_long_steps_are_watched(shop: Path) -> None:
    calls: dict[str, list[tuple[int, int]]] = {}

    def watch(title: str) -> Callable[[int, int], None]:
        return lambda *state: calls.setdefault(title, []).append(state)

    load_dataset(DataConfig(data=str(shop), image_size=SIZE, cache=False), watch)
    assert list(calls) == ["decoding photos", "computing phashes"]
    assert calls["decoding photos"][-1] == (23, 23)
    assert calls["computing phashes"][-1] == (22, 22)


@pytest.mark.slow
def test_sample_has_the_sizes_of_the_real_data() -> None:
    leaky = load("sample", sample_px=64, largest_groups=21, split="random")
    clean = load("sample", sample_px=64, largest_groups=21)
    for dataset in (leaky, clean):
        counts = dataset.cleaning.counts()
        assert counts["rows"] - counts["outside_largest_groups"] == 899
        assert counts["repeated_rows"] == 72
        assert counts["images"] == len(dataset.frame) == len(dataset.pixels) == 827
        assert len(dataset.classes) == 21
        assert sizes_of(dataset) == (662, 83, 82)
        assert dataset.pixels.reshape(827, -1).std(axis=1).min() > 0
    assert leaky.leaks > 0
    assert clean.leaks == 0


def test_real_photos(grocery: Path) -> None:
    clean, leaky = load(grocery), load(grocery, split="random")
    for dataset in (clean, leaky):
        counts = dataset.cleaning.counts()
        assert counts["rows"] == 1092
        assert counts["rows"] - counts["incomplete_rows"] - counts["outside_largest_groups"] == 899
        assert counts["repeated_rows"] == 72
        assert counts["images"] == len(dataset.pixels) == 827
        assert counts["missing_files"] == counts["bad_images"] == counts["unsafe_paths"] == 0
        assert sizes_of(dataset) == (662, 83, 82)
    assert clean.leaks == 0
    assert leaky.leaks > 0
