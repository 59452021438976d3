"""Near copies stay in one split; plain photos, which share a phash, are no copies."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from conftest import write_csv
from PIL import Image, ImageDraw, ImageEnhance

from shopee_mlflow import load_dataset
from shopee_mlflow.data.catalog_csv import read_catalog
from shopee_mlflow.data.dataset import Dataset
from shopee_mlflow.data.plain_photos import LEAST_DETAIL, detail_of
from shopee_mlflow.data.splits import assign_splits, count_leaks, count_mixed, tie_copies
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.exploring.photo_survey import survey_photos
from shopee_mlflow.exploring.selection import select_photos
from shopee_mlflow.exploring.survey import survey_catalog

Change = Callable[[Image.Image], Image.Image]

BASE = 0x0F1E2D3C4B5A6978
SIDE = 96


def frame_of(phashes: list[str], labels: list[str] | None = None) -> pd.DataFrame:
    """Photos of different bytes with these phashes."""
    names = [f"{number:04d}.jpg" for number in range(len(phashes))]
    table = {"image": names, "label_group": labels or ["a"] * len(names), "content": names}
    return pd.DataFrame({**table, "image_phash": phashes}, dtype=str)


def flipped(bits: int, value: int = BASE) -> str:
    """A phash whose lowest bits differ from those of a value."""
    return f"{value ^ (1 << bits) - 1:016x}"


def draw(seed: int) -> Image.Image:
    """Smooth blobs of colour, as a photo has them."""
    blocks = np.random.default_rng(seed).integers(0, 200, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


CHANGES: dict[str, Change] = {
    "resize": lambda image: image.resize((41, 41)),
    "jpeg": lambda image: as_jpeg(image, 5),
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(0.3),
}


def bits_between(one: Image.Image, other: Image.Image) -> int:
    return int(imagehash.phash(one) - imagehash.phash(other))


def shop_of(folder: Path, pictures: dict[str, tuple[Image.Image, str]]) -> Path:
    """A catalogue of pictures by name, each with its label."""
    (folder / "train_images").mkdir(parents=True)
    for name, (picture, _) in pictures.items():
        picture.convert("RGB").save(folder / "train_images" / name)
    rows = [(name, label) for name, (_, label) in pictures.items()]
    write_csv(folder / "train.csv", ("image", "label_group"), rows)
    return folder


def load(shop: Path, **options: object) -> Dataset:
    return load_dataset(DataConfig(data=str(shop), image_size=32, cache=False), **options)


@pytest.mark.parametrize("near_bits", range(7))
def test_sets_are_those_of_a_walk_over_near_phashes(near_bits: int) -> None:
    rng = np.random.default_rng(near_bits)
    centres = rng.integers(2**63, size=12)
    flips = [
        sum(1 << int(bit) for bit in rng.permutation(64)[: rng.integers(6)]) for _ in range(80)
    ]
    values = [int(centres[number % 12]) ^ flip for number, flip in enumerate(flips)]
    frame = frame_of([f"{value:016x}" for value in values])
    number = list(range(80))
    for _ in range(80):
        before = list(number)
        for i in range(80):
            for k in range(i):
                if (values[i] ^ values[k]).bit_count() <= near_bits:
                    number[i] = number[k] = min(number[i], number[k])
        if number == before:
            break
    expected = pd.factorize(pd.Series(number))[0].tolist()
    assert 1 < len(set(expected)) < 80 or near_bits == 0
    assert tie_copies(frame, near_bits).tolist() == expected


def test_a_chain_of_near_copies_is_one_set() -> None:
    frame = frame_of([flipped(0), flipped(4), flipped(8), flipped(13), flipped(13)])
    assert tie_copies(frame, 4).tolist() == [0, 0, 0, 1, 1]
    assert tie_copies(frame, 3).tolist() == [0, 1, 2, 3, 3]
    assert tie_copies(frame, 5).tolist() == [0, 0, 0, 0, 0]
    assert tie_copies(frame, 0).tolist() == [0, 1, 2, 3, 3]
    assert tie_copies(frame).tolist() == tie_copies(frame, DataConfig().near_bits).tolist()


@pytest.mark.parametrize(
    "phash", ["8000000000000000", "0000000000000000", "80000080000000ff", "ffffffffffffffff"]
)
def test_phashes_of_one_colour_tie_only_equal_bytes(phash: str) -> None:
    frame = frame_of([phash, phash, f"{int(phash, 16) ^ 2:016x}"])
    assert tie_copies(frame).tolist() == [0, 1, 2]
    frame["content"] = ["same", "same", "other"]
    assert tie_copies(frame).tolist() == [0, 0, 1]


def test_a_leak_free_split_keeps_near_copies_of_several_labels_on_one_side() -> None:
    """Each third pair has two labels."""
    rng = np.random.default_rng(0)
    phashes, labels = [], []
    for pair in range(60):
        value = int(str(imagehash.phash(draw(pair))), 16)
        phashes += [f"{value:016x}", flipped(int(rng.integers(1, 5)), value)]
        labels += [f"label{pair % 4}", f"label{(pair + (pair % 3 == 0)) % 4}"]
    frame = frame_of(phashes, labels)
    pairs = np.arange(len(frame)) // 2
    sets = tie_copies(frame)
    assert sets.tolist() == pairs.tolist()
    assert count_mixed(frame, sets) == 40
    for seed in range(5):
        split = assign_splits(frame, seed=seed)
        assert split.groupby(pairs).nunique().max() == 1
        assert set(split) == {"train", "val", "test"}
        assert split.equals(assign_splits(frame, seed=seed, sets=sets))
        assert split.equals(assign_splits(frame.iloc[::-1], seed=seed, sets=sets).sort_index())
    exact = frame.assign(split=assign_splits(frame, sets=tie_copies(frame, 0)))
    assert count_leaks(exact, tie_copies(frame, 0)) == 0
    assert count_leaks(exact) > 0


@pytest.mark.fault
@pytest.mark.parametrize("name", CHANGES)
def test_planted_near_copies_are_in_one_split(name: str, tmp_path: Path) -> None:
    pictures: dict[str, tuple[Image.Image, str]] = {}
    partners, seed = {}, 0
    while len(pictures) < 60:
        seed += 1
        picture = draw(seed)
        changed = CHANGES[name](picture)
        if not 0 < bits_between(picture, changed) <= 4:
            continue
        for copy, shown in enumerate((picture, changed)):
            pictures[f"{seed}-{copy}.png"] = (shown, f"label{len(partners) % 3}")
            partners[f"{seed}-{copy}.png"] = seed
    shop = shop_of(tmp_path / "shop", pictures)
    tied, untied = load(shop), load(shop, near_bits=0)
    assert tied.leaks == 0
    parts = tied.frame.groupby(tied.frame["image"].map(partners))["split"].nunique()
    assert parts.max() == 1
    assert len(tied.frame["copy_set"].unique()) == 30
    parts = untied.frame.groupby(untied.frame["image"].map(partners))["split"].nunique()
    assert parts.max() > 1
    assert tied.digest != untied.digest
    leaky = load(shop, split="random")
    assert leaky.leaks > 0
    said = f"{leaky.leaks:>7} of 6 test photos have a copy in train (equal bytes, or phashes up to"
    assert said in "\n".join(leaky.lines())
    assert "in train (equal bytes or phashes)" in "\n".join(untied.lines())


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
def test_what_is_a_copy_does_not_depend_on_resize(tmp_path: Path, resize: str) -> None:
    """A narrow object on white, which has little detail beside white margins."""
    pictures = {f"{n}.png": (draw(n), f"label{n % 3}") for n in range(30)}
    tall = Image.new("RGB", (400, 900), "white")
    tall.paste(draw(99).resize((110, 420)), (150, 240))
    pictures["a.png"] = (tall, "label0")
    pictures["b.png"] = (as_jpeg(tall.resize((200, 450)), 60), "label0")
    frame = load(shop_of(tmp_path / "shop", pictures), resize=resize).frame.set_index("image")
    assert frame.loc["a.png", "copy_set"] == frame.loc["b.png", "copy_set"]
    assert len(frame["copy_set"].unique()) == 31


def squares_and_small_objects() -> dict[str, tuple[Image.Image, str]]:
    """Squares of one colour, some with a vignette, and small objects on white."""
    pictures: dict[str, tuple[Image.Image, str]] = {}
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    for number in range(10):
        colour = np.array([20 * number + 20, 200 - 15 * number, 90])
        flat = np.broadcast_to(colour, (SIDE, SIDE, 3)).astype(np.uint8)
        pictures[f"flat{number}.png"] = (Image.fromarray(flat), "colours")
        dimmed = (flat - 6 * (x**2 + y**2)[..., None]).clip(0, 255).astype(np.uint8)
        pictures[f"vignette{number}.png"] = (Image.fromarray(dimmed), "colours")
        small = Image.new("RGB", (SIDE, SIDE), "white")
        box = (44, 44, 52 + number % 3, 52)
        (ImageDraw.Draw(small).ellipse if number % 2 else ImageDraw.Draw(small).rectangle)(
            box, fill=(20 * number, 0, 120)
        )
        pictures[f"small{number}.png"] = (small, "rings")
        pictures[f"photo{number}.png"] = (draw(number), "rings")
    return pictures


@pytest.mark.fault
def test_plain_and_nearly_empty_photos_are_no_copies(tmp_path: Path) -> None:
    pictures = squares_and_small_objects()
    phashes = [str(imagehash.phash(picture)) for picture, _ in pictures.values()]
    shared = sum(phashes.count(phash) > 1 for phash in phashes)
    assert shared > 20, "the planted photos do not share phashes"
    details = {name: detail_of(picture) for name, (picture, _) in pictures.items()}
    assert all((detail < LEAST_DETAIL) == ("photo" not in n) for n, detail in details.items())
    shop = shop_of(tmp_path / "shop", pictures)
    dataset = load(shop)
    assert dataset.frame["copy_set"].is_unique
    assert dataset.cleaning.counts()["plain_photos"] >= shared
    cleared = dataset.frame.loc[dataset.frame["image_phash"] == "", "image"]
    assert not any("photo" in name for name in cleared)
    words = "photos are plain or nearly empty; they count as copies only if their bytes are equal"
    assert words in "\n".join(dataset.lines())
    # As the page of explore counts them, too.
    rows = read_catalog(shop / "train.csv")
    photos = survey_photos(rows, shop / "train_images")
    survey = survey_catalog(rows, photos.phashes())
    selected = select_photos(survey.rows, DataConfig(), photos)
    assert selected.with_photos
    assert (selected.splits["copies"] == 0).all()


def test_plain_photos_of_equal_bytes_are_copies(tmp_path: Path) -> None:
    pictures = {f"flat{n}.png": (Image.new("RGB", (SIDE, SIDE), "red"), "red") for n in range(2)}
    pictures |= {f"photo{n}.png": (draw(n), "red" if n % 2 else "blue") for n in range(16)}
    frame = load(shop_of(tmp_path / "shop", pictures)).frame.set_index("image")
    assert frame["copy_set"]["flat0.png"] == frame["copy_set"]["flat1.png"]
    assert frame["copy_set"].nunique() == len(frame) - 1


def test_copies_under_two_labels_are_counted_and_kept_together(tmp_path: Path) -> None:
    pictures = {f"{n}.png": (draw(n), "even" if n % 2 == 0 else "odd") for n in range(24)}
    pictures["0-copy.png"] = (CHANGES["resize"](draw(0)), "odd")
    shop = shop_of(tmp_path / "shop", pictures)
    for seed in range(4):
        dataset = load(shop, split_seed=seed)
        split = dataset.frame.set_index("image")["split"]
        assert split["0.png"] == split["0-copy.png"]
    assert dataset.cleaning.counts()["copies_of_other_groups"] == 2
    assert "2 photos have a copy under another label group" in "\n".join(dataset.lines())


@pytest.mark.fault
def test_a_search_that_stops_at_its_limit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    flips = [1 << a | 1 << b | 1 << c for a in range(64) for b in range(a) for c in range(b)]
    frame = frame_of([f"{BASE ^ value:016x}" for value in flips[:2000]])
    with caplog.at_level(logging.WARNING, "shopee_mlflow"):
        sets = tie_copies(frame, 6)
    assert len(sets) == 2000
    assert "The search for near copies stopped after 500,000 pairs" in caplog.text


@pytest.mark.parametrize("value", [-1, 7])
def test_bits_that_cannot_be_searched_are_refused(value: int) -> None:
    with pytest.raises(ConfigError, match="near_bits"):
        DataConfig(near_bits=value)
