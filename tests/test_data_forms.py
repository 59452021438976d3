"""Data as people have it: class folders, tables of any kind, given splits, lists to leave out."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import MakeCatalog, draw_photo

from shopee_mlflow.data import photo_sources
from shopee_mlflow.data.catalog_csv import read_catalog, read_table
from shopee_mlflow.data.catalog_forms import check_paths, load_catalog
from shopee_mlflow.data.class_folders import read_class_folders
from shopee_mlflow.data.columns import ColumnChoice
from shopee_mlflow.data.dataset import Dataset, load_dataset
from shopee_mlflow.data.photo_sources import find_photos
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.errors import CatalogError, ConfigError


def load(data: Path | str, **options: object) -> Dataset:
    return load_dataset(DataConfig(data=str(data), image_size=32, **options))


def rows_of(data: Path | str, **options: object) -> pd.DataFrame:
    return load_catalog(DataConfig(data=str(data), **options), lambda title: None).rows


def said(dataset: Dataset) -> str:
    return "\n".join(dataset.lines())


@pytest.fixture
def shop(make_catalog: MakeCatalog) -> Path:
    return make_catalog(groups=3, each=10)


@pytest.fixture
def table(shop: Path) -> pd.DataFrame:
    return pd.read_csv(shop / "train.csv", dtype=str)


WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "train.csv": lambda t, f: t.to_csv(f, index=False),
    "semicolons.csv": lambda t, f: t.to_csv(f, index=False, sep=";"),
    "tabs.tsv": lambda t, f: t.to_csv(f, index=False, sep="\t"),
    "bars.csv": lambda t, f: t.to_csv(f, index=False, sep="|"),
    "excel.csv": lambda t, f: f.write_bytes(b"sep=;\r\n" + t.to_csv(index=False, sep=";").encode()),
    "train.csv.gz": lambda t, f: t.to_csv(f, index=False),
    "train.parquet": lambda t, f: t.to_parquet(f),
    "lines.jsonl": lambda t, f: t.to_json(f, orient="records", lines=True),
    "lines.jsonl.gz": lambda t, f: t.to_json(f, orient="records", lines=True),
    "items.json": lambda t, f: t.to_json(f, orient="records", indent=1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_table_gives_the_same_data(
    shop: Path, table: pd.DataFrame, name: str
) -> None:
    before = load(shop)
    (shop / "train.csv").unlink()
    WRITERS[name](table, shop / name)
    for data in (shop / name, shop):
        after = load(data)
        assert after.digest == before.digest
        assert after.source == shop / name
        pd.testing.assert_frame_equal(after.frame, before.frame)
    frame = read_catalog(shop / name)
    assert [photo.name for photo in find_photos(str(shop / name)).photos] == list(
        frame["posting_id"]
    )


@pytest.mark.fault
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_quotes_that_swallow_rows_are_refused_with_any_separator(
    tmp_path: Path, separator: str
) -> None:
    rows = [["image", "title", "label"]]
    rows += [[f"{n}.jpg", '"12 inch' if n in (3, 6) else "plain", "A"] for n in range(9)]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(separator.join(row) for row in rows))
    with pytest.raises(CatalogError, match=r"line 5: a quote opens a value"):
        read_catalog(file)
    file.write_text(file.read_text().replace('"', "") + separator.join(["", "", "", "x"]))
    with pytest.raises(CatalogError, match=r"line 10: 6 fields, but the header has 3; put quotes"):
        read_catalog(file)


def test_values_that_are_no_text_become_what_a_csv_would_hold(tmp_path: Path) -> None:
    rows = pd.DataFrame({"image": ["a", "b", "c"], "label": pd.array([7, None, 70], dtype="Int64")})
    rows["title"] = [True, 1.5, None]
    file = tmp_path / "a.jsonl"
    lines = [
        {"image": i, "label": label, "title": title}
        for i, label, title in (("a", 7, True), ("b", None, 1.5), ("c", 70, None))
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert read_catalog(file)["label_group"].tolist() == ["7", "", "70"]
    assert read_catalog(file)["title"].tolist() == ["true", "1.5", ""]
    rows[["image", "label"]].to_parquet(tmp_path / "a.parquet")
    assert read_catalog(tmp_path / "a.parquet")["label_group"].tolist() == ["7", "", "70"]


def test_line_breaks_in_labels_are_refused_by_row_in_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pd.DataFrame({"image": ["a", "b"], "label": ["A", "B\nC"]}).to_parquet(file)
    with pytest.raises(CatalogError, match="label_group holds a line break .* in row 2; remove"):
        read_catalog(file)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    pd.DataFrame({"image": ["a"], "label": ["A"]}).to_parquet(file)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(CatalogError, match="needs the package pyarrow. .*pip install pyarrow"):
        read_catalog(file)


@pytest.mark.parametrize(
    ("header", "read"),
    [
        ("image,label", ["a.jpg", "A"]),
        ("filename,class", ["a.jpg", "A"]),
        ("Image,Label_Group", ["a.jpg", "A"]),
        ("File Name,Category", ["a.jpg", "A"]),
        ("path,label_group", ["a.jpg", "A"]),
    ],
)
def test_usual_names_of_two_columns_need_no_option(
    tmp_path: Path, header: str, read: list[str]
) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f"{header}\na.jpg,A\n")
    found = read_table(file)
    assert found.rows[["image", "label_group"]].iloc[0].tolist() == read
    assert found.unused == []


def test_a_guess_is_said(shop: Path, table: pd.DataFrame) -> None:
    renamed = table.rename(columns={"image": "filename", "label_group": "class"})
    renamed.to_csv(shop / "train.csv", index=False)
    text = said(load(shop))
    assert "column 'filename' is read as image; to read another, name it with image_column" in text
    assert "column 'class' is read as label_group; to read another, name it with label_col" in text


@pytest.mark.fault
@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,label,category", "several columns may hold the labels: 'label', 'category'. Name"),
        ("file,path,label", "hold the file names of the photos: 'file', 'path'. Name one with the"),
        ("image,kind,price", "label_group is missing; found: 'image', 'kind', 'price'. Name the"),
        ("shot,label,price", "column of the file names of the photos with the option image_column"),
    ],
)
def test_columns_that_are_uncertain_name_the_option(
    tmp_path: Path, header: str, message: str
) -> None:
    file = tmp_path / "list.csv"
    file.write_text(f"{header}\na.jpg,A,B\n")
    with pytest.raises(CatalogError, match=message):
        read_catalog(file)


def test_columns_are_named_by_options(shop: Path, table: pd.DataFrame) -> None:
    before = load(shop)
    names = {"image": "shot", "label_group": "kind", "title": "words"}
    odd = table.rename(columns=names).assign(label="x", category="y")
    odd.to_csv(shop / "train.csv", index=False)
    options = {"image_column": "shot", "label_column": "kind", "title_column": "words"}
    after = load(shop, **options)
    pd.testing.assert_frame_equal(after.frame, before.frame)
    assert after.digest == before.digest
    assert "not used: label, category" in said(after)
    with pytest.raises(CatalogError, match="label_column=sort: no such column; the columns are"):
        load(shop, **{**options, "label_column": "sort"})
    choice = ColumnChoice(image="shot")
    assert len(read_catalog(shop / "train.csv", ("image",), choice)) == 30
    assert len(find_photos(str(shop / "train.csv"), image_column="shot").photos) == 30


@pytest.mark.parametrize("folder", ["images", "photos", "list_images", "."])
def test_photos_beside_a_table_are_found(shop: Path, table: pd.DataFrame, folder: str) -> None:
    place = shop / "new"
    place.mkdir()
    shutil.copytree(shop / "train_images", place / folder, dirs_exist_ok=True)
    table[["image", "label_group"]].to_csv(place / "list.csv", index=False)
    assert len(load(place).frame) == len(load(place / "list.csv").frame) == 30
    assert len(find_photos(str(place / "list.csv")).photos) == 30


def class_folders(shop: Path, table: pd.DataFrame, pattern: str) -> Path:
    """The shop's photos copied into folders by label; ``{split}`` is every tenth val and test."""
    place = shop.parent / "folders"
    for number, (image, label) in enumerate(zip(table["image"], table["label_group"], strict=True)):
        split = {8: "valid", 9: "test"}.get(number % 10, "train")
        file = place / pattern.format(label=label, split=split) / image
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shop / "train_images" / image, file)
    return place


