"""Reading and processing large catalogues in parts gives the same result as at once."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest

from shopee_mlflow.data import catalog_csv, pixel_cache
from shopee_mlflow.data.catalog_csv import read_catalog
from shopee_mlflow.data.pixel_cache import hash_files
from shopee_mlflow.errors import CatalogError


def write(folder: Path, rows: list[str]) -> Path:
    file = folder / "train.csv"
    file.write_text("\n".join(["image, label_group,title,more", *rows, ""]), encoding="utf-8")
    return file


def test_a_csv_read_in_parts_is_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f'{i}.jpg, {i % 3} ,"a, {i}\nb",{"x" * i}' for i in range(20)]
    whole = read_catalog(write(tmp_path, rows))
    monkeypatch.setattr(catalog_csv, "_PART_ROWS", 3)
    parts = read_catalog(tmp_path / "train.csv")
    assert list(whole.columns) == ["image", "title", "label_group"]
    assert whole["label_group"].tolist()[:4] == ["0", "1", "2", "0"]
    pd.testing.assert_frame_equal(parts, whole)


@pytest.mark.parametrize(
    ("row", "words"),
    [("9.jpg,1,t,m,more,than,four", "is not valid CSV"), ("9.jpg,\ud8ff,t,m", "is not UTF-8")],
)
def test_a_later_part_is_looked_at_like_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, words: str
) -> None:
    monkeypatch.setattr(catalog_csv, "_PART_ROWS", 3)
    file = write(tmp_path, [f"{i}.jpg,{i % 3},t,m" for i in range(8)])
    with file.open("ab") as stream:
        stream.write(row.encode("utf-8", "surrogatepass") + b"\n")
    with pytest.raises(CatalogError, match=words):
        read_catalog(file)


@pytest.mark.parametrize("items", [1, 5, 40, 100])
@pytest.mark.parametrize("workers", [1, 3])
def test_work_in_rounds_and_runs_keeps_its_order(
    monkeypatch: pytest.MonkeyPatch, items: int, workers: int
) -> None:
    monkeypatch.setattr(pixel_cache, "_ROUND", 16)
    monkeypatch.setattr(pixel_cache, "_MOST_A_TASK", 4)
    told: list[tuple[int, int]] = []

    def work(item: int) -> int:
        time.sleep(0.0005 * (item % 3))
        return item * 2

    done = pixel_cache._in_threads(work, range(items), workers, lambda *state: told.append(state))
    assert done == [2 * item for item in range(items)]
    assert told == [(number + 1, items) for number in range(items)]


def test_files_are_digested_in_their_order(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.jpg" for number in range(300)]
    for number, file in enumerate(files):
        file.write_bytes(str(number).encode())
    assert hash_files(files, workers=2) == [hash_files([file])[0] for file in files]
