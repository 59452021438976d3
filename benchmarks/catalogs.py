"""Catalogues of any size, with JPEG files of 1024 px, made from one folder of photos."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance

from shopee_mlflow.data.dataset import Dataset, load_dataset
from shopee_mlflow.data.images import open_photo, upright_rgb
from shopee_mlflow.data_config import DataConfig

from .job import IMAGES, MANIFEST

_QUALITY = 90
_ABOUT = "about.json"
_FEWEST = 3  # fewest photos of a label group that cleaning keeps
# Decoded only to check that the photos decode; the split does not depend on it.
_SMALL = 32


@dataclass(frozen=True)
class _Photo:
    """A file to write: its row in the CSV, its photo, and the number of the copy."""

    row: dict[str, Any]
    source: Path
    copy: int


def make_catalog(data: str, size: int, folder: Path, px: int = 1024) -> Path:
    """A catalogue of ``size`` photos in our layout, with the manifest of its leak-free split.

    The photos are those that cleaning keeps of ``data``: a stratified sample, or all of them and
    copies that differ in crop and brightness. A copy has the perceptual hash of its original, so
    the split keeps both on one side.

    :param data: a folder in our layout, or ``sample``.
    :returns: ``folder``; an existing catalogue with the same settings is reused.
    """
    about = {"data": data, "size": size, "px": px}
    marker = folder / _ABOUT
    if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == about:
        return folder
    # Only the built-in sample has a size to choose.
    config = DataConfig(data=data, image_size=_SMALL, cache=False, sample_px=px)
    kept = load_dataset(config).frame
    photos = _plan(kept, size)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda photo: _write(photo, folder / IMAGES, px), photos))
    pd.DataFrame([photo.row for photo in photos]).to_csv(folder / "train.csv", index=False)
    made = load_dataset(
        DataConfig(data=str(folder), image_size=_SMALL, cache=False, largest_groups=0)
    )
    if len(made.frame) != size:
        raise SystemExit(f"{data}: {len(made.frame)} of {size} photos are left after cleaning")
    _write_manifest(made, folder)
    marker.write_text(json.dumps(about), encoding="utf-8")
    return folder


def _write_manifest(made: Dataset, folder: Path) -> None:
    table = made.frame.loc[:, ["image", "label", "split"]]
    table.to_csv(folder / MANIFEST, index=False)


def _plan(kept: pd.DataFrame, size: int) -> list[_Photo]:
    rng = np.random.default_rng(0)
    if size <= len(kept):
        rows = _stratified(kept, size, rng)
    else:
        rows = kept.iloc[[*range(len(kept)), *_more(len(kept), size, rng)]]
    photos, seen = [], dict.fromkeys(kept["image"], -1)
    for number, row in enumerate(rows.to_dict("records")):
        image = str(row["image"])
        seen[image] += 1
        photos.append(_photo(row, number, seen[image]))
    return photos


def _photo(row: dict[Any, Any], number: int, copy: int) -> _Photo:
    stem = Path(str(row["image"])).stem
    facts = {
        "posting_id": f"p{number}",
        # The first one keeps its name, because the split depends on the names.
        "image": f"{stem}-{copy}.jpg" if copy else str(row["image"]),
        "image_phash": row["image_phash"],
        "title": row.get("title", ""),
        "label_group": row["label_group"],
    }
    return _Photo(facts, Path(row["file"]), copy)


def _stratified(kept: pd.DataFrame, size: int, rng: np.random.Generator) -> pd.DataFrame:
    """Sample ``size`` rows in proportion to the groups, at least ``_FEWEST`` of each."""
    labels = kept["label_group"].to_numpy()
    groups, sizes = np.unique(labels, return_counts=True)
    quota = np.minimum(sizes, _FEWEST)
    if quota.sum() > size:
        raise SystemExit(f"{size} photos are too few: {quota.sum()} are needed for {_FEWEST} each")
    while quota.sum() < size:
        # The group furthest below its share gets the next photo.
        quota[np.argmin(quota / sizes)] += 1
    chosen = [
        rng.permutation(np.flatnonzero(labels == group))[:count]
        for group, count in zip(groups, quota, strict=True)
    ]
    return kept.iloc[np.sort(np.concatenate(chosen))]


def _more(have: int, size: int, rng: np.random.Generator) -> list[int]:
    """Positions of the photos to copy; each photo is copied equally often."""
    order: list[int] = []
    while len(order) < size - have:
        order += rng.permutation(have).tolist()
    return order[: size - have]


def _write(photo: _Photo, folder: Path, px: int) -> None:
    file = folder / str(photo.row["image"])
    with open_photo(photo.source) as image:
        ready = not photo.copy and image.format == "JPEG" and image.size == (px, px)
        picture = None if ready else upright_rgb(image)
    if picture is None:
        file.write_bytes(photo.source.read_bytes())
        return
    if photo.copy:
        picture = _vary(picture, random.Random(file.name))
    large = picture.resize((px, px), Image.Resampling.BICUBIC)
    large.save(file, "JPEG", quality=_QUALITY)


def _vary(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Another crop, by up to 8 % a side, and another brightness."""
    width, height = picture.size
    left, right = (round(width * rng.uniform(0, 0.08)) for _ in range(2))
    top, bottom = (round(height * rng.uniform(0, 0.08)) for _ in range(2))
    cropped = picture.crop((left, top, width - right, height - bottom))
    return ImageEnhance.Brightness(cropped).enhance(rng.uniform(0.85, 1.15))
