"""Cleaning a CSV: which rows are kept, refused and counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import SHARED, MakeCatalog, write_csv

from shopee_mlflow.data.catalog_csv import find_images, find_table, read_catalog
from shopee_mlflow.data.cleaning import (
    drop_bad_images,
    drop_conflicting_contents,
    drop_small_groups,
    fill_phashes,
    locate_files,
    select_rows,
)
from shopee_mlflow.data.cleaning_record import Cleaning
from shopee_mlflow.data.columns import unused_column_remarks
from shopee_mlflow.errors import CatalogError

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        file = tmp_path / "catalog.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of photos with a.jpg, b.jpg and sub/c.jpg, and one photo beside the folder."""
    photos = tmp_path / "shop" / "train_images"
    (photos / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "sub/c.jpg", "../secret.jpg"):
        (photos / name).write_bytes(b"photo")
    return photos


def table(*rows: tuple[str, ...], names: str = "image label_group") -> pd.DataFrame:
    return pd.DataFrame(rows, columns=names.split(), dtype=str)


def select(frame: pd.DataFrame, largest_groups: int = 0) -> tuple[list[tuple[str, ...]], Cleaning]:
    cleaning = Cleaning(rows=len(frame))
    kept = select_rows(frame, largest_groups, cleaning)
    return list(kept.itertuples(index=False, name=None)), cleaning


def find_catalog(data: str, images: str | None = None) -> tuple[Path, Path]:
    table = find_table(data)
    return table, find_images(table, images)


def test_folder_and_its_csv_are_the_same(make_catalog: MakeCatalog) -> None:
    shop = make_catalog(groups=1, each=1)
    expected = (shop / "train.csv", shop / "train_images")
    assert find_catalog(str(shop)) == expected
    assert find_catalog(str(shop / "train.csv")) == expected


def test_csv_of_another_name_with_photos_elsewhere(folder: Path, write: Write) -> None:
    file = write("image,label_group\n")
    assert find_catalog(str(file), str(folder)) == (file, folder)


def test_home_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "train.csv").touch()
    monkeypatch.setenv("HOME", str(folder.parents[1]))
    assert find_catalog("~/shop") == (folder.parent / "train.csv", folder)
    assert find_catalog("~/shop", "~/shop/train_images/sub")[1] == folder / "sub"


def test_missing_data_folder(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="data=nowhere: no such file or folder") as caught:
        find_catalog("nowhere")
    assert f"relative to {tmp_path}" in str(caught.value)


def test_folder_without_csv(folder: Path) -> None:
    with pytest.raises(
        CatalogError, match=r"no train\.csv.*name the table itself.*holds these folders"
    ):
        find_catalog(str(folder))


def test_missing_folder_of_photos(folder: Path, write: Write) -> None:
    file = write("image,label_group\n")
    with pytest.raises(CatalogError, match=r"images=.*train_images: no such folder of photos"):
        find_catalog(str(file))
    with pytest.raises(CatalogError, match=r"images=elsewhere: no such folder.*option images"):
        find_catalog(str(file), "elsewhere")
    with pytest.raises(CatalogError, match=r"images=.*a\.jpg: no such folder"):
        find_catalog(str(file), str(folder / "a.jpg"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("~nobody-has-this-name/shop", "no such file or folder"),
        ("a" * 300, "cannot be accessed .*too long"),
    ],
)
def test_names_that_no_file_can_have(data: str, said: str) -> None:
    with pytest.raises(CatalogError, match=said):
        find_catalog(data)


@pytest.mark.parametrize(
    "content",
    [
        "image,label_group\na.jpg,1\nb.jpg,2\n",
        "image,label_group\na.jpg,1\nb.jpg,2",
        "\ufeffimage,label_group\na.jpg,1\nb.jpg,2\n",
        "image,label_group\r\na.jpg,1\r\nb.jpg,2\r\n",
        "image,label_group\ra.jpg,1\rb.jpg,2\r",
        "\n\nimage,label_group\n\na.jpg,1\n\nb.jpg,2\n\n",
        " image , label_group \n a.jpg , 1 \n\tb.jpg\t, 2\n",
        '"image", "label_group"\n"a.jpg", "1"\n"b.jpg", "2"\n',
    ],
    ids=["plain", "no-end", "bom", "crlf", "cr", "blank-lines", "spaces", "quotes"],
)
def test_spellings_of_the_same(write: Write, content: str) -> None:
    frame = read_catalog(write(content))
    assert list(frame.columns) == ["image", "label_group"]
    assert frame.to_numpy().tolist() == [["a.jpg", "1"], ["b.jpg", "2"]]


