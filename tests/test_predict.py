"""Predict: which photos it reads, what it writes, and how it resumes."""

from __future__ import annotations

import csv
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import write_csv
from PIL import Image
from small_run import SmallRun, small_run

from shopee_mlflow import cli
from shopee_mlflow.data import photo_sources
from shopee_mlflow.data.images import read_pixels
from shopee_mlflow.data.photo_sources import find_photos
from shopee_mlflow.errors import CatalogError, ConfigError
from shopee_mlflow.modeling.inference import BATCH
from shopee_mlflow.verbs.predict import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


@dataclass
class Decoding:
    """Notes the names of the photos that get decoded; may stop the command at one of them."""

    names: list[str] = field(default_factory=list)
    stop_at: int | None = None

    def read(self, source: Path, *geometry: Any) -> np.ndarray:
        self.names.append(source.name)
        if len(self.names) == self.stop_at:
            raise KeyboardInterrupt
        return read_pixels(source, *geometry)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    notes = Decoding()
    monkeypatch.setattr(photo_sources, "read_pixels", notes.read)
    return notes


@pytest.fixture
def many(run: SmallRun, tmp_path: Path) -> Path:
    """A list of 100 rows, three whole batches and four photos, in the catalogue's layout."""
    (tmp_path / "train_images").symlink_to(run.shop / "train_images")
    names = [run.photos[i % len(run.photos)].name for i in range(100)]
    return write_csv(tmp_path / "many.csv", ("image",), [(name,) for name in names])


def rows_of(file: Path) -> list[list[str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines))


def leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.suffix != ".csv"]


def test_a_folder_a_pattern_and_a_photo(run: SmallRun, tmp_path: Path) -> None:
    folder = run.shop / "train_images"
    out = tmp_path / "new" / "out.csv"
    assert predict(run.uri, str(folder), out) == 0
    header, *rows = rows_of(out)
    assert header == ["image", "label_group", "label_name", "probability", "error"]
    assert [row[0] for row in rows] == [file.name for file in run.photos]
    assert all(row[1] in run.result.dataset.classes and row[4] == "" for row in rows)
    assert all(1 / 3 - 1e-6 <= float(row[3]) <= 1 for row in rows)
    assert leftovers(out.parent) == []

    predict(run.uri, str(folder / "g1*.png"), out)
    by_pattern = rows_of(out)[1:]
    assert [Path(row[0]).name for row in by_pattern] == [f"g1n{i:02}.png" for i in range(12)]
    assert [row[1:] for row in by_pattern] == [row[1:] for row in rows[12:24]]
    predict(run.uri, str(run.photos[5]), out)
    assert rows_of(out)[1:] == [[str(run.photos[5]), *rows[5][1:]]]


@pytest.mark.fault
def test_patterns_visit_each_folder_once_through_links_to_parents(
    run: SmallRun, tmp_path: Path
) -> None:
    inner = tmp_path / "all" / "[inner]"
    inner.mkdir(parents=True)
    for folder in (tmp_path / "all", inner):
        shutil.copy(run.photos[0], folder / "a.png")
        # Two such links have 2 ** 40 paths, until the system refuses them.
        (folder / "up").symlink_to(tmp_path / "all")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(run.photos[1], tmp_path / "elsewhere" / "b.png")
    (tmp_path / "all" / "linked").symlink_to(tmp_path / "elsewhere")
    out = tmp_path / "out.csv"
    found = ["all/[inner]/a.png", "all/a.png", "all/linked/b.png"]
    for pattern, names in (
        ("all/**/*.png", found),
        ("all/**", found),
        ("**/a.png", found[:2]),
        ("all/**/[[]inner]/*", found[:1]),
    ):
        predict(run.uri, pattern, out)
        assert [row[0] for row in rows_of(out)[1:]] == names


