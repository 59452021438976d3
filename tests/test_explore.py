"""Explore: a page and tables from a CSV, with or without photos; text is escaped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED, MakeCatalog, draw_photo, write_csv
from html_page import look_in_browser, read_page
from PIL import Image

from shopee_mlflow import ExploreConfig, cli, explore
from shopee_mlflow.data.catalog_csv import read_catalog
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.data.images import read_pixels, read_thumbnail
from shopee_mlflow.data.near_copies import MOST_PAIRS
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.errors import CatalogError, ConfigError
from shopee_mlflow.exploring import TABLES
from shopee_mlflow.exploring.photo_survey import survey_photos
from shopee_mlflow.exploring.survey import MOST_LISTED

HEADER = ("posting_id", "image", "image_phash", "title", "label_group")
SCRIPT = "<script>document.title = 'owned'; document.body.remove()</script>"
TITLE = f'{SCRIPT} " onload=alert(1) $\\no{{$ \\xe2\\x9d\\xa4'


def odd_shop(folder: Path) -> Path:
    """A catalogue in which everything is amiss at least once, and strangers try their luck."""
    images = folder / "train_images"
    images.mkdir(parents=True)
    rows = []
    for group in range(3):
        for number in range(8):
            name = f"g{group}n{number}.png"
            draw_photo(group, number).save(images / name)
            rows.append((f"p{group}{number}", name, "", f"title {group}", f"group{group}"))
    wide = draw_photo(3, 0, 160).crop((0, 0, 160, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(images / "turned.jpg", exif=exif, quality=90)
    clear = draw_photo(4, 0, 80).convert("RGBA")
    clear.putalpha(128)
    clear.save(images / "clear.png")
    (images / "broken.jpg").write_bytes(b"no photo at all")
    rows += [
        ("p30", "turned.jpg", "0000000000000000", TITLE, f"group0{SCRIPT}"),
        ("p31", "clear.png", "not a phash", TITLE, f"group0{SCRIPT}"),
        ("p32", "broken.jpg", "", "=1+1", "group1"),
        ("p33", "gone.jpg", "ffffffffffffffff", "title 1", "group1"),
        ("p34", "../train.csv", "", "title 1", "group1"),
        ("p35", "g0n0.png", "", "title 0", "group1"),
        ("p36", "g1n1.png", "", "title 1", "group1"),
    ]
    write_csv(folder / "train.csv", HEADER, rows)
    return folder


@pytest.mark.drawn
@pytest.mark.slow
def test_the_page_and_its_tables_are_beside_each_other_and_in_the_run(
    make_catalog: MakeCatalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = explore(ExploreConfig(data=str(make_catalog()), out="seen"))
    assert result.report.resolve() == (tmp_path / "seen" / "report.html").resolve()
    logged = Path(mlflow.artifacts.download_artifacts(run_id=result.run_id))
    files = {file.name for file in (tmp_path / "seen").iterdir()}
    assert files == {"report.html", *result.tables}
    for name in files:
        ours = (tmp_path / "seen" / name).read_bytes()
        assert (logged / "explore" / name).read_bytes() == ours
    run = mlflow.get_run(result.run_id)
    assert run.info.run_name == "explore shop"
    assert run.data.tags["kind"] == "explore"
    assert mlflow.get_experiment(run.info.experiment_id).name == "shopee-analysis"
    assert run.data.metrics == {}
    (data,) = run.inputs.dataset_inputs
    assert json.loads(data.dataset.profile)["rows"] == result.facts["rows"] == 24
    assert "24 rows, 24 files" in run.data.tags["mlflow.note.content"]
    assert run.data.params["max_photos"] == "50000"
    assert "24 rows, 24 files, 24 phashes, 3 titles, 3 label groups" in capsys.readouterr().out
    page = read_page(result.report)
    page.check_self_contained()
    assert len(page.pictures) > 20
    assert (
        "No image_phash in the CSV. Rows with a phash computed from the photo: 24 of 24 (100.0%)."
        in page.text
    )
    assert [section["id"] for section in page.all("h2")][:2] == ["overview", "unknown"]


def test_one_size_and_equal_phashes_need_no_figure_and_no_gallery(
    make_catalog: MakeCatalog,
) -> None:
    folder = make_catalog()
    rows = pd.read_csv(folder / "train.csv")
    rows["image_phash"] = [f"{97 ** (i // 2 + 8) % 2**64:016x}" for i in range(len(rows))]
    rows.loc[1, "label_group"] = "group1"
    rows.to_csv(folder / "train.csv", index=False)
    page = read_page(explore(ExploreConfig(data=str(folder), out="seen")).report)
    assert "All photos are 40 x 40 px." in page.text
    shown = [picture["alt"] for picture in page.pictures]
    assert "Histogram of photos by file size." in shown
    assert "Histogram of photos by width divided by height." not in shown
    assert "1 phash, " in page.text
    # Two files of one phash are repeats, not near copies.
    assert "The largest cluster of near phashes" not in page.text


@pytest.mark.slow
def test_what_is_said_of_a_training_is_what_it_does(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    shop = make_catalog(groups=4, each=10)
    options = {"data": str(shop), "largest_groups": 3, "split": "random", "split_seed": 5}
    result = explore(ExploreConfig(**options, out="seen"))
    dataset = load_dataset(DataConfig(**options, image_size=32, cache=False))
    assert result.tables["cleaning.csv"]["left"].iloc[-1] == len(dataset.frame)
    splits = result.tables["splits.csv"]
    (row,) = splits[(splits["split"] == "random") & (splits["seed"] == 5)].to_dict("records")
    assert row["copies"] == dataset.leaks
    assert [row[name] for name in ("train", "val", "test")] == [
        len(dataset.rows(name)) for name in ("train", "val", "test")
    ]


@pytest.mark.drawn
@pytest.mark.fault
@pytest.mark.slow
def test_what_strangers_write_is_shown_and_does_nothing(tmp_path: Path) -> None:
    shop = odd_shop(tmp_path / "shop")
    result = explore(ExploreConfig(data=str(shop), out="seen", min_group=2))
    html = result.report.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;document.title" in html
    page = read_page(html)
    page.check_self_contained()
    assert f"group0{SCRIPT}" in page.text
    assert "❤" in page.text
    raw, decoded = result.tables["escaped_titles.csv"].loc[0, ["title", "decoded"]]
    assert raw == TITLE
    assert decoded == TITLE.replace("\\xe2\\x9d\\xa4", "❤")
    with (result.report.parent / "conflicting_files.csv").open(encoding="utf-8") as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["g0n0.png"]


def test_every_photo_is_accounted_for(tmp_path: Path) -> None:
    shop = odd_shop(tmp_path / "shop")
    rows = read_catalog(shop / "train.csv")
    photos = survey_photos(rows, shop / "train_images", workers=2)
    table = photos.table.set_index("image")
    assert len(table) == rows["image"].nunique()
    assert table.loc["broken.jpg", "state"] == "does not decode"
    assert "no JPEG, PNG, WEBP, GIF image" in table.loc["broken.jpg", "reason"]
    assert table.loc["gone.jpg", "state"] == "missing"
    assert table.loc["../train.csv", "state"] == "outside the folder"
    assert table.loc["turned.jpg", ["width", "height"]].tolist() == [80, 160]
    assert table.loc["clear.png", "mode"] == "RGBA"
    assert (
        table.loc["turned.jpg", "phash_bits"]
        == int(table.loc["turned.jpg", "phash"], 16).bit_count()
    )
    assert table["phash_bits"].notna().sum() == 1
    good = photos.good
    assert len(good) == 26
    assert photos.levels.sum(axis=1) == pytest.approx([1, 1, 1])
    whole = read_pixels(shop / "train_images" / "g0n0.png", 40).reshape(-1, 3).mean(axis=0)
    assert table.loc["g0n0.png", ["red", "green", "blue"]].tolist() == pytest.approx(whole.tolist())
    means = photos.levels @ np.arange(256)
    assert means == pytest.approx(good[["red", "green", "blue"]].mean().to_numpy())


@pytest.mark.slow
def test_of_very_many_photos_a_stated_sample_is_looked_at(
    make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    shop = make_catalog()
    rows = read_catalog(shop / "train.csv")
    first, again, other = (
        survey_photos(rows, shop / "train_images", most=10, seed=seed) for seed in (1, 1, 2)
    )
    assert first.table.equals(again.table)
    assert not first.table.equals(other.table)
    assert first.count("ok") == 10
    assert first.count("not looked at") == 14
    result = explore(ExploreConfig(data=str(shop), max_photos=10, seed=1, out="seen"))
    text = read_page(result.report).text
    assert "Photos present: 24 of 24 (100.0%). Opened, chosen at random: 10." in text
    assert "Decoded: 10 of 10 (100.0%)." in text
    assert "Counted from the CSV alone" in text
    assert "computed from the photo: 10 of 24 (41.7%)." in text


def test_the_csv_alone_is_enough_and_the_page_says_so(tmp_path: Path) -> None:
    write_csv(tmp_path / "shop.csv", HEADER, _listed(40))
    result = explore(ExploreConfig(data="shop.csv", out="seen"))
    text = read_page(result.report).text
    assert "Rows: 40. Photos: 0. This report comes from the CSV alone." in text
    assert "No photo could be read in train_images. Sizes, shapes and colours" in text
    assert result.facts["distinct_phashes"] == 20
    assert result.facts["kept_files"] == 40
    assert "photos.csv" not in result.tables
    assert len(result.tables["splits.csv"]) == 40


def _listed(count: int) -> list[tuple[str, ...]]:
    """Rows of photos that are nowhere; two each have one phash."""
    rng = np.random.default_rng(0)
    looks = [f"{look:016x}" for look in rng.integers(0, 2**63, count)]
    return [
        (f"p{i}", f"{i}.jpg", looks[i // 2], f"title {i}", f"group{i % 4}") for i in range(count)
    ]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"image_phash"}, "No image_phash and no photos: copies and leaks of a split are unknown."),
        ({"label_group"}, "No label_group: group sizes, contradictory labels"),
        ({"title"}, "No title: repeated, contradictory and garbled titles are unknown."),
        (
            {"posting_id", "image_phash", "title", "label_group"},
            "Without label_group this is unknown",
        ),
    ],
)
def test_a_column_that_is_not_there_is_named_with_what_cannot_be_known(
    tmp_path: Path, missing: set[str], said: str
) -> None:
    kept = [name for name in HEADER if name not in missing]
    pd.DataFrame(_listed(40), columns=HEADER)[kept].to_csv("shop.csv", index=False)
    result = explore(ExploreConfig(data="shop.csv", out="seen"))
    assert said in read_page(result.report).text


@pytest.mark.slow
def test_photos_that_are_too_few_to_train_on_do_not_hide_the_csv(tmp_path: Path) -> None:
    (tmp_path / "shop" / "train_images").mkdir(parents=True)
    write_csv(tmp_path / "shop" / "train.csv", HEADER, _listed(40))
    draw_photo(0, 0).save(tmp_path / "shop" / "train_images" / "3.jpg")
    result = explore(ExploreConfig(data="shop", out="seen"))
    text = read_page(result.report).text
    assert "Training is not possible with these photos: A classifier needs two label" in text
    assert "Photos present: 1 of 40 (2.5%). Decoded: 1 of 1 (100.0%)." in text
    assert result.facts["kept_files"] == 40
    assert len(result.tables["splits.csv"]) == 40


@pytest.mark.slow
def test_an_earlier_page_is_replaced_and_other_files_are_not(make_catalog: MakeCatalog) -> None:
    shop = make_catalog()
    explore(ExploreConfig(data=str(shop), out="seen"))
    Path("seen/notes.txt").write_text("mine")
    pd.DataFrame(_listed(12), columns=HEADER).to_csv("shop.csv", index=False)
    result = explore(ExploreConfig(data="shop.csv", out="seen"))
    left = {file.name for file in Path("seen").iterdir()}
    assert left == {"report.html", "notes.txt", *result.tables}
    assert "photos.csv" not in left
    assert set(result.tables) <= set(TABLES)


@pytest.mark.parametrize(
    "page", ["mine", '<meta name="generator" content="shopee_mlflow comparison">']
)
def test_a_report_of_others_is_not_replaced(page: str) -> None:
    Path("seen").mkdir()
    Path("seen/report.html").write_text(page)
    pd.DataFrame(_listed(12), columns=HEADER).to_csv("shop.csv", index=False)
    with pytest.raises(ConfigError, match="holds other files; name a new or empty folder"):
        explore(ExploreConfig(data="shop.csv", out="seen"))
    assert Path("seen/report.html").read_text() == page


def test_mistakes_say_what_to_do(
    make_catalog: MakeCatalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = make_catalog()
    for options, message in (
        ({"out": str(shop)}, "holds other files; name a new or empty folder"),
        ({"out": str(shop / "train_images" / "new")}, "is in the folder of photos"),
        ({"out": str(shop / "train.csv")}, "cannot be written"),
        ({"images": "nowhere"}, "images=nowhere: no such folder of photos"),
        ({"data": "gone.csv"}, "data=gone.csv: no such file or folder"),
    ):
        with pytest.raises((CatalogError, ConfigError), match=message):
            explore(ExploreConfig(**{"data": str(shop), **options}))
    assert sorted(file.name for file in shop.iterdir()) == ["train.csv", "train_images"]
    (tmp_path / "bad.csv").write_text("look,label_group\na.jpg,1\n")
    with pytest.raises(SystemExit) as left:
        cli.main(["explore", "--data", str(tmp_path / "bad.csv")])
    assert left.value.code == 2
    assert "column image is missing; found: 'look'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_takes_both_spellings(
    make_catalog: MakeCatalog, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(
        ["explore", "--data", str(make_catalog()), "--largest_groups", "2", "--max-photos", "5"]
    )
    assert "largest_groups keeps 2 of 3 label groups with 16 of 24 rows" in capsys.readouterr().out
    assert Path("explore/report.html").is_file()


def test_thumbnails_keep_their_proportions(tmp_path: Path) -> None:
    shop = odd_shop(tmp_path / "shop")
    assert read_thumbnail(shop / "train_images" / "turned.jpg", 50).shape == (50, 25, 3)
    assert read_thumbnail(shop / "train_images" / "g0n0.png", 50).shape == (40, 40, 3)


@pytest.mark.slow
def test_real_photos_have_the_facts_that_are_known_of_them(grocery: Path) -> None:
    result = explore(ExploreConfig(data=str(grocery), out="seen"))
    known = {
        "rows": 1_092,
        "distinct_files": 1_015,
        "distinct_phashes": 957,
        "label_groups": 81,
        "conflicting_files": 5,
        "kept_rows": 899,
        "kept_repeated_rows": 72,
        "kept_files": 827,
        "kept_phashes": 769,
        "photos_ok": 1_015,
        "phashes_compared": 1_015,
        "phashes_equal": 1_015,
    }
    assert {name: result.facts[name] for name in known} == known
    titles = {section["id"] for section in read_page(result.report).all("h2")}
    assert {"photos", "galleries", "noise", "training"} <= titles


@pytest.mark.drawn
@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_every_picture_and_runs_nothing(tmp_path: Path, width: int) -> None:
    shop = odd_shop(tmp_path / "shop")
    result = explore(ExploreConfig(data=str(shop), out="seen", min_group=2))
    seen = look_in_browser(result.report, tmp_path, width)
    assert seen["faults"] == []
    assert seen["title"] == "What is in shop/train.csv"
    assert seen["pictures"] == len(read_page(result.report).pictures)
    assert seen["page"] <= seen["window"], "the page is wider than the window"


@pytest.mark.drawn
@pytest.mark.slow
def test_the_real_catalogue_fits_its_page(tmp_path: Path) -> None:
    shop = SHARED / "data" / "shopee"
    if not shop.is_dir():
        pytest.skip(f"the real catalogue is not at {shop}")
    result = explore(ExploreConfig(data=str(shop), out="seen"))
    assert result.facts["phashes_compared"] == 33
    assert result.facts["phashes_equal"] == 32
    seen = look_in_browser(result.report, tmp_path, 390)
    assert seen["faults"] == []
    assert seen["page"] <= seen["window"], "the page is wider than the window"


@pytest.mark.slow
def test_very_many_phashes_that_are_alike_are_counted_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flips = [1 << a | 1 << b | 1 << c for a in range(64) for b in range(a) for c in range(b)]
    rows = [
        (f"p{n}", f"{n}.jpg", f"{value ^ 2**32 - 1:016x}", f"title {n}", f"group{n % 4}")
        for n, value in enumerate(flips[:2000])
    ]
    write_csv(tmp_path / "shop.csv", HEADER, rows)
    result = explore(ExploreConfig(data="shop.csv", out="seen"))
    text = read_page(result.report).text
    assert result.facts["near_pairs"] == MOST_PAIRS
    assert f"1 to 6 bits: at least {MOST_PAIRS:,}." in text
    assert f"The search for near copies stopped after {MOST_PAIRS:,} pairs" in text
    assert len(result.tables["near_pairs.csv"]) == MOST_LISTED
    assert f"near_pairs.csv lists the nearest {MOST_LISTED:,} pairs only." in text


@pytest.mark.fault
def test_labels_that_look_the_same_or_missing_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ["249114794", "249114794.0", "Shirt", "shirt ", "zero\u200bwidth", "zerowidth", "#N/A"]
    rows = [
        (f"p{n}", f"{n}.jpg", "", f"title {n}", label) for n, label in enumerate([*labels, "bag"])
    ]
    write_csv(tmp_path / "shop.csv", HEADER, rows)
    result = explore(ExploreConfig(data="shop.csv", out="seen"))
    table = result.tables["lookalike_labels.csv"]
    assert table["set"].tolist() == [1, 1, 2, 2, 3, 3]
    assert sorted(table["label_group"].str.strip()) == sorted(label.strip() for label in labels[:6])
    assert table["escaped"].str.contains("u200b").sum() == 1
    assert result.tables["missing_labels.csv"].to_numpy().tolist() == [["#N/A", 1]]
    assert (result.facts["lookalike_labels"], result.facts["missing_value_labels"]) == (6, 1)
    said = "3 sets of label groups differ only in case, spaces, Unicode form"
    text = read_page(result.report).text
    out = capsys.readouterr().out
    assert said in text
    assert said in out
    assert "1 label group reads like a missing value and are kept as groups: '#N/A'" in text
    assert "'249114794' and '249114794.0'" in out
    assert "'zero\\u200bwidth'" in out