def test_path_may_be_text(write: Write) -> None:
    assert len(read_catalog(str(write("image,label_group\na.jpg,1\n")))) == 1


def test_byte_order_mark_goes_with_any_other_spelling(write: Write) -> None:
    frame = read_catalog(write('\ufeff"image","label_group"\r\n"a.jpg","Ä"\r\n'))
    assert frame.to_numpy().tolist() == [["a.jpg", "Ä"]]


def test_quoted_commas_quotes_and_line_ends(write: Write) -> None:
    content = 'image,title,label_group\na.jpg,"Tape, 3M\n""strong""",1\r\n"b,c.jpg",plain,2\n'
    frame = read_catalog(write(content))
    assert frame["title"].tolist() == ['Tape, 3M\n"strong"', "plain"]
    assert frame["image"].tolist() == ["a.jpg", "b,c.jpg"]
    assert frame["label_group"].tolist() == ["1", "2"]


def test_columns_in_any_order_and_others_left_out(write: Write) -> None:
    frame = read_catalog(
        write("label_group,price,title,image,image_phash,posting_id\n1,9.99,T,a.jpg,ff,p1\n")
    )
    assert frame.to_dict("records") == [
        {
            "posting_id": "p1",
            "image": "a.jpg",
            "image_phash": "ff",
            "title": "T",
            "label_group": "1",
        }
    ]


@pytest.mark.parametrize("header", ["image,label_group,image", "image ,label_group,image"])
def test_two_columns_of_a_name_are_refused(write: Write, header: str) -> None:
    with pytest.raises(CatalogError, match="header names image more than once; rename or remove"):
        read_catalog(write(f"{header}\na.jpg,1,b.jpg\n"))
    frame = read_catalog(write("image,price,label_group,price\na.jpg,1,A,2\n"))
    assert frame.to_numpy().tolist() == [["a.jpg", "A"]]


def test_labels_stay_text(write: Write) -> None:
    labels = ["NA", "nan", "null", "None", "007", "7", "7.0", "1e3", "True", "", "249114794"]
    rows = "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(labels))
    frame = read_catalog(write("image,label_group\n" + rows))
    assert frame["label_group"].tolist() == labels
    assert {type(label) for label in frame["label_group"]} == {str}


def test_rows_that_end_early_are_filled_with_nothing(write: Write) -> None:
    frame = read_catalog(write("image,label_group,title\na.jpg,1,T\nb.jpg,2\nc.jpg\n"))
    assert frame["label_group"].tolist() == ["1", "2", ""]
    assert frame["title"].tolist() == ["T", "", ""]


@pytest.mark.parametrize("content", ["", "\n\n", "   \n", "\ufeff"])
def test_empty_file(write: Write, content: str) -> None:
    with pytest.raises(CatalogError, match=r"catalog\.csv: the file is empty; a catalogue is"):
        read_catalog(write(content))


def test_header_without_rows(write: Write) -> None:
    with pytest.raises(CatalogError, match=r"has a header but no rows; a catalogue is"):
        read_catalog(write("image,label_group\n"))


