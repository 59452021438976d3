"""One small trained run, shared by test modules, since training it takes seconds."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import draw_photo, write_csv
from PIL import Image

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.verbs.train import TrainResult

SIZE = 32


@dataclass(frozen=True)
class SmallRun:
    """A run, its model's URI, and the catalogue that it learned from."""

    result: TrainResult
    uri: str
    shop: Path

    @property
    def photos(self) -> list[Path]:
        return sorted((self.shop / "train_images").iterdir())


def small_run(base: Path, serialization: str = "pickle") -> SmallRun:
    """Train on three groups of twelve photos, in the store that all tests share.

    :param base: ``tmp_path_factory.getbasetemp()``.
    """
    return _train_once(base, serialization)


@cache
def _train_once(base: Path, serialization: str) -> SmallRun:
    place = base / f"small-run-{serialization}"
    shop = _draw_shop(place)
    config = {"data": str(shop), "model": "cnn", "image_size": SIZE, "epochs": 4, "batch_size": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOPEE_MLFLOW_CACHE", str(base / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
        for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
            patch.delenv(name, raising=False)
        patch.chdir(place)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result = train(resolve(TrainConfig, {**config, "serialization": serialization}))
        finally:
            torch.set_num_threads(threads)
    return SmallRun(result, f"models:/{result.model_id}", shop)


def _draw_shop(place: Path) -> Path:
    folder = place / "shop"
    (folder / "train_images").mkdir(parents=True)
    rows = []
    for group in range(3):
        for number in range(12):
            image = f"g{group}n{number:02}.png"
            draw_photo(group, number).save(folder / "train_images" / image)
            rows.append((f"p{group}_{number:02}", image, f"Rp 5$ off $ {group}", f"$group{group}$"))
    write_csv(folder / "train.csv", ("posting_id", "image", "title", "label_group"), rows)
    return folder


def odd_photos(folder: Path) -> list[Path]:
    """Photos that go wrong where two paths decode differently: rotated, CMYK, transparent."""
    folder.mkdir(parents=True, exist_ok=True)
    wide = draw_photo(0, 1, 160).crop((0, 0, 160, 96))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide.save(folder / "rotated.jpg", exif=exif, quality=90)
    draw_photo(1, 2, 160).convert("CMYK").save(folder / "cmyk.jpg", quality=90)
    clear = draw_photo(2, 3, 80).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "transparent.png")
    return sorted(folder.iterdir())


def as_base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