@pytest.mark.fault
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"is empty\. Needed is a folder of photos for each label group"),
        (["deep/below/"], "is empty"),
        (["a.md", "b/c.py"], r"holds 2 files \(\.md, \.py\) but no photos"),
        (["a.jpg"], "holds 1 photo, but no label groups"),
        (["mug/a.jpg", "mug/b.jpg"], "holds 2 photos in mug/, but no label groups"),
        (["MLmodel", "data/model.pth"], "is a logged model, not a catalogue"),
        (["a.jpg", "shop.xlsx"], r"holds no train\.csv, but shop\.xlsx"),
    ],
)
def test_folders_without_a_catalogue_are_described(
    tmp_path: Path, files: list[str], message: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for name in files:
        file = place / name
        (file if name.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            file.write_text("x")
    with pytest.raises(CatalogError, match=message):
        load(place)


def test_a_mistyped_path_proposes_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    near = tmp_path / "shop"
    with pytest.raises(CatalogError, match=rf"shpo: no such file.*\. Did you mean {near}\?$"):
        load(tmp_path / "shpo")
    with pytest.raises(CatalogError, match=r"no such file or folder.* Name a folder with train"):
        load(tmp_path / "elsewhere" / "photos")


@pytest.mark.parametrize("name", ["empty", "notes.py"])
def test_what_is_no_catalogue_is_named_before_weights_are_downloaded(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.py").write_text("import os")
    with pytest.raises(CatalogError, match=r"(is empty|is a Python program)\. "):
        check_paths(DataConfig(data=str(tmp_path / name)))


@pytest.mark.parametrize("pattern", ["{label}", "inner/{label}", "."])
def test_class_folders(shop: Path, table: pd.DataFrame, pattern: str) -> None:
    place = class_folders(shop, table, pattern)
    if pattern == ".":
        with pytest.raises(CatalogError, match=r"holds 30 photos, but no label groups\. Needed is"):
            load(place)
        return
    (place / pattern.format(label="group0") / ".DS_Store").write_text("mac")
    (place / pattern.format(label="group0") / "notes.txt").write_text("no photo")
    dataset = load(place)
    assert dataset.classes == ["group0", "group1", "group2"]
    assert len(dataset.frame) == 30
    assert dataset.frame["image"][0] == "group0/g0n0.png"
    assert sorted(dataset.frame["content"]) == sorted(load(shop).frame["content"])
    assert "2 files were skipped as not photos: 1 without suffix, 1 .txt" in said(dataset)
    assert len(find_photos(str(place)).photos) == 30


def test_class_folders_with_a_split(shop: Path, table: pd.DataFrame) -> None:
    place = class_folders(shop, table, "{split}/{label}")
    dataset = load(place)
    assert [len(dataset.rows(split)) for split in ("train", "val", "test")] == [24, 3, 3]
    assert dataset.classes == ["group0", "group1", "group2"]
    held = dataset.frame.set_index("image")["split"]
    assert held["test/group1/g1n9.png"] == "test"
    assert held["valid/group1/g1n8.png"] == "val"
    assert "the split is taken from the folders train, val and test" in said(dataset)
    assert sorted(rows_of(place, split_column="none")) == ["image", "label_group"]


def test_labels_named_like_a_split_are_labels(shop: Path, table: pd.DataFrame) -> None:
    place = class_folders(shop, table, "{label}")
    (place / "group0").rename(place / "test")
    assert load(place).classes == ["group1", "group2", "test"]


@pytest.mark.fault
def test_nested_class_folders_are_asked_about(shop: Path, table: pd.DataFrame) -> None:
    place = class_folders(shop, table, "{label}")
    for name, aisle in (("group0", "food"), ("group1", "food"), ("group2", "home")):
        (place / aisle).mkdir(exist_ok=True)
        (place / name).rename(place / aisle / name)
    with pytest.raises(CatalogError, match="may be 'food' or 'food/group0'. Choose one with label"):
        load(place)
    assert load(place, label_folder="first").classes == ["food", "home"]
    assert load(place, label_folder="path").classes == [
        *("food/group0", "food/group1", "home/group2")
    ]


def test_folders_below_a_class_folder_belong_to_it(shop: Path, table: pd.DataFrame) -> None:
    place = class_folders(shop, table, "{label}")
    more = place / "group0" / "2021"
    more.mkdir()
    (place / "group0" / "g0n1.png").rename(more / "g0n1.png")
    (place / "loose.png").write_bytes((place / "group1" / "g1n1.png").read_bytes())
    dataset = load(place)
    assert dataset.classes == ["group0", "group1", "group2"]
    assert "group0/2021/g0n1.png" in set(dataset.frame["image"])
    assert dataset.cleaning.counts()["incomplete_rows"] == 1


def test_a_table_in_a_folder_of_photo_folders_is_read(shop: Path, table: pd.DataFrame) -> None:
    (shop / "test_images").mkdir()
    shutil.copy(shop / "train_images" / "g0n0.png", shop / "test_images" / "x.png")
    (shop / "train.csv").rename(shop / "labels.csv")
    assert load(shop).source == shop / "labels.csv"


def with_split(table: pd.DataFrame, names: tuple[str, str, str]) -> pd.DataFrame:
    number = table["image"].str.extract(r"n(\d+)")[0].astype(int)
    return table.assign(split=[names[max(0, n - 7)] for n in number])


@pytest.mark.parametrize(
    ("column", "names", "options"),
    [
        ("split", ("train", "val", "test"), {}),
        ("Split", ("Training", "validation", "TEST"), {}),
        ("fold", ("train", "dev", "tst"), {"split_column": "fold"}),
    ],
)
def test_a_split_column_is_the_split(
    shop: Path,
    table: pd.DataFrame,
    column: str,
    names: tuple[str, str, str],
    options: dict[str, str],
) -> None:
    drawn = load(shop)
    split = with_split(table, names).rename(columns={"split": column})
    split.to_csv(shop / "train.csv", index=False)
    dataset = load(shop, **options)
    assert set(dataset.frame.loc[dataset.rows("test"), "image"]) == {
        f"g{g}n9.png" for g in (0, 1, 2)
    }
    assert set(dataset.frame.loc[dataset.rows("val"), "image"]) == {
        f"g{g}n8.png" for g in (0, 1, 2)
    }
    assert len(dataset.rows("train")) == 24
    assert f"the split is taken from column '{column}'" in said(dataset)
    assert dataset.digest != drawn.digest
    assert load(shop, split_column="none").digest == drawn.digest


@pytest.mark.fault
def test_copies_across_a_given_split_are_counted(shop: Path, table: pd.DataFrame) -> None:
    photos = shop / "train_images"
    for copy, of in (("g0n9", "g0n1"), ("g1n9", "g1n8"), ("g2n8", "g2n2"), ("g1n8", "g1n3")):
        shutil.copy(photos / f"{of}.png", photos / f"{copy}.png")
    shutil.copy(photos / "g1n8.png", photos / "g1n9.png")
    with_split(table, ("train", "val", "test")).to_csv(shop / "train.csv", index=False)
    dataset = load(shop)
    assert dataset.leaks == 2
    counts = dataset.cleaning.counts()
    assert (counts["val_leaks"], counts["val_leaks_into_test"]) == (2, 1)
    assert "2 of 3 test photos have a copy in train" in said(dataset)
    assert "2 val photos have a copy in train" in said(dataset)
    assert "1 test photos have a copy in val" in said(dataset)


def test_a_split_that_is_not_given_is_drawn_from_train(shop: Path, table: pd.DataFrame) -> None:
    with_split(table, ("train", "train", "test")).to_csv(shop / "train.csv", index=False)
    dataset = load(shop)
    assert set(dataset.frame.loc[dataset.rows("test"), "image"]) == {
        f"g{g}n9.png" for g in (0, 1, 2)
    }
    assert len(dataset.rows("val")) == 3
    assert "val is not given: 3 photos are drawn from train" in said(dataset)
    assert load(shop, split_seed=1).digest != dataset.digest


def test_an_empty_column_split_is_no_split(shop: Path, table: pd.DataFrame) -> None:
    drawn = load(shop)
    table.assign(split="").to_csv(shop / "train.csv", index=False)
    assert load(shop).digest == drawn.digest


@pytest.mark.fault
def test_splits_that_cannot_be_used(shop: Path, table: pd.DataFrame) -> None:
    def write(names: tuple[str, str, str]) -> None:
        with_split(table, names).to_csv(shop / "train.csv", index=False)

    write(("train", "vla", "test"))
    with pytest.raises(CatalogError, match="'split' holds 1 value other than .*: 'vla'. Correct"):
        load(shop)
    write(("a", "b", "c"))
    assert "column 'split' is not used: its values (a, b, c, ...)" in said(load(shop))
    with pytest.raises(CatalogError, match="'split' holds 3 values other than"):
        load(shop, split_column="split")
    write(("val", "val", "test"))
    with pytest.raises(CatalogError, match="in groups without a photo in train"):
        load(shop)


def test_rows_without_a_split_and_groups_without_train_are_counted(
    shop: Path, table: pd.DataFrame
) -> None:
    split = with_split(table, ("train", "val", "test"))
    split.loc[split["image"] == "g0n0.png", "split"] = ""
    split.loc[split["label_group"] == "group2", "split"] = "test"
    split.to_csv(shop / "train.csv", index=False)
    dataset = load(shop)
    counts = dataset.cleaning.counts()
    assert (counts["without_split"], counts["untrained_groups"]) == (1, 10)
    assert dataset.classes == ["group0", "group1"]


@pytest.mark.fault
def test_a_file_in_two_splits_is_tested_and_not_trained_on(shop: Path, table: pd.DataFrame) -> None:
    split = with_split(table, ("train", "val", "test"))
    again = split[split["image"].isin(["g0n9.png", "g1n8.png"])].assign(split="train")
    pd.concat([again, split]).to_csv(shop / "train.csv", index=False)
    dataset = load(shop)
    held = dataset.frame.set_index("image")["split"]
    assert (held["g0n9.png"], held["g1n8.png"]) == ("test", "val")
    assert "2 files are in several splits; each stays in test, else in val" in said(dataset)


def test_separate_tables_are_the_split(shop: Path, table: pd.DataFrame) -> None:
    split = with_split(table, ("train", "val", "test"))
    split.to_csv(shop / "train.csv", index=False)
    before = load(shop)
    for name in ("train", "val", "test"):
        part = split.loc[split["split"] == name, ["image", "label_group"]]
        part.to_csv(shop / f"{name}.csv", index=False)
    after = load(shop, val_csv=str(shop / "val.csv"), test_csv=str(shop / "test.csv"))
    assert after.digest == before.digest
    assert "the split is taken from train.csv, val.csv, test.csv" in said(after)
    only = load(shop, test_csv=str(shop / "test.csv"))
    assert len(only.rows("test")) == 3
    assert "val is not given" in said(only)
    with pytest.raises(CatalogError, match=r"val_csv=gone\.csv: no such file"):
        load(shop, val_csv="gone.csv")
    with pytest.raises(ConfigError, match="test_csv=x.csv: the built-in sample"):
        DataConfig(test_csv="x.csv")


def test_separate_tables_with_photos_of_their_own(shop: Path, table: pd.DataFrame) -> None:
    split = with_split(table, ("train", "train", "test"))
    (shop / "test_images").mkdir()
    for name in ("train", "test"):
        part = split.loc[split["split"] == name, ["image", "label_group"]]
        part.to_csv(shop / f"{name}.csv", index=False)
    for image in split.loc[split["split"] == "test", "image"]:
        (shop / "train_images" / image).rename(shop / "test_images" / image)
    # A file name that both folders have.
    draw_photo(0, 77).save(shop / "train_images" / "g0n9.png")
    dataset = load(shop, test_csv=str(shop / "test.csv"))
    held = dataset.frame.loc[dataset.rows("test"), "image"]
    assert list(held) == [f"test_images/g{g}n9.png" for g in (0, 1, 2)]
    assert len(dataset.frame) == 30


def test_a_list_of_photos_is_left_out(shop: Path, table: pd.DataFrame) -> None:
    whole = load(shop)
    file = shop / "list.txt"
    file.write_text("g0n1.png\n\n  p1_2 \ng0n1.png\nnobody.png\n")
    dataset = load(shop, exclude=str(file))
    assert dataset.cleaning.counts()["excluded"] == 2
    assert {"g0n1.png", "g1n2.png"}.isdisjoint(dataset.frame["image"])
    assert "28 left: 2 in the list" in said(dataset)
    assert "1 of 3 names in" in said(dataset)
    assert "not an image or posting_id of the catalogue: nobody.png" in said(dataset)
    # Only line ends separate names.
    file.write_text("g0n1.png\u2028g0n2.png\ng0n3.png\n")
    assert load(shop, exclude=str(file)).cleaning.counts()["excluded"] == 1
    assert dataset.digest != whole.digest
    assert len(dataset.cleaning.left_out) == 2
    file.write_text("\n")
    with pytest.raises(CatalogError, match="is empty; use exclude=none"):
        load(shop, exclude=str(file))
    with pytest.raises(CatalogError, match=r"exclude=gone\.txt: cannot be read .No such file"):
        load(shop, exclude="gone.txt")


def test_what_largest_groups_leaves_out_is_said(shop: Path) -> None:
    text = said(load(shop, largest_groups=2))
    assert "keeping 2 of 3 label groups, 20 of 30 photos; largest_groups=0 keeps all" in text
    assert "keeping" not in said(load(shop, largest_groups=3))


def test_a_packed_table_reads_like_the_table(tmp_path: Path) -> None:
    plain = b'image,label_group,title\na.jpg,007,"x, y"\n'
    (tmp_path / "a.csv").write_bytes(plain)
    # Whatever the name says.
    (tmp_path / "b.csv").write_bytes(gzip.compress(plain))
    pd.testing.assert_frame_equal(
        read_catalog(tmp_path / "a.csv"), read_catalog(tmp_path / "b.csv")
    )


@pytest.mark.fault
def test_a_home_folder_is_refused_before_its_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_sources, "MANY_FILES", 200)
    opened: list[Path] = []
    monkeypatch.setattr(photo_sources, "open_photo", opened.append)
    for folder, suffix, count in (("code", ".py", 300), ("papers", ".pdf", 100), (".git", "", 90)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}{suffix}").touch()
    draw_photo(0, 0).save(tmp_path / "papers" / "me.png")
    with pytest.raises(
        CatalogError, match=r"first 401 files .* only 1 may be photos. Name the fold"
    ):
        read_class_folders(tmp_path)
    assert opened == []


def test_a_file_of_notes_beside_each_photo_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_sources, "MANY_FILES", 10)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(4):
            draw_photo(0, number).save(tmp_path / label / f"{number}.png")
            for note in range(6):
                (tmp_path / label / f"{number}.{note}.xml").write_text("<a/>")
    found = read_class_folders(tmp_path)
    assert found is not None
    assert found.rows["label_group"].tolist() == ["cat"] * 4 + ["dog"] * 4


@pytest.mark.fault
@pytest.mark.parametrize("option", ["data", "val_csv", "test_csv", "exclude", "corrections"])
@pytest.mark.parametrize("name", ["pipe.csv", "device.csv"])
def test_a_pipe_or_a_device_in_place_of_a_table_is_not_opened(
    shop: Path, option: str, name: str
) -> None:
    os.mkfifo(shop / "pipe.csv")
    (shop / "device.csv").symlink_to("/dev/zero")
    options = {"images": str(shop / "train_images"), option: str(shop / name)}
    with pytest.raises(CatalogError, match=rf"{name}.* is a pipe or a device"):
        load(**{"data": shop / "train.csv", **options})


@pytest.mark.fault
@pytest.mark.parametrize("name", ["a\nb/0.png", "a\rb/0.png", "a\x1b[31m/0.png", "a/\n.png"])
def test_class_folders_with_control_characters_in_names_are_refused(
    tmp_path: Path, name: str
) -> None:
    for photo in (name, "c/0.png", "c/1.png"):
        (tmp_path / photo).parent.mkdir(exist_ok=True)
        draw_photo(0, 0).save(tmp_path / photo)
    with pytest.raises(CatalogError, match="1 photos have a control character") as caught:
        read_class_folders(tmp_path)
    assert repr(name) in str(caught.value)