def test_missing_columns_are_named_beside_those_found(write: Write) -> None:
    with pytest.raises(CatalogError, match="column label_group is missing; found: 'image', 'x"):
        read_catalog(write("image,x\na.jpg,1\n"))
    with pytest.raises(
        CatalogError, match=r"columns image and label_group are missing; found: 'x', 'y z'"
    ):
        read_catalog(write("x,y z\na.jpg,1\n"))


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ("image,label_group\na.jpg,1\n".encode("utf-16"), "the header"),
        ("image,label_group\na.jpg,1\n".encode("utf-16-le"), "the header"),
        ("image,label_gruppé\na.jpg,1\n".encode("latin-1"), "the header"),
        ("image,label_group\na.jpg,café\n".encode("latin-1"), "column label_group"),
        ("image,label_group\ncafé.jpg,1\n".encode("latin-1"), "column image"),
    ],
    ids=["utf-16", "utf-16-without-mark", "header", "label", "image"],
)
def test_other_encodings_are_refused(write: Write, content: bytes, where: str) -> None:
    with pytest.raises(CatalogError, match=f"{where} is not UTF-8; save the file as UTF-8"):
        read_catalog(write(content))


def test_titles_may_be_in_any_encoding(write: Write) -> None:
    frame = read_catalog(write("image,label_group,title\na.jpg,1,café\n".encode("latin-1")))
    assert frame["title"].tolist() == ["caf\ufffd"]


@pytest.mark.parametrize(
    "rows",
    ["a.jpg,1\nb.jpg,2,3\n", "a.jpg,1,x\nb.jpg,2,x\n", "a.jpg,1,\nb.jpg,2\n", '"a.jpg,1\n'],
    ids=["later-row", "every-row", "first-row", "open-quote"],
)
def test_ragged_rows_are_refused(write: Write, rows: str) -> None:
    with pytest.raises(CatalogError, match=r"catalog\.csv: is not valid CSV \("):
        read_catalog(write("image,label_group\n" + rows))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"absent\.csv: cannot be read \(No such file"):
        read_catalog(tmp_path / "absent.csv")
    with pytest.raises(CatalogError, match=r"cannot be read \(Is a directory"):
        read_catalog(tmp_path)


def test_photo_in_place_of_a_csv(write: Write) -> None:
    with pytest.raises(CatalogError, match=r"catalog\.csv: "):
        read_catalog(write(bytes(range(256)) * 20))


def test_counts_of_every_step() -> None:
    frame = table(
        *[(f"a{number}", "A") for number in range(4)],
        ("a0", "A"),  # repeats a file of its group
        ("a1", "B"),  # conflicts with A, where a1 goes as well
        ("b0", "B"),
        ("b1", "B"),
        ("c0", "C"),  # outside the two largest
        ("a3", "C"),  # makes a3 noisy
        ("", "A"),
        ("d0", ""),
    )
    rows, cleaning = select(frame, largest_groups=2)
    assert rows == [("a0", "A"), ("a2", "A"), ("a3", "A"), ("b0", "B"), ("b1", "B")]
    assert cleaning.counts() == {
        "rows": 12,
        "incomplete_rows": 2,
        "outside_largest_groups": 2,
        "repeated_rows": 1,
        "conflicting_files": 2,
        "noisy_files": 1,
        "images": 5,
    }
    assert [step.left for step in cleaning.steps] == [10, 8, 7, 5]
    assert cleaning.steps[-1].examples == ("a1",)
    assert cleaning.lines() == [
        "     12 rows in the catalogue",
        "     10 left: 2 without image or label_group",
        "      8 left: 2 outside the 2 largest label groups",
        "      7 left: 1 that repeat a file of their group",
        "      5 left: 2 of files with more than one label (a1)",
        "        1 of the kept photos also have a label group that is not kept",
        "        keeping 2 of 3 label groups, 6 of 7 photos; largest_groups=0 keeps all",
    ]


def test_largest_groups_of_zero_keeps_every_group() -> None:
    frame = table(("a", "A"), ("b", "B"), ("c", "C"))
    rows, cleaning = select(frame, largest_groups=0)
    assert len(rows) == 3
    assert cleaning.counts()["outside_largest_groups"] == 0


def test_more_groups_wanted_than_there_are() -> None:
    rows, cleaning = select(table(("a", "A"), ("b", "B")), largest_groups=21)
    assert len(rows) == 2
    assert "outside the 2 largest" in cleaning.lines()[2]


