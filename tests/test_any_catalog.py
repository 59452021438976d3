"""Arbitrary CSV files: reading, cleaning and splitting keep their guarantees."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shopee_mlflow.data.catalog_csv import read_catalog
from shopee_mlflow.data.cleaning import drop_small_groups, select_rows
from shopee_mlflow.data.cleaning_record import Cleaning
from shopee_mlflow.data.columns import COLUMNS, OPTIONAL
from shopee_mlflow.data.splits import SPLITS, assign_splits, count_leaks, digest, manifest
from shopee_mlflow.errors import CatalogError

MODES = ["leak_free", "random"]
# One folder serves all examples of a test: each writes its file anew.
modest = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Values that have broken readers: formulas, markup, paths, quotes, line ends, numbers, nothing.
NASTY = [
    *("", " ", '"', '""', "'", ",", "a,b", "a\nb", "a\r\nb", "NA", "nan", "None", "1e5", "007"),
    *("=HYPERLINK(1)", "<script>", "../x", "/etc/passwd", "\\", "ﬁ", "été", "商品", "a\tb", "#"),
]
values = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffd\ufeff")),
)


def write(folder: Path, header: list[str], rows: list[list[str]]) -> Path:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([header, *rows])
    file = folder / "train.csv"
    file.write_bytes(stream.getvalue().encode())
    return file


# Line breaks are for titles: an id, a name or a label never holds one.
of_one_line = values.filter(lambda value: not {"\n", "\r"} & set(value))
row_values = st.tuples(of_one_line, of_one_line, of_one_line, values, of_one_line).map(list)


@modest
@given(rows=st.lists(row_values, min_size=1, max_size=8))
@pytest.mark.slow
def test_what_was_written_is_read(rows: list[list[str]], tmp_path: Path) -> None:
    frame = read_catalog(write(tmp_path, list(COLUMNS), rows))
    read = [[value.strip() for value in row] for row in frame.to_numpy().tolist()]
    # Line breaks in titles are of one kind.
    assert read == [[value.strip().replace("\r\n", "\n") for value in row] for row in rows]


@pytest.mark.fault
@modest
@given(content=st.one_of(st.binary(max_size=300), st.text(max_size=300).map(str.encode)))
def test_any_bytes_are_a_catalogue_or_a_clear_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    for start in (b"", b"image,label_group\n", b"\xef\xbb\xbfimage,label_group,title\r\n"):
        file.write_bytes(start + content)
        try:
            frame = read_catalog(file)
        except CatalogError:
            continue
        assert {"image", "label_group"} <= set(frame) <= {*COLUMNS, *OPTIONAL}
        assert frame.map(lambda value: isinstance(value, str)).all(axis=None)


@pytest.mark.fault
def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("image,label_group\na.jpg,A\n")
    with file.open("r+b") as stream:
        stream.truncate(10 * 2**30)  # a hole: ten gigabytes that take no room
    with pytest.raises(CatalogError, match=r"line 3 is longer than 1,048,576 bytes"):
        read_catalog(file)


@pytest.mark.fault
def test_a_header_of_very_many_columns_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.csv"
    file.write_text("image,label_group" + "," * 500_000 + "\n" + "a\n" * 1000)
    with pytest.raises(CatalogError, match="has 500,002 columns; this is not a catalogue"):
        read_catalog(file)


@pytest.mark.fault
def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopee_mlflow.data.tables._MOST_UNPACKED", 2**20)
    file = tmp_path / "train.csv.gz"
    file.write_bytes(gzip.compress(b"image,label_group\n" + b"a,A\n" * 2**19))
    assert file.stat().st_size < 10_000
    with pytest.raises(CatalogError, match="unpacks to more than 1,048,576 bytes"):
        read_catalog(file)


@st.composite
def catalogs(draw: st.DrawFn) -> pd.DataFrame:
    """Rows of few files and labels, so that repeats and conflicts are many."""
    files = st.sampled_from(["", *(f"photo{number}.jpg" for number in range(12))])
    labels = st.sampled_from(["", "A", "B", "C"])
    words = st.sampled_from(["", "x", "y"])
    rows = draw(st.lists(st.tuples(words, files, words, words, labels), min_size=1, max_size=60))
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str)


def cleaned(frame: pd.DataFrame, largest_groups: int) -> tuple[pd.DataFrame, Cleaning]:
    cleaning = Cleaning(rows=len(frame))
    try:
        return select_rows(frame, largest_groups, cleaning), cleaning
    except CatalogError:
        assume(False)
        raise


@modest
@given(frame=catalogs(), largest_groups=st.integers(0, 4))
@pytest.mark.slow
def test_counts_add_up_and_only_whole_single_photos_are_left(
    frame: pd.DataFrame, largest_groups: int
) -> None:
    kept, cleaning = cleaned(frame, largest_groups)
    left = len(frame)
    for step in cleaning.steps:
        left -= step.removed
        assert step.left == left
    assert left == len(kept) == cleaning.counts()["images"]
    assert kept["image"].is_unique
    assert not (kept[["image", "label_group"]] == "").any(axis=None)
    assert kept["label_group"].nunique() <= (largest_groups or 3)


@pytest.mark.slow
@modest
@given(frame=catalogs(), largest_groups=st.integers(0, 4), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(
    frame: pd.DataFrame, largest_groups: int, seed: int
) -> None:
    kept, cleaning = cleaned(frame, largest_groups)
    again, other = cleaned(frame.sample(frac=1, random_state=seed), largest_groups)
    pd.testing.assert_frame_equal(kept, again)
    assert cleaning.counts() == other.counts()


@modest
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    copies=st.integers(1, 40),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 2**32 - 1),
    order=st.integers(0, 2**32 - 1),
)
@pytest.mark.slow
def test_splits_of_any_catalogue(
    sizes: list[int], copies: int, mode: str, seed: int, order: int
) -> None:
    labels = [f"group{group}" for group, size in enumerate(sizes) for _ in range(size)]
    names = [f"photo{number}.jpg" for number in range(len(labels))]
    # Every so many photos one and the same picture, within a group or across groups.
    contents = [str(number % copies) for number in range(len(labels))]
    frame = pd.DataFrame(
        {"image": names, "label_group": labels, "content": contents, "image_phash": ""}, dtype=str
    )

    def split(frame: pd.DataFrame) -> pd.DataFrame:
        frame = drop_small_groups(frame, 3, Cleaning(rows=len(frame)))
        return frame.assign(split=assign_splits(frame, mode, seed))

    try:
        done = split(frame)
    except CatalogError:
        # Too few groups, or all one set of copies: said, and the same in any order.
        with pytest.raises(CatalogError):
            split(frame.sample(frac=1, random_state=order))
        return
    assert set(done["split"]) == set(SPLITS)
    train = done[done["split"] == "train"]
    assert set(train["label_group"]) == set(done["label_group"])
    if mode == "leak_free":
        assert count_leaks(done) == 0
        assert (done.groupby("content")["split"].nunique() == 1).all()
    shuffled = split(frame.sample(frac=1, random_state=order))
    assert digest(manifest(done)) == digest(manifest(shuffled))
    assert digest(manifest(done)) == digest(manifest(split(frame)))