@pytest.mark.fault
def test_options_of_predict_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(ConfigError, match="workers=-1: must be at least 0"):
        predict("models:/gone/1", "gone", out, workers=-1)
    with pytest.raises(ConfigError, match="top_k=0: must be at least 1"):
        predict("models:/gone/1", "gone", out, top_k=0)
    with pytest.raises(ConfigError, match="unknown=no: must be auto or none"):
        predict("models:/gone/1", "gone", out, unknown="no")
    with pytest.raises(CatalogError, match="source: is empty"):
        predict("models:/gone/1", "", out)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(CatalogError, match="the name is too long"):
        predict("models:/gone/1", "a.jpg", tmp_path / f"{'x' * 240}.csv")


def test_rows_of_a_catalogue_name_postings_in_its_order(run: SmallRun, tmp_path: Path) -> None:
    names = ["g2n03.png", "g0n01.png", "g2n03.png"]
    postings = [(f"posting {i}", name) for i, name in enumerate(names)]
    table = write_csv(tmp_path / "list.csv", ("posting_id", "image"), postings)
    predict(run.uri, str(table), tmp_path / "out.csv", images=str(run.shop / "train_images"))
    header, *rows = rows_of(tmp_path / "out.csv")
    assert header[0] == "posting_id"
    assert [row[0] for row in rows] == ["posting 0", "posting 1", "posting 2"]
    assert rows[0][1:] == rows[2][1:]
    without = write_csv(tmp_path / "bare.csv", ("image",), [(name,) for name in names])
    predict(run.uri, str(without), tmp_path / "out.csv", images=str(run.shop / "train_images"))
    assert [row[0] for row in rows_of(tmp_path / "out.csv")] == ["image", *names]


def test_rows_of_bad_photos_and_unsafe_paths_hold_the_reason(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shop" / "train_images"
    folder.mkdir(parents=True)
    shutil.copy(run.photos[0], folder / "good.png")
    shutil.copy(run.photos[0], tmp_path / "outside.png")
    (folder / "torn.png").write_bytes(run.photos[0].read_bytes()[:200])
    (folder / "text.jpg").write_text("no photo")
    names = ["torn.png", "good.png", "gone.png", "../../outside.png", "text.jpg", "good.png"]
    table = write_csv(tmp_path / "shop/train.csv", ("image",), [(name,) for name in names])
    assert predict(run.uri, str(table), tmp_path / "out.csv", top_k=2) == 4
    _, *rows = rows_of(tmp_path / "out.csv")
    assert [row[0] for row in rows] == names
    errors = {row[0]: row[-1] for row in rows}
    assert errors["good.png"] == ""
    assert errors["gone.png"] == "No such file or directory"
    assert errors["../../outside.png"] == "its path leaves the folder of photos"
    assert "no JPEG" in errors["text.jpg"]
    assert errors["torn.png"] != ""
    assert all(row[1:7] == [""] * 6 for row in rows if row[-1])
    assert rows[1][1:] == rows[5][1:]
    assert "4 of them could not be read" in capsys.readouterr().out


def test_the_best_k_have_columns_of_their_own(run: SmallRun, tmp_path: Path) -> None:
    predict(run.uri, str(run.photos[0]), tmp_path / "out.csv", top_k=99)
    header, row = rows_of(tmp_path / "out.csv")
    assert header[1:] == [
        *("label_group", "label_name", "probability"),
        *("label_group_2", "label_name_2", "probability_2"),
        *("label_group_3", "label_name_3", "probability_3", "error"),
    ]
    assert {row[1], row[4], row[7]} == set(run.result.dataset.classes)
    probabilities = [float(row[i]) for i in (3, 6, 9)]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=2e-6)


def interrupt(run: SmallRun, source: Path, out: Path, decoding: Decoding) -> Path:
    """Stop the command in the third batch; returns the partial file."""
    decoding.stop_at = 70
    with pytest.raises(KeyboardInterrupt):
        # One thread, so that the photos are decoded in the order of the rows.
        predict(run.uri, str(source), out, workers=1)
    decoding.stop_at = None
    decoding.names.clear()
    assert not out.exists()
    (partial,) = out.parent.glob("*.partial")
    assert len(rows_of(partial)) == 1 + 2 * BATCH
    return partial


