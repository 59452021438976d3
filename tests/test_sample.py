"""The built-in sample catalogue: its contents, and its atomic creation."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import imagehash
import pytest
from PIL import Image

from shopee_mlflow.errors import CatalogError
from shopee_mlflow.sample import catalog as sample

PX = 64
TOP_ROWS = [51] * 7 + [49, 46, 46, 45, 41, 37, 36, 35, 35, 35, 35, 34, 34, 34]


@pytest.fixture(scope="module")
def calls() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory, calls: list) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "catalog"
    return sample.sample_catalog(PX, folder, progress=lambda *state: calls.append(state))


@pytest.fixture(scope="module")
def rows(catalog: Path) -> list[dict[str, str]]:
    with (catalog / "train.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def groups(rows: list[dict[str, str]]) -> list[list[dict[str, str]]]:
    """The rows of each label group, largest group first."""
    found = defaultdict(list)
    for row in rows:
        found[row["label_group"]].append(row)
    return sorted(found.values(), key=len, reverse=True)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> sample.Plan:
    """A plan of a few photos in place of the whole one."""
    whole = sample.make_plan()
    photos = [photo for photo in whole.photos if photo.group in (0, 25) and photo.number < 3]
    names = {name for photo in photos for name in (photo.image, *photo.copies)}
    plan = sample.Plan(photos, [row for row in whole.rows if row.image in names])
    monkeypatch.setattr(sample, "make_plan", lambda: plan)
    return plan


@pytest.mark.slow
def test_large_groups_have_the_real_sizes(groups):
    large = groups[:21]
    assert [len(group) for group in large] == TOP_ROWS
    assert sum(TOP_ROWS) == 899
    files = [len({row["image"] for row in group}) for group in large]
    assert sum(files) == 827
    assert len({row["image"] for group in large for row in group}) == 827


def test_files_repeat_up_to_four_times_with_new_postings(rows):
    uses = Counter(row["image"] for row in rows)
    assert set(uses.values()) == {1, 2, 3, 4}
    assert len({row["posting_id"] for row in rows}) == len(rows)


def test_small_groups(groups):
    assert [len(group) for group in groups[21:]] == [6, 5, 4, 4, 3, 3, 2, 2, 2, 2, 2, 1]


def test_columns_look_like_the_real_ones(catalog, rows):
    assert (catalog / "train.csv").read_bytes().count(b"\r") == 0
    assert tuple(rows[0]) == sample.COLUMNS
    for row in rows:
        assert re.fullmatch(r"train_\d+", row["posting_id"])
        assert re.fullmatch(r"[0-9a-f]{32}\.jpg", row["image"])
        assert re.fullmatch(r"[0-9a-f]{16}", row["image_phash"])
        assert re.fullmatch(r"\d{9,10}", row["label_group"])
    # Shuffled: the groups do not stand one after the other.
    changes = sum(a["label_group"] != b["label_group"] for a, b in pairwise(rows))
    assert changes > 800


def test_titles_hold_commas_and_written_out_escapes(rows):
    titles = [row["title"] for row in rows]
    assert sum("," in title for title in titles) >= 5
    assert sum(r"\xe2\x9d\xa4" in title for title in titles) >= 2
    assert all(title.isascii() and title.strip() == title for title in titles)


def test_every_file_is_named_and_has_the_asked_size(catalog, rows):
    files = sorted((catalog / "train_images").iterdir())
    assert [file.name for file in files] == sorted({row["image"] for row in rows})
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (PX, PX))


def test_hash_column_is_that_of_the_files(catalog, rows):
    for row in rows[::9]:
        with Image.open(catalog / "train_images" / row["image"]) as picture:
            assert str(imagehash.phash(picture)) == row["image_phash"]


def test_near_copies_have_equal_hashes_and_other_bytes(catalog, rows):
    hashes = {row["image"]: row["image_phash"] for row in rows}
    content = digests(catalog / "train_images")
    large = [photo for photo in sample.make_plan().photos if photo.group < 21]
    pairs = [(photo.image, copy) for photo in large for copy in photo.copies]
    assert 45 <= len(pairs) <= 55
    for first, second in pairs:
        assert hashes[first] == hashes[second]
        assert content[first] != content[second]
        with Image.open(catalog / "train_images" / second) as picture:
            assert str(imagehash.phash(picture)) == hashes[second]


def test_label_conflicts_among_the_small_groups(groups):
    labels_of_files, labels_of_hashes = defaultdict(set), defaultdict(set)
    files_of_hashes = defaultdict(set)
    for row in (row for group in groups[21:] for row in group):
        labels_of_files[row["image"]].add(row["label_group"])
        labels_of_hashes[row["image_phash"]].add(row["label_group"])
        files_of_hashes[row["image_phash"]].add(row["image"])
    assert sum(len(labels) == 2 for labels in labels_of_files.values()) == 3
    crossing = [phash for phash, labels in labels_of_hashes.items() if len(labels) == 2]
    assert sum(len(files_of_hashes[phash]) == 2 for phash in crossing) == 1


def test_progress_counts_up_to_all_files(rows, calls):
    total = len({row["image"] for row in rows})
    assert calls[-1] == (total, total)
    assert calls == sorted(calls)


def test_photos_depend_on_neither_order_nor_workers(catalog, quick, tmp_path):
    alone = sample.sample_catalog(PX, tmp_path / "one", workers=1)
    beside = sample.sample_catalog(PX, tmp_path / "three", workers=3)
    assert digests(alone) == digests(beside)
    whole = digests(catalog / "train_images")
    assert digests(alone / "train_images").items() <= whole.items()
    assert len(digests(alone)) == len({row.image for row in quick.rows}) + 2


def test_plan_is_the_same_every_time():
    assert sample.make_plan() == sample.make_plan()


def test_complete_folder_is_reused(catalog, monkeypatch):
    monkeypatch.setattr(sample, "draw_batch", pytest.fail)
    assert sample.sample_catalog(PX, catalog) == catalog


@pytest.mark.usefixtures("quick")
def test_default_folder_is_in_the_cache_and_mended_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path))
    folder = sample.sample_catalog(PX)
    assert folder == tmp_path / f"sample-v1-{PX}px"
    before = digests(folder)
    next((folder / "train_images").iterdir()).unlink()
    assert digests(sample.sample_catalog(PX)) == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.usefixtures("quick")
def test_interrupted_drawing_leaves_nothing(tmp_path):
    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.sample_catalog(PX, tmp_path / "new", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_faster_process_wins(tmp_path):
    target = tmp_path / "new"
    other: list[dict[str, str]] = []

    def draw_meanwhile(*_: int) -> None:
        if not other:
            other.append({})
            other.append(digests(sample.sample_catalog(PX, target)))

    assert sample.sample_catalog(PX, target, progress=draw_meanwhile) == target
    assert digests(target) == other[1]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.usefixtures("quick")
def test_partial_or_foreign_folder_is_refused_and_kept(tmp_path):
    folder = sample.sample_catalog(PX, tmp_path / "partial")
    (folder / sample.MARKER).unlink()
    before = digests(folder)
    with pytest.raises(CatalogError, match=r"not empty.*sample_px=64"):
        sample.sample_catalog(PX, folder)
    assert digests(folder) == before


@pytest.mark.usefixtures("quick")
def test_files_that_appear_while_drawing_are_kept(tmp_path):
    target = tmp_path / "new"

    def write_meanwhile(*_: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "notes.txt").write_text("mine")

    with pytest.raises(CatalogError, match="cannot be moved"):
        sample.sample_catalog(PX, target, progress=write_meanwhile)
    assert [file.name for file in target.iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("quick")
def test_sample_of_another_size_is_refused(tmp_path):
    folder = sample.sample_catalog(PX, tmp_path / "small")
    with pytest.raises(CatalogError, match="sample_px=65"):
        sample.sample_catalog(65, folder)


@pytest.mark.usefixtures("quick")
def test_empty_folder_is_filled(tmp_path):
    assert (sample.sample_catalog(PX, tmp_path) / "train.csv").is_file()


@pytest.mark.parametrize("px", [63, 4097, 0, -256, 100.0, True, "256"])
def test_size_out_of_range_names_the_option(px, tmp_path):
    with pytest.raises(CatalogError, match=r"sample_px.*64 to 4096"):
        sample.sample_catalog(px, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CatalogError, match="sample cannot be written to .*SHOPEE_MLFLOW_CACHE"):
        sample.sample_catalog(64, tmp_path / "file" / "sample")
