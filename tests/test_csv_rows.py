"""Rows, quotes and kinds of files: parsed in one way, or refused with line and advice."""

from __future__ import annotations

import bz2
import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from shopee_mlflow.data.catalog_csv import find_table, read_catalog, read_table
from shopee_mlflow.errors import CatalogError

Write = Callable[[str | bytes], Path]

HEADERS = {
    "posting_id,image,image_phash,title,label_group": "p{i},{i:02d}.jpg,,{title},{label}",
    "label_group,title,image": "{label},{title},{i:02d}.jpg",
    "title,image,label_group": "{title},{i:02d}.jpg,{label}",
    "image,label_group,title": "{i:02d}.jpg,{label},{title}",
    "image,label_group,price,title": "{i:02d},{label},7,{title}",
}
OPENS, CLOSES = '"12 inch screen', 'screen 12"'


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        file = tmp_path / "catalog.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


def shop(header: str, titles: dict[int, str]) -> str:
    """Forty rows; row ``i`` stands in line ``i + 2``."""
    row = HEADERS[header]
    rows = [
        row.format(i=i, title=titles.get(i, "plain phone"), label="RED" if i < 20 else "BLUE")
        for i in range(40)
    ]
    return "\n".join([header, *rows, ""])


@pytest.mark.fault
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    "titles",
    [{15: OPENS, 24: OPENS}, {15: OPENS, 24: CLOSES}, {15: OPENS, 16: CLOSES}, {15: OPENS}],
    ids=["opens-again", "closes-later", "closes-in-next", "never-closes"],
)
def test_a_quote_that_swallows_rows_is_refused_with_its_line(
    write: Write,
    header: str,
    titles: dict[int, str],
) -> None:
    with pytest.raises(CatalogError, match=r"is not valid CSV \(line 17: a quote opens a value"):
        read_catalog(write(shop(header, titles)))


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize(
    ("title", "read"),
    [
        (CLOSES, 'screen 12"'),
        ('12" screen', '12" screen'),
        ('"12"" screen"', '12" screen'),
        ('"a, b\nand ""c"""', 'a, b\nand "c"'),
        ('"a.\r\nb.\r\n\r\nc, d"', "a.\nb.\n\nc, d"),
        ('"ORIGINAL" screen', "ORIGINAL screen"),
        ('"screen" ', "screen"),
    ],
)
def test_quotes_with_one_meaning_are_read(
    write: Write,
    header: str,
    title: str,
    read: str,
) -> None:
    frame = read_catalog(write(shop(header, {15: title, 24: title})))
    assert len(frame) == 40
    assert (frame["title"][15], frame["title"][16]) == (read, "plain phone")
    assert frame["label_group"].tolist() == ["RED"] * 20 + ["BLUE"] * 20


@pytest.mark.fault
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('a.jpg,A,t\nb.jpg,"B\nC",t\n', r"label_group holds a line break .* row of line 3;"),
        ('a.jpg,A,t\n"b\r.jpg",B,t\n', r"column image holds a line break .* row of line 3;"),
        ("a.jpg,A\0,t\nb.jpg,B\x1b[31m,t\nc.jpg,C,t\n", r"label_group .* rows of line 2, 3;"),
        ("a\x07.jpg,A,t\n", r"column image holds a control character in the row of line 2;"),
        ("a.jpg,A\x85B,t\n", r"label_group holds a control character"),
        ('a.jpg,A,"t\nu"\nb.jpg,B\x01C,t\n', r"row of line 4;"),
        ("a.jpg,A,t\nb.jpg,B,t,u\n", r"line 3: 4 fields, but the header has 3; put quotes"),
        ("a.jpg,A,t,\n", r"line 2: 4 fields, but the header has 3; remove the last comma"),
        ('a.jpg,A,"t" u, v\n', r"line 2: text follows a quoted value"),
        (
            "a.jpg,A," + "x" * 700_000 + "\n" + 'b.jpg,A,"' + "x\n" * 600_000,
            "line 3: a value is lo",
        ),
    ],
)
def test_rows_that_cannot_be_written_back_are_refused_with_their_lines(
    write: Write,
    rows: str,
    message: str,
) -> None:
    with pytest.raises(CatalogError, match=message):
        read_catalog(write("image,label_group,title\n" + rows))


def test_titles_read_back_equal_from_the_tables_they_are_written_to(
    write: Write, tmp_path: Path
) -> None:
    rows = 'a.jpg,A,"t\ru\r\nv"\nb.jpg,B,nul\0 and \x1b[2J\n'
    frame = read_catalog(write("image,label_group,title\n" + rows))
    assert frame["title"].tolist() == ["t\nu\nv", "nul\ufffd and \ufffd[2J"]
    frame.to_csv(tmp_path / "table.csv", index=False, lineterminator="\n")
    back = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(back, frame)


