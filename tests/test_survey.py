"""The survey of a CSV, compared with manual counts and with the real file's facts."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import SHARED, write_csv

from shopee_mlflow.data.catalog_csv import read_catalog
from shopee_mlflow.data.splits import assign_splits, count_leaks
from shopee_mlflow.data.titles import (
    count_bytes_literals,
    decode_escapes,
    escaped_titles,
    without_formulas,
)
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.errors import CatalogError
from shopee_mlflow.exploring.selection import select_photos, try_splits
from shopee_mlflow.exploring.survey import Survey, cluster_table, survey_catalog

HEADER = ("posting_id", "image", "image_phash", "title", "label_group")
A, NEAR_A, B, FAR = "00000000ffffffff", "0000003fffffffff", "ffff00000000ffff", "00ff00ff00ff00ff"
ROWS = [
    ("p1", "a.jpg", A, "red cup", "cups"),
    ("p2", "a.jpg", A, "red cup", "cups"),
    ("p3", "b.jpg", NEAR_A, "red cup", "mugs"),
    ("p4", "c.jpg", B.upper(), "blue cup", "mugs"),
    ("p5", "c.jpg", B, "blue cup", "plates"),
    ("p6", "d.jpg", "no phash", r"\xe2\x9d\xa4 plate", "plates"),
    ("p7", "e.jpg", "", "", ""),
]


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    return survey_catalog(read_catalog(write_csv(tmp_path / "train.csv", HEADER, ROWS)))


def test_facts_are_those_counted_by_hand(survey: Survey) -> None:
    assert survey.facts() == {
        "rows": 7,
        "distinct_files": 5,
        "repeated_files": 2,
        "most_rows_of_files": 2,
        "distinct_phashes": 3,
        "repeated_phashes": 2,
        "most_rows_of_phashes": 2,
        "distinct_titles": 3,
        "repeated_titles": 2,
        "most_rows_of_titles": 3,
        "conflicting_files": 1,
        "conflicting_phashes": 1,
        "conflicting_titles": 2,
        "label_groups": 3,
        "groups_of_two": 3,
        "largest_group": 2,
        "lookalike_labels": 0,
        "missing_value_labels": 0,
        "invalid_phashes": 1,
        "near_pairs": 1,
        "near_clusters": 1,
        "largest_near_cluster": 2,
        "titles_with_escapes": 1,
        "titles_as_bytes": 0,
    }


def test_columns_tell_what_is_filled(survey: Survey) -> None:
    rows = survey.columns.set_index("column")
    assert rows.loc["title"].tolist() == [6, 1, 3]
    assert rows.loc["image"].tolist() == [7, 0, 5]
    assert survey.absent == ()


def test_conflicts_name_the_groups_with_their_rows(survey: Survey) -> None:
    (file,) = survey.conflicts["image"].to_dict("records")
    assert file == {
        "value": "c.jpg",
        "rows": 2,
        "label_groups": 2,
        "groups": "mugs (1), plates (1)",
    }
    titles = survey.conflicts["title"]
    assert titles["value"].tolist() == ["red cup", "blue cup"]
    assert titles["groups"].tolist() == ["cups (2), mugs (1)", "mugs (1), plates (1)"]


def test_near_phashes_make_a_cluster_with_its_rows_and_groups(survey: Survey) -> None:
    assert survey.near is not None
    (pair,) = survey.near.pair_table().to_dict("records")
    assert pair == {"image_phash": A, "other_phash": NEAR_A, "bits": 6, "same_group": False}
    (cluster,) = cluster_table(survey).to_dict("records")
    counts = {name: cluster[name] for name in ("phashes", "files", "rows", "label_groups")}
    assert counts == {"phashes": 2, "files": 2, "rows": 3, "label_groups": 2}
    assert cluster["members"] == f"{A} {NEAR_A}"


def test_phashes_of_photos_fill_the_gaps(tmp_path: Path) -> None:
    rows = read_catalog(write_csv(tmp_path / "train.csv", HEADER, ROWS))
    filled = survey_catalog(rows, {"d.jpg": FAR, "a.jpg": FAR}).rows
    assert filled["image_phash"].tolist() == [A, A, NEAR_A, B, B, FAR, ""]
    without = survey_catalog(rows.drop(columns="image_phash"), {"d.jpg": FAR})
    assert without.rows["image_phash"].tolist() == ["", "", "", "", "", FAR, ""]
    assert without.absent == ("image_phash",)


@pytest.mark.parametrize("column", ["image_phash", "title", "label_group"])
def test_a_missing_column_leaves_its_facts_out(tmp_path: Path, column: str) -> None:
    kept = [name for name in HEADER if name != column]
    path = tmp_path / "train.csv"
    pd.DataFrame(ROWS, columns=HEADER)[kept].to_csv(path, index=False)
    survey = survey_catalog(read_catalog(path, ("image",)))
    assert survey.absent == (column,)
    left_out = {
        "image_phash": {"distinct_phashes", "near_pairs", "conflicting_phashes", "invalid_phashes"},
        "title": {"distinct_titles", "conflicting_titles", "titles_with_escapes"},
        "label_group": {"label_groups", "conflicting_files", "conflicting_titles"},
    }
    assert not left_out[column] & set(survey.facts())
    assert survey.facts()["distinct_files"] == 5


def test_a_column_without_a_single_phash_is_as_none(tmp_path: Path) -> None:
    rows = [(p, image, "x", title, group) for p, image, _, title, group in ROWS]
    survey = survey_catalog(read_catalog(write_csv(tmp_path / "train.csv", HEADER, rows)))
    assert survey.near is None
    assert survey.invalid_phashes == 7
    assert "distinct_phashes" not in survey.facts()


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [
        (r"\xe2\x9d\xa4 cup", "❤ cup"),
        (r"PLATE \XE2\X9D\XA4", "PLATE ❤"),
        (r"75\xc3\x9780 cm", "75×80 cm"),
        (r"\xf0\x9f\x87\xb2\xf0\x9f\x87\xa8MG", "\U0001f1f2\U0001f1e8MG"),
        (r"cut \xe2\x9d off", r"cut \xe2\x9d off"),
        (r"\xff\xfe", r"\xff\xfe"),
        (r"b'cup \xe2\x9d\xa4'", "cup ❤"),
        ('b"Mom\'s cup"', "Mom's cup"),
        (r"C:\new \x4", r"C:\new \x4"),
        ("", ""),
    ],
)
def test_escapes_are_decoded_where_they_are_utf8(raw: str, decoded: str) -> None:
    assert decode_escapes(raw) == decoded


def test_escaped_titles_come_with_their_rows() -> None:
    titles = pd.Series([r"a \xc3\xa9", "plain", r"b \xc3\xa9", r"b \xc3\xa9", "b'x'"], dtype="str")
    table = escaped_titles(titles)
    assert table["decoded"].tolist() == ["b é", "a é"]
    assert table["rows"].tolist() == [2, 1]
    assert count_bytes_literals(titles) == 1


def _photos(groups: int = 4, each: int = 10) -> pd.DataFrame:
    """Photos of which two follow one another with equal phashes, and two pairs with near ones.

    The next two pairs are 2 bits apart, those of the next four photos 6 bits.
    """
    rows = []
    for group in range(groups):
        for number in range(each):
            look = (group * each + number) // 4
            shift = 0 if number % 4 < 2 else 3 if look % 2 else 63
            phash = f"{(look + 1) * 0x9E3779B97F4A7C15 % 2**64 ^ shift:016x}"
            image = f"{group}-{number}.jpg"
            rows.append((f"p{image}", image, phash, f"title {group}", f"group{group}"))
    return pd.DataFrame(rows, columns=HEADER).astype("str")


def test_leaks_are_those_that_the_split_itself_counts() -> None:
    frame = _photos()
    table = try_splits(frame, first_seed=3)
    assert sorted(set(table["seed"])) == list(range(3, 23))
    for row in table.itertuples():
        split = assign_splits(frame.assign(content=""), row.split, row.seed)
        sized = frame.assign(content="", split=split)
        assert row.copies == count_leaks(sized)
        assert row.near_copies == _near_leaks_by_brute_force(sized)
        assert row.train + row.val + row.test == len(frame)
    leak_free = table[table["split"] == "leak_free"]
    assert (leak_free["copies"] == 0).all()
    assert (leak_free["near_copies"] > 0).any()
    tied = try_splits(frame, first_seed=3, near_bits=6)
    assert (tied.loc[tied["split"] == "leak_free", "near_copies"] == 0).all()


def _near_leaks_by_brute_force(frame: pd.DataFrame) -> int:
    train = [int(p, 16) for p in frame.loc[frame["split"] == "train", "image_phash"]]
    test = [int(p, 16) for p in frame.loc[frame["split"] == "test", "image_phash"]]
    return sum(any((one ^ other).bit_count() <= 6 for other in train) for one in test)


def test_what_cannot_be_trained_on_says_why() -> None:
    selection = select_photos(_photos(groups=1), DataConfig(), None)
    assert "A classifier needs two label groups" in selection.problem
    assert selection.splits.empty
    assert selection.facts()["kept_files"] == 10
    assert selection.facts()["kept_groups"] == 1
    with pytest.raises(CatalogError, match="No row of the catalogue is left"):
        select_photos(_photos().assign(label_group=""), DataConfig(), None)


def test_kept_groups_are_those_of_top_k_whatever_is_cleaned_after(survey: Survey) -> None:
    """c.jpg contradicts itself, so a step after largest_groups takes its rows out."""
    facts = select_photos(survey.rows, DataConfig(largest_groups=0), None).facts()
    assert facts == {
        "kept_groups": 3,
        "kept_rows": 6,
        "kept_repeated_rows": 1,
        "kept_conflicting_rows": 2,
        "kept_files": 3,
        "kept_phashes": 2,
        "kept_near_clusters": 1,
    }


@pytest.mark.slow
def test_the_real_catalogue_has_the_facts_that_are_known_of_it() -> None:
    csv = SHARED / "data" / "shopee" / "train.csv"
    if not csv.is_file():
        pytest.skip(f"the real catalogue is not at {csv}")
    started = time.process_time()
    survey = survey_catalog(read_catalog(csv))
    selection = select_photos(survey.rows, DataConfig(), None)
    seconds = time.process_time() - started
    facts = survey.facts() | selection.facts()
    known = {
        "rows": 34_250,
        "distinct_files": 32_412,
        "distinct_phashes": 28_735,
        "distinct_titles": 33_117,
        "label_groups": 11_014,
        "groups_of_two": 6_979,
        "largest_group": 51,
        "repeated_files": 1_246,
        "most_rows_of_files": 15,
        "most_rows_of_phashes": 26,
        "most_rows_of_titles": 9,
        "conflicting_files": 46,
        "conflicting_phashes": 147,
        "conflicting_titles": 73,
        "titles_with_escapes": 671,
        "kept_groups": 21,
        "kept_rows": 899,
        "kept_repeated_rows": 72,
        "kept_files": 827,
        "kept_phashes": 630,
    }
    assert {name: facts[name] for name in known} == known
    # 3,419 by comparing each of 28,735 phashes with each other one.
    assert facts["near_pairs"] == 3_419
    assert seconds < 20


@pytest.mark.fault
@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-cmd|x", "'-cmd|x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-5", "-5"),
        ("-5.25", "-5.25"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_no_text_for_people_begins_as_a_formula(text: str, written: str) -> None:
    table = pd.DataFrame({"title": [text], "rows": [-3]})
    plain = without_formulas(table)
    assert plain.loc[0].tolist() == [written, -3]
    assert table.loc[0, "title"] == text