@pytest.mark.fault
def test_an_interrupted_call_resumes_where_it_stopped(
    run: SmallRun,
    many: Path,
    tmp_path: Path,
    decoding: Decoding,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predict(run.uri, str(many), tmp_path / "whole.csv")
    decoding.names.clear()
    out = tmp_path / "out.csv"
    interrupt(run, many, out, decoding)
    predict(run.uri, str(many), out)
    assert len(decoding.names) == 100 - 2 * BATCH
    assert "64 of 100 photos" in capsys.readouterr().out
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert list(tmp_path.glob("*partial*")) == []


@pytest.mark.parametrize("cut", [1, 2, 9, 30, 2000])
def test_a_row_cut_off_in_writing_is_written_again(
    run: SmallRun, many: Path, tmp_path: Path, decoding: Decoding, cut: int
) -> None:
    predict(run.uri, str(many), tmp_path / "whole.csv")
    decoding.names.clear()
    partial = interrupt(run, many, tmp_path / "out.csv", decoding)
    partial.write_bytes(partial.read_bytes()[:-cut])
    predict(run.uri, str(many), tmp_path / "out.csv")
    assert len(decoding.names) in (100 - BATCH, 100)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_bad_photos_before_the_interruption_are_counted(
    run: SmallRun, many: Path, tmp_path: Path, decoding: Decoding
) -> None:
    many.write_text(many.read_text().replace("image\n", "image\ngone.png\n"))
    interrupt(run, many, tmp_path / "out.csv", decoding)
    assert predict(run.uri, str(many), tmp_path / "out.csv") == 1


@pytest.mark.slow
def test_a_different_call_never_resumes_from_this_partial_file(
    run: SmallRun,
    many: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    decoding: Decoding,
) -> None:
    out = tmp_path / "out.csv"
    partial = interrupt(run, many, out, decoding)
    other = small_run(tmp_path_factory.getbasetemp(), "pt2")
    folder = str(run.shop / "train_images")
    for model, source, k, photos in (
        (other.uri, str(many), 1, 100),
        (run.uri, folder, 1, 36),
        (run.uri, str(many), 2, 100),
    ):
        decoding.names.clear()
        predict(model, source, out, top_k=k)
        assert len(decoding.names) == photos
        assert partial.exists()
    partial.write_text("something,else\n1,2\n")
    decoding.names.clear()
    predict(run.uri, str(many), out)
    assert len(decoding.names) == 100


def test_the_number_of_workers_does_not_change_the_answers(run: SmallRun, tmp_path: Path) -> None:
    for workers in (1, 5):
        folder = str(run.shop / "train_images")
        predict(run.uri, folder, tmp_path / f"{workers}.csv", workers=workers)
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "5.csv").read_bytes()


