"""Batches of a few random photos, for trainings that take a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.data.transforms import transform_named


def small_batches(
    photos: int,
    classes: int,
    size: int,
    train: bool = False,
    augment: str = "none",
    **settings: Any,
) -> Batches:
    """Photos of 32 px, the same at each call; labels in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (photos, 32, 32, 3), dtype=np.uint8)
    return Batches(
        PixelSource(pixels),
        np.arange(photos),
        np.arange(photos) % classes,
        size,
        torch.device("cpu"),
        train=train,
        transform=transform_named(augment),
        **settings,
    )