def test_ties_are_broken_by_label_in_any_row_order() -> None:
    rows = [("d", "9"), ("a", "10"), ("b", "10"), ("c", "1")]
    for order in itertools.permutations(rows):
        kept, _ = select(table(*order), largest_groups=2)
        assert kept == [("a", "10"), ("b", "10"), ("c", "1")]


def test_repeated_rows_count_for_the_size_of_a_group() -> None:
    kept, _ = select(
        table(("a", "A"), ("a", "A"), ("a", "A"), ("b", "B"), ("c", "B")), largest_groups=1
    )
    assert kept == [("a", "A")]


@pytest.mark.parametrize("column", ["posting_id", "title", "image_phash"])
def test_same_one_of_repeated_rows_stays_in_any_order(column: str) -> None:
    names = f"image label_group {column}"
    rows = [("a", "A", "z"), ("a", "A", "x"), ("a", "A", "y"), ("b", "A", "w")]
    for order in itertools.permutations(rows):
        kept, cleaning = select(table(*order, names=names))
        assert kept == [("a", "A", "x"), ("b", "A", "w")]
        assert cleaning.counts()["repeated_rows"] == 2


def test_selected_rows_are_numbered_anew() -> None:
    frame = table(("c", "A"), ("", "A"), ("a", "A"))
    frame.index = pd.Index([7, 7, 7])
    kept = select_rows(frame, 0, Cleaning(rows=3))
    assert list(kept.index) == [0, 1]
    assert list(kept["image"]) == ["a", "c"]


@pytest.mark.parametrize(
    "rows", [[("", "A"), ("a", "")], [("a", "A"), ("a", "B")]], ids=["incomplete", "conflict"]
)
def test_nothing_left_is_an_error_with_the_record(rows: list[tuple[str, str]]) -> None:
    with pytest.raises(CatalogError, match=r"No row .* is left:\n +2 rows in the catalogue\n"):
        select(table(*rows))


@pytest.mark.slow
def test_real_catalogue_has_the_known_counts() -> None:
    csv = SHARED / "data" / "shopee" / "train.csv"
    if not csv.is_file():
        pytest.skip(f"the real catalogue is not at {csv}")
    frame = read_catalog(csv)
    assert frame.shape == (34_250, 5)
    rows, cleaning = select(frame, largest_groups=21)
    counts = cleaning.counts()
    assert counts["rows"] - counts["incomplete_rows"] - counts["outside_largest_groups"] == 899
    assert counts["repeated_rows"] == 72
    assert counts["images"] == len(rows) == 827


def locate(folder: Path, *names: str) -> tuple[pd.DataFrame, dict[str, int]]:
    cleaning = Cleaning(rows=len(names))
    frame = locate_files(table(*[(name, "A") for name in names]), folder, cleaning)
    return frame, cleaning.counts()


def test_files_within_the_folder(folder: Path) -> None:
    frame, counts = locate(folder, "a.jpg", "sub/c.jpg", "sub/../b.jpg")
    assert list(frame["file"]) == [folder / "a.jpg", folder / "sub" / "c.jpg", folder / "b.jpg"]
    assert counts == {"rows": 3, "unsafe_paths": 0, "missing_files": 0, "images": 3}


@pytest.mark.fault
@pytest.mark.parametrize("name", ["../secret.jpg", "sub/../../secret.jpg", ".", "", "a\0.jpg"])
def test_unsafe_paths(folder: Path, name: str) -> None:
    frame, counts = locate(folder, name, "a.jpg")
    assert list(frame["image"]) == ["a.jpg"]
    assert list(frame.index) == [0]
    assert counts == {"rows": 2, "unsafe_paths": 1, "missing_files": 0, "images": 1}


def test_absolute_path_is_unsafe(folder: Path) -> None:
    _, counts = locate(folder, str(folder.parent / "secret.jpg"), "a.jpg")
    assert counts["unsafe_paths"] == 1


