"""Reviewed labels: relabelled, dropped and confirmed photos; mistakes in the list."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import MakeCatalog, draw_photo, write_csv

from shopee_mlflow import ExploreConfig, explore
from shopee_mlflow.cli import main
from shopee_mlflow.data.dataset import Dataset, load_dataset
from shopee_mlflow.errors import CatalogError

HEADER = ("image", "label_group", "action", "new_label_group")
Rows = list[tuple[str, ...]]


@pytest.fixture
def shop(make_catalog: MakeCatalog) -> Path:
    return make_catalog(groups=3, each=10)


def load(shop: Path, rows: Rows, **options: object) -> Dataset:
    """The catalogue with these corrections."""
    file = write_csv(shop / "reviewed.csv", HEADER, rows)
    return load_dataset(str(shop), image_size=32, corrections=str(file), **options)


def labels(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.frame["image"], dataset.frame["label_group"], strict=True))


def test_photos_are_relabelled_dropped_and_kept(shop: Path) -> None:
    whole = load_dataset(str(shop), image_size=32)
    rows = [
        ("g0n1.png", "group0", "relabel", "group2"),
        ("g1n2.png", "group1", " Drop ", "group2"),
        ("g2n3.png", "group2", "keep", ""),
        ("g2n4.png", "group2", "", "group1"),
        ("g0n1.png", "group0", "relabel", "group2"),
    ]
    dataset = load(shop, rows)
    expected = {**labels(whole), "g0n1.png": "group2"}
    del expected["g1n2.png"]
    assert labels(dataset) == expected
    counts = dataset.cleaning.counts()
    assert (counts["dropped_by_corrections"], counts["relabelled_photos"]) == (1, 1)
    assert counts["confirmed_labels"] == 1
    text = "\n".join(dataset.lines())
    assert "29 left: 1 that" in text
    assert "1 photos have a new label group from the corrections" in text
    assert [r.step for r in dataset.cleaning.left_out] == ["dropped_by_corrections"]
    assert dataset.digest != whole.digest
    applied = dataset.cleaning.corrections
    assert applied is not None
    assert applied.to_numpy().tolist() == [
        ["g0n1.png", "group0", "relabel", "group2"],
        ["g1n2.png", "group1", "drop", ""],
        ["g2n3.png", "group2", "keep", ""],
    ]


def test_labels_that_are_confirmed_leave_the_digest_as_it_is(shop: Path) -> None:
    dataset = load(shop, [("g2n3.png", "group2", "keep", "")])
    assert dataset.digest == load_dataset(str(shop), image_size=32).digest


def test_corrections_come_before_all_cleaning(shop: Path) -> None:
    # A file of two groups, of which one row is dropped, and a group that becomes large enough.
    table = shop / "train.csv"
    draw_photo(3, 1).save(shop / "train_images" / "few.png")
    rows = "q,g0n1.png,title,group1\nr,few.png,title,few\nr,few.png,again,few\n"
    table.write_text(table.read_text() + rows)
    assert "g0n1.png" not in labels(load_dataset(str(shop), image_size=32))
    found = labels(
        load(
            shop,
            [
                ("g0n1.png", "group1", "drop", ""),
                ("g0n2.png", "group0", "relabel", "few"),
                ("g0n3.png", "group0", "relabel", "few"),
            ],
        )
    )
    assert found["g0n1.png"] == "group0"
    assert [name for name, label in found.items() if label == "few"] == [
        "few.png",
        "g0n2.png",
        "g0n3.png",
    ]


def test_the_name_of_a_group_comes_with_its_label(shop: Path) -> None:
    table = pd.read_csv(shop / "train.csv").assign(label_name=lambda t: "name " + t["label_group"])
    table.to_csv(shop / "train.csv", index=False)
    frame = load(shop, [("g0n1.png", "group0", "relabel", "group2")]).frame.set_index("image")
    assert frame.loc["g0n1.png", "label_name"] == "name group2"
    assert frame.loc["g0n2.png", "label_name"] == "name group0"


def test_labels_that_look_like_formulas_and_semicolons_are_read(shop: Path) -> None:
    table = shop / "train.csv"
    table.write_text(table.read_text().replace(",group0", ",=group0"))
    file = shop / "list.csv"
    file.write_bytes(
        b"\xef\xbb\xbfImage;label_group;Action;new_label_group;note\r\n"
        b"g0n1.png;'=group0;RELABEL;group1;a, b\r\ng1n1.png;group1;relabel;'=group0;\r\n"
    )
    dataset = load_dataset(str(shop), image_size=32, corrections=str(file))
    assert labels(dataset)["g0n1.png"] == "group1"
    assert labels(dataset)["g1n1.png"] == "=group0"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("no.png", "group0", "drop", "")], "line 2: the catalogue has no photo 'no.png'"),
        (
            [("g0n1.png", "group0", "keep", ""), ("g1n1.png", "group1", "relabel", "gruop2")],
            "1 problem; nothing was corrected:\n  line 3: the catalogue has no label group "
            "'gruop2'; did you mean 'group2'",
        ),
        (
            [("g0n1.png", "group0", "keep", ""), ("g0n1.png", "group0", "drop", "")],
            "line 3: g0n1.png is to drop, but line 2 says keep",
        ),
        (
            [
                ("g0n1.png", "group0", "relabel", "group1"),
                ("g0n1.png", "group0", "relabel", "group2"),
            ],
            "line 3: g0n1.png is to get the label group 'group2', but line 2 says get the label "
            "group 'group1'",
        ),
        (
            [("g0n1.png", "group1", "drop", "")],
            "line 2: g0n1.png has the label group 'group0' in the catalogue, not 'group1'",
        ),
        ([("g0n1.png", "group0", "remove", "")], "line 2: action 'remove' must be relabel, drop"),
        ([("g0n1.png", "group0", "relabel", "")], "new_label_group is empty"),
        ([("g0n1.png", "group0", "relabel", "group0")], "already; use keep"),
        ([("", "group0", "drop", "")], "line 2: the catalogue has no photo ''"),
        ([("g0n1.png", "group0", "", "group1")], "no row has an action"),
        ([(f"no{n}.png", "group0", "drop", "") for n in range(13)], "13 problems.*and 3 more"),
        ([], "no row has an action"),
    ],
)
def test_mistakes_in_the_list_are_named_with_their_lines(
    shop: Path, rows: Rows, message: str
) -> None:
    with pytest.raises(CatalogError, match=f"(?s){message.replace('(', '[(]')}"):
        load(shop, rows)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. A list of corrections has the columns image, label_group"),
        (b"image,label\na.png,b\n", "lacks the columns label_group, action; its columns are image"),
        (b"image,label_group,action,image\na.png,b,keep,c\n", "has the column image twice"),
        (b"image,label_group,action\ng0n1.png,gr\xe4n,drop\n", "is not UTF-8 .line 2.; save"),
        (b"image,label_group,action\ng0n1.png,group0,relabel\n", "line 2: .*is empty"),
        (b'image,label_group,action\n"g0n1.png,group0,drop\n', "line 2: a quote opens a value"),
    ],
)
def test_files_that_are_no_list_of_corrections_are_refused(
    shop: Path, content: bytes, message: str
) -> None:
    file = shop / "list.csv"
    file.write_bytes(content)
    with pytest.raises(CatalogError, match=message):
        load_dataset(str(shop), image_size=32, corrections=str(file))


@pytest.mark.fault
@pytest.mark.parametrize("verb", ["train", "tune", "cross-validate", "experiments", "explore"])
@pytest.mark.parametrize(("name", "reason"), [("no.csv", "no such file"), (".", "it is a folder")])
def test_a_list_that_is_missing_is_an_error_before_anything_else(
    shop: Path, verb: str, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [] if verb == "explore" else ["--model", "cnn"]
    with pytest.raises(SystemExit) as leaving:
        main([verb, "--data", str(shop), "--corrections", name, *options])
    assert leaving.value.code == 2
    assert f"corrections={name}: cannot be read ({reason})" in capsys.readouterr().err


@pytest.mark.slow
def test_explore_describes_the_corrected_catalogue(shop: Path) -> None:
    rows = [("g0n1.png", "group0", "relabel", "group2"), ("g1n2.png", "group1", "drop", "")]
    file = write_csv(shop / "reviewed.csv", HEADER, rows)
    found = explore(ExploreConfig(data=str(shop), corrections=str(file)))
    sizes = found.tables["groups.csv"].set_index("label_group")["rows"]
    assert sizes.to_dict() == {"group0": 9, "group1": 9, "group2": 11}
    steps = found.tables["cleaning.csv"].set_index("step")["removed"]
    assert steps["dropped_by_corrections"] == 1