def test_sources_that_hold_no_photo(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no photo")
    for source, message in (
        ("gone.jpg", "gone.jpg: no such photo, folder or table"),
        ("gone.csv", "gone.csv: cannot be read"),
        ("empty", "empty: holds no photo"),
        ("empty/*.jpg", r"empty/\*.jpg: holds no photo"),
    ):
        with pytest.raises(CatalogError, match=message):
            find_photos(source)
    write_csv(tmp_path / "list.csv", ("image",), [("a.jpg",)])
    with pytest.raises(CatalogError, match="train_images: no such folder"):
        find_photos("list.csv")


def test_photos_are_found_in_subfolders_whatever_their_names(run: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    odd = [b'deep/A, "b".PNG', b"line\nbreak.png", b"not-utf8-\xff.png", b"of\rold\r\nmachines.png"]
    for name in odd:
        shutil.copy(run.photos[0], str(folder).encode() + b"/" + name)
    assert predict(run.uri, str(folder), tmp_path / "out.csv") == 0
    names = [row[0] for row in rows_of(tmp_path / "out.csv")[1:]]
    assert names == [
        *('deep/A, "b".PNG', "line\nbreak.png", "not-utf8-\\udcff.png"),
        "of\rold\r\nmachines.png",
    ]
    assert pd.read_csv(tmp_path / "out.csv")["image"].tolist() == names


@pytest.mark.fault
def test_photos_of_a_folder_are_known_by_content(run: SmallRun, tmp_path: Path) -> None:
    folder, other = tmp_path / "photos", tmp_path / "other"
    for place in (folder / "folder.jpg", other):
        place.mkdir(parents=True)
    jpeg = Image.open(run.photos[0])
    for name in ("a.jfif", "b.jpe", "c.mpo", "d.JPG", "without", "e.dat", "folder.jpg/f.pjpeg"):
        jpeg.save(folder / name, "JPEG")
    jpeg.save(other / "linked", "PNG")
    (folder / "sub").symlink_to("../other")
    (folder / "again").symlink_to("../other")
    (other / "loop").symlink_to(folder)
    (folder / "g.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    (folder / "h.png").symlink_to("gone.png")
    for name in ("._a.jpg", "notes.txt", "more.txt", "LICENSE"):
        (folder / name).write_text("no photo")
    os.mkfifo(folder / "pipe.jpg")
    assert predict(run.uri, str(folder), tmp_path / "out.csv") == 2
    rows = rows_of(tmp_path / "out.csv")[1:]
    assert [row[0] for row in rows] == [
        *("a.jfif", "again/linked", "b.jpe", "c.mpo", "d.JPG", "e.dat", "folder.jpg/f.pjpeg"),
        *("g.heic", "h.png", "without"),
    ]
    assert [row[0] for row in rows if row[-1]] == ["g.heic", "h.png"]
    found = find_photos(str(folder))
    assert found.passed_over == {
        ".txt": 2,
        "macOS metadata": 1,
        "pipe, device or socket": 1,
        "without suffix": 1,
    }


def test_files_passed_over_are_counted_by_kind(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(run.photos[0], folder)
    for name in ("notes.txt", "more.TXT", "LICENSE"):
        (folder / name).write_text("no photo")
    assert predict(run.uri, f"{folder}/*", tmp_path / "out.csv") == 0
    words = "3 files were skipped as not photos: 2 .txt, 1 without suffix"
    assert words in capsys.readouterr().out


def test_a_csv_goes_with_its_own_folder_of_photos(run: SmallRun, tmp_path: Path) -> None:
    """Kaggle's layout: equal names stand for other photos in each folder."""
    for name, photo in (("train", run.photos[0]), ("test", run.photos[20])):
        (tmp_path / f"{name}_images").mkdir()
        shutil.copy(photo, tmp_path / f"{name}_images" / "a.png")
        write_csv(tmp_path / f"{name}.csv", ("image",), [("a.png",)])
    write_csv(tmp_path / "list.csv", ("image",), [("a.png",)])
    for name, folder in (("train", "train"), ("test", "test"), ("list", "train")):
        (photo,) = find_photos(str(tmp_path / f"{name}.csv")).photos
        assert photo.file == tmp_path / f"{folder}_images" / "a.png"


@pytest.mark.fault
def test_nothing_read_is_an_error(run: SmallRun, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "list.csv", ("image",), [("a.jpg",), ("../b.jpg",)])
    (tmp_path / "photos").mkdir()
    with pytest.raises(CatalogError, match="None of the 2 photos .* No such file") as caught:
        predict(run.uri, str(table), tmp_path / "out.csv", images=str(tmp_path / "photos"))
    assert f"expected in {tmp_path / 'photos'}" in str(caught.value)
    assert [row[0] for row in rows_of(tmp_path / "out.csv")[1:]] == ["a.jpg", "../b.jpg"]
    (tmp_path / "bad.png").write_text("no photo")
    with pytest.raises(CatalogError, match="None of the 1 photos could be read"):
        predict(run.uri, str(tmp_path / "bad.png"), tmp_path / "out.csv")


@pytest.mark.fault
def test_pipes_are_never_opened(run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    shutil.copy(run.photos[0], tmp_path / "train_images" / "a.png")
    os.mkfifo(tmp_path / "train_images" / "pipe.png")
    table = write_csv(tmp_path / "list.csv", ("image",), [("a.png",), ("pipe.png",)])
    assert predict(run.uri, str(table), tmp_path / "out.csv") == 1
    assert rows_of(tmp_path / "out.csv")[2][-1] == "not a regular file"
    os.mkfifo(tmp_path / "pipe.csv")
    for source in ("train_images/pipe.png", "pipe.csv", "/dev/zero"):
        with pytest.raises(CatalogError, match="is not a regular file"):
            find_photos(source)
    with pytest.raises(CatalogError, match="is not a regular file"):
        predict(run.uri, str(table), tmp_path / "pipe.csv")


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("change", ["content", "other file", "gone"])
def test_photos_that_changed_meanwhile_are_classified_again(
    run: SmallRun, tmp_path: Path, decoding: Decoding, change: str
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(100):
        shutil.copy(run.photos[number % 36], folder / f"{number:03}.png")
    interrupt(run, folder, tmp_path / "out.csv", decoding)
    first = folder / "000.png"
    if change == "content":
        first.write_bytes(run.photos[30].read_bytes())
    elif change == "other file":
        shutil.copystat(first, shutil.copy(run.photos[30], tmp_path / "new.png"))
        (tmp_path / "new.png").replace(first)
    else:
        first.unlink()
        first.symlink_to("nowhere")
    predict(run.uri, str(folder), tmp_path / "out.csv")
    assert len(decoding.names) == 100
    predict(run.uri, str(folder), tmp_path / "truth.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "truth.csv").read_bytes()


@pytest.mark.fault
def test_two_calls_at_once_never_write_one_file(
    run: SmallRun, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(run.uri, str(many), tmp_path / "whole.csv")
    out = tmp_path / "out.csv"
    begun, second_is_over = threading.Event(), threading.Event()

    def read(*arguments: Any) -> np.ndarray:
        begun.set()
        assert second_is_over.wait(60)
        return read_pixels(*arguments)

    monkeypatch.setattr(photo_sources, "read_pixels", read)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(predict, run.uri, str(many), out)
        assert begun.wait(60)
        try:
            with pytest.raises(CatalogError, match=r"out.csv: another predict is writing"):
                predict(run.uri, str(many), out)
        finally:
            second_is_over.set()
        assert first.result(60) == 0
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert list(tmp_path.glob("*partial*")) == list(tmp_path.glob(".*")) == []
    predict(run.uri, str(many), out)


def test_exit_codes(run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*arguments: str) -> int:
        try:
            cli.main(["predict", "--model", run.uri, *arguments])
        except SystemExit as leaving:
            return int(leaving.code or 0)
        return 0

    photo = str(run.photos[0])
    assert code("--source", photo, "--out", str(tmp_path / "out.csv"), "--top-k", "2") == 0
    assert "1 photos in" in capsys.readouterr().out
    shutil.copy(run.shop / "train.csv", tmp_path / "list.csv")
    images = str(run.shop / "train_images")
    for arguments, message in (
        (["--source", "gone.jpg"], "gone.jpg: no such photo"),
        (["--source", photo, "--model", "models:/none@champion"], "model=models:/none@champion"),
        (["--source", photo, "--out", str(tmp_path)], "is a folder; name a file"),
        (["--source", photo, "--out", f"{photo}/deep/out.csv"], "cannot be written"),
        (["--source", "list.csv", "--images", images, "--out", "list.csv"], "is the source"),
        (["--source", photo, "--top-k", "0"], "top-k"),
    ):
        assert code(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert (tmp_path / "list.csv").read_bytes() == (run.shop / "train.csv").read_bytes()