@pytest.mark.fault
def test_links_in_the_folder_are_followed_wherever_they_point(folder: Path) -> None:
    (folder / "out.jpg").symlink_to("../secret.jpg")
    (folder / "parent").symlink_to(folder.parent)
    (folder / "in.jpg").symlink_to(folder / "a.jpg")
    frame, counts = locate(folder, "out.jpg", "parent/secret.jpg", "in.jpg", "../secret.jpg")
    assert list(frame["image"]) == ["out.jpg", "parent/secret.jpg", "in.jpg"]
    assert all(file.read_bytes() == b"photo" for file in frame["file"])
    assert counts["unsafe_paths"] == 1


def test_folder_may_itself_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    frame, _ = locate(tmp_path / "link", "a.jpg")
    assert frame["file"][0].read_bytes() == b"photo"


@pytest.mark.parametrize("name", ["absent.jpg", "sub", "a.jpg/b.jpg", "a" * 300, "loop.jpg"])
def test_missing_files(folder: Path, name: str) -> None:
    (folder / "loop.jpg").symlink_to("loop.jpg")
    frame, counts = locate(folder, name, "a.jpg")
    assert list(frame["image"]) == ["a.jpg"]
    assert counts["unsafe_paths"] + counts["missing_files"] == 1
    assert (counts["unsafe_paths"] == 1) <= (name == "loop.jpg")


def test_examples_of_left_out_files_are_named(folder: Path) -> None:
    cleaning = Cleaning(rows=6)
    names = ["a.jpg", *[f"x{number}.jpg" for number in range(4)], "../secret.jpg"]
    locate_files(table(*[(name, "A") for name in names]), folder, cleaning)
    assert cleaning.lines()[1:] == [
        "      5 left: 1 whose path leaves the folder of photos (../secret.jpg)",
        f"      1 left: 4 whose file is not in {folder} (x0.jpg, x1.jpg, x2.jpg, ...)",
    ]


def test_no_photo_in_the_folder_is_an_error_with_the_record(folder: Path) -> None:
    with pytest.raises(CatalogError, match=r"None .* is in .*train_images:\n(.|\n)*1 whose fi"):
        locate(folder, "absent.jpg", "../secret.jpg")


@pytest.fixture
def three() -> pd.DataFrame:
    rows = (("a", "A", "1"), ("b", "A", "2"), ("c", "B", "3"))
    return table(*rows, names="image label_group content")


def test_bad_images_keep_the_index_of_the_pixels(three: pd.DataFrame) -> None:
    cleaning = Cleaning(rows=3)
    frame = drop_bad_images(three, {1: "truncated"}, "skip", cleaning)
    assert list(frame.index) == [0, 2]
    assert cleaning.counts() == {"rows": 3, "bad_images": 1, "images": 2}
    assert "1 that do not decode (b)" in cleaning.lines()[1]
    assert cleaning.lines()[2].strip() == "1: truncated (b)"
    assert cleaning.left_out_table().to_dict("records") == [
        {"image": "b", "label_group": "A", "step": "bad_images", "reason": "truncated"}
    ]


def test_reasons_that_differ_in_numbers_are_counted_together() -> None:
    frame = table(*[(f"{number}.jpg", "A") for number in range(20)])
    reasons = {row: f"truncated ({row} bytes are missing)" for row in range(5)}
    reasons |= {row: f"reason {'x' * row}" for row in range(5, 12)} | {12: "HEIC", 13: "HEIC"}
    cleaning = Cleaning(rows=20)
    drop_bad_images(frame, reasons, "skip", cleaning)
    lines = [line.strip() for line in cleaning.lines()[2:]]
    assert lines[0] == "5: truncated (0 bytes are missing) (0.jpg, 1.jpg, 2.jpg, ...)"
    assert lines[1] == "2: HEIC (12.jpg, 13.jpg)"
    assert lines[-1] == "and 3 other reasons"
    assert len(cleaning.left_out) == 14