def test_tabs_and_odd_unicode_stay_in_labels(write: Write) -> None:
    labels = ["a\tb", "\u202eevil", "zero\u200bwidth", "=1+1", 'a"b', "line\u2028separator"]
    rows = "".join(f"{i}.jpg,{label}\n" for i, label in enumerate(labels))
    assert read_catalog(write("image,label_group\n" + rows))["label_group"].tolist() == labels


def zipped(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, "image,label_group\n")
    return stream.getvalue()


PLAIN = b"image,label_group\na.jpg,A\n"
KINDS = [
    (gzip.compress(PLAIN)[:-12], "is a damaged gzip file"),
    (gzip.compress(b"PAR1" + bytes(200)), "is a Parquet file"),
    (b"PAR1\x15\x04" + bytes(range(200)) + b"PAR1", "is a damaged Parquet file"),
    (b'[{"image":"00.jpg",', "is not valid JSON"),
    (b'{"image":"00.jpg","label_group":"A"}\n{"image"\n', r"is not JSON lines \(line 2: "),
    (b'{"image":"00.jpg","label_group":"A"}\n7\n', "line 2 is no JSON object"),
    (b'{"image":{"bytes":"x"},"label_group":"A"}\n', "column image holds a dict in line 1"),
    (bz2.compress(PLAIN), "is a bzip2 file. Unpack it with: bunzip2 -k"),
    (zipped("train.csv"), "is a zip archive. Unpack it with: python -m zipfile -e"),
    (zipped("xl/workbook.xml"), "is an Excel workbook. Save it as 'CSV UTF-8'"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), r"is an Excel workbook \(.xls\)"),
    (zipped("archive/data.pkl"), "is a PyTorch file.*belong to the option weights"),
    (b"\x80\x02\x8a\nl\xfc", "is a Python pickle, perhaps with weights"),
    (b"\x10" + bytes(7) + b'{"__metadata__"', "is a safetensors file.*option weights"),
    (zipped("a.npy"), "is an archive of NumPy arrays"),
    (b"\x93NUMPY\x01", "is a NumPy array"),
    (b"\xff\xd8\xff\xe0", "is a photo. Name a table of photos with their labels"),
    (b"\x89PNG\r\n\x1a\n", "is a photo"),
    (b"GIF89a", "is a photo"),
    (b"BM\x36\x30" + bytes(6), "is a photo"),
    (b"II*\0\x08", "is a photo"),
    (b"RIFF\x24\0\0\0WEBPVP8 ", "is a photo"),
    (bytes(3) + b"\x1cftypavif", "is a photo"),
    (bytes(3) + b"\x1cftypisom", "is a video"),
    (bytes(range(256)), "is a binary file"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer.*git lfs pull"),
    (b"\n<!DOCTYPE html><html>", "an HTML or XML page. The download failed"),
    (b"'image','label_group'\n'a','A'\n", "in single quotes"),
    (b"# exported\nimage,label_group\na,A\n", "Remove the comment"),
    (b"a.jpg,A\nb.jpg,B\n", "The header is missing"),
]


@pytest.mark.fault
@pytest.mark.parametrize(("content", "advice"), KINDS, ids=range(len(KINDS)))
def test_other_kinds_of_files_are_named_with_what_helps(
    write: Write,
    content: bytes,
    advice: str,
) -> None:
    with pytest.raises(CatalogError, match=advice):
        read_catalog(write(content))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("options.yaml", "is a YAML file. A file of options belongs to the option config."),
        ("shop.ipynb", "is a Jupyter notebook"),
        ("shop.py", "is a Python program"),
        ("model.onnx", "is an ONNX model"),
    ],
)
def test_files_of_text_that_are_no_tables_are_named(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / name
    file.write_text('{"cells": []}')
    with pytest.raises(CatalogError, match=kind):
        read_catalog(file)


def test_a_column_named_like_the_first_bytes_of_a_photo(write: Write) -> None:
    assert len(read_catalog(write("BM,image,label_group\n1,a.jpg,A\n"))) == 1


def test_a_packed_catalogue_in_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv.zip").write_bytes(zipped("train.csv"))
    with pytest.raises(CatalogError, match=r"holds no train\.csv, but train\.csv\.zip\. If"):
        find_table(str(tmp_path))


def test_columns_that_are_not_read_are_named_once(write: Write) -> None:
    file = write("image,fold, price ,label_group,price,\na.jpg,test,1,A,2,\n")
    assert read_table(file).unused == ["fold", "price"]


@pytest.mark.fault
def test_halves_of_surrogate_pairs_in_json_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text('{"image": "a.jpg", "label_group": "\\ud800", "title": "\\udfff"}\n')
    with pytest.raises(CatalogError, match="column label_group is not UTF-8"):
        read_catalog(file)
    assert "\ufffd" in read_catalog(file, ("image",))["title"][0]