@pytest.mark.fault
def test_why_a_file_is_not_there_is_told(folder: Path) -> None:
    (folder / "annex.jpg").symlink_to("../.git/annex/objects/xyz.jpg")
    cleaning = Cleaning(rows=5)
    names = ["a.jpg", "annex.jpg", "sub", "loop.jpg", "absent.jpg"]
    (folder / "loop.jpg").symlink_to("loop.jpg")
    locate_files(table(*[(name, "A") for name in names]), folder, cleaning)
    assert cleaning.left_out_table().set_index("image")["reason"].to_dict() == {
        "annex.jpg": "a link to ../.git/annex/objects/xyz.jpg, which does not exist",
        "sub": "a folder",
        "loop.jpg": "too many levels of symbolic links",
        "absent.jpg": "no such file",
    }
    assert "1: a folder (sub)" in "\n".join(cleaning.lines())


def test_every_row_left_out_is_in_the_table_but_those_an_option_excludes() -> None:
    frame = table(("a", "A"), ("b", "A"), ("b", "A"), ("c", ""), ("d", "D"), ("e", "A"), ("e", "A"))
    _, cleaning = select(frame, largest_groups=1)
    assert [tuple(row) for row in cleaning.left_out] == [
        ("c", "", "incomplete_rows", "without image or label_group"),
        ("b", "A", "repeated_rows", "that repeat a file of their group"),
        ("e", "A", "repeated_rows", "that repeat a file of their group"),
    ]


def test_labels_that_look_alike_are_kept_apart_and_told() -> None:
    frame = table(("a", "7"), ("b", "7.0"), ("c", "nan"))
    rows, cleaning = select(frame)
    assert [label for _, label in rows] == ["7", "7.0", "nan"]
    text = "\n".join(cleaning.lines())
    assert "1 set of label groups differ only in" in text
    assert "'7' and '7.0'" in text
    assert "1 label group reads like a missing value" in text


def test_columns_that_people_expect_to_matter_are_named() -> None:
    assert unused_column_remarks(["Split", "price", "sample_weight", "fold"]) == [
        "column Split, fold of the table is not used: photos are split by it if split_column names "
        "it",
        "column sample_weight of the table is not used: all photos have the same weight "
        "unless class_weights is set",
        "columns of the table that are not used: price",
    ]
    assert unused_column_remarks([]) == []


def test_bad_images_may_be_an_error(three: pd.DataFrame) -> None:
    with pytest.raises(
        CatalogError, match=r"2 photos do not .*bad_images=skip.*\n  a: empty\n  c: cut$"
    ):
        drop_bad_images(three, {0: "empty", 2: "cut"}, "error", Cleaning(rows=3))
    assert len(drop_bad_images(three, {}, "error", Cleaning(rows=3))) == 3


def test_ten_bad_images_are_named() -> None:
    frame = table(*[(f"photo{number}.jpg", "A") for number in range(12)])
    reasons = dict.fromkeys(range(12), "empty")
    with pytest.raises(CatalogError, match="12 photos do not decode") as caught:
        drop_bad_images(frame, reasons, "error", Cleaning(rows=12))
    assert str(caught.value).count(": empty") == 10


def test_equal_contents_under_two_labels(three: pd.DataFrame) -> None:
    frame = three.assign(content=["same", "other", "same"])
    cleaning = Cleaning(rows=3)
    assert list(drop_conflicting_contents(frame, cleaning)["image"]) == ["b"]
    assert cleaning.counts()["conflicting_contents"] == 2


def test_equal_contents_under_one_label_stay(three: pd.DataFrame) -> None:
    frame = three.assign(content=["same", "same", "3"])
    assert len(drop_conflicting_contents(frame, Cleaning(rows=3))) == 3


def test_small_groups() -> None:
    frame = table(
        *[(f"{label}{number}", label) for label in "ABC" for number in range(3)], ("d", "D")
    )
    cleaning = Cleaning(rows=10)
    assert set(drop_small_groups(frame, 3, cleaning)["label_group"]) == {"A", "B", "C"}
    assert cleaning.counts()["small_groups"] == 1


def test_one_label_is_not_enough(three: pd.DataFrame) -> None:
    with pytest.raises(CatalogError, match=r"at least 2 photos each, and 1 is left:\n +3 rows"):
        drop_small_groups(three, 2, Cleaning(rows=3))


def test_no_photo_left_is_not_enough(three: pd.DataFrame) -> None:
    cleaning = Cleaning(rows=3)
    frame = drop_bad_images(three, dict.fromkeys(range(3), "empty"), "skip", cleaning)
    frame = drop_conflicting_contents(frame, cleaning)
    with pytest.raises(CatalogError, match=r"and 0 are left:(.|\n)*3 that do not decode"):
        drop_small_groups(frame, 2, cleaning)


PHASH = "94974f937d4c2433"


def fill(*phashes: str | None) -> tuple[list[str], list[str], dict[str, int]]:
    """The filled column, the files whose phash was computed, and the notes."""
    frame = table(*[(name, "A") for name in "abcdefgh"[: len(phashes)]])
    frame["file"] = [Path(name) for name in frame["image"]]
    # As after cleaning: not every row number is there.
    frame.index = pd.Index([3 * row for row in range(len(frame))])
    if None not in phashes:
        frame["image_phash"] = pd.Series(phashes, index=frame.index, dtype=str)
    asked: list[str] = []

    def compute(files: list[Path]) -> list[str]:
        asked.extend(str(file) for file in files)
        return [f"{ord(str(file)):016x}" for file in files]

    cleaning = Cleaning(rows=len(frame))
    filled = fill_phashes(frame, compute, cleaning)
    assert list(filled.index) == list(frame.index)
    return list(filled["image_phash"]), asked, cleaning.notes


def test_valid_phashes_stay() -> None:
    assert fill(PHASH, "0" * 16) == ([PHASH, "0" * 16], [], {})


def test_phashes_in_capitals_are_the_same() -> None:
    assert fill(PHASH.upper(), PHASH) == ([PHASH] * 2, [], {})


def test_invalid_phashes_are_computed_again_and_noted() -> None:
    phashes, asked, notes = fill(PHASH, "", "94974f937d4c243", "g" * 16, PHASH * 2)
    assert asked == ["b", "c", "d", "e"]
    assert phashes == [PHASH, *[f"{ord(name):016x}" for name in asked]]
    assert notes == {"invalid_phashes": 4}


def test_missing_column_of_phashes_is_computed_and_not_noted() -> None:
    assert fill(None, None) == ([f"{97:016x}", f"{98:016x}"], ["a", "b"], {})


def test_invalid_phashes_are_a_line_for_people() -> None:
    cleaning = Cleaning(rows=1, notes={"invalid_phashes": 1234})
    assert "1,234 values of image_phash are invalid" in cleaning.lines()[-1]


def test_frames_of_the_caller_are_never_changed(folder: Path) -> None:
    names = "image label_group image_phash content"
    frame = table(
        ("b.jpg", "B", "", "1"),
        ("a.jpg", "A", "FF", "2"),
        ("a.jpg", "A", "0" * 16, "2"),
        ("sub/c.jpg", "B", "x", "3"),
        ("", "B", "x", "4"),
        ("absent.jpg", "A", "x", "5"),
        names=names,
    )
    cleaning = Cleaning(rows=len(frame))
    steps: list[Callable[[pd.DataFrame], pd.DataFrame]] = [
        lambda given: select_rows(given, 0, cleaning),
        lambda given: locate_files(given, folder, cleaning),
        lambda given: drop_bad_images(given, {0: "empty"}, "skip", cleaning),
        lambda given: drop_conflicting_contents(given, cleaning),
        lambda given: fill_phashes(given, lambda files: ["f" * 16] * len(files), cleaning),
    ]
    for step in steps:
        before = frame.copy(deep=True)
        result = step(frame)
        pd.testing.assert_frame_equal(frame, before)
        result["label_group"] = "changed"
        pd.testing.assert_frame_equal(frame, before)
        frame = step(frame)
    assert list(frame["image"]) == ["b.jpg", "sub/c.jpg"]


def test_written_catalogue_is_read_back(tmp_path: Path) -> None:
    header = ("posting_id", "image", "title", "label_group")
    rows = [("p1", "a.jpg", 'a, "b"\nc', "1"), ("p2", "b.jpg", "日本", "2")]
    frame = read_catalog(write_csv(tmp_path / "train.csv", header, rows))
    assert list(frame.itertuples(index=False, name=None)) == rows
