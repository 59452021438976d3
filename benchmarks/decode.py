"""Decoding alone: the same JPEG files of 1024 px, decoded and resized in five ways."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as transforms

from shopee_mlflow.data.pixel_cache import hash_files, load_pixels

from .job import IMAGES, MANIFEST, Job, Split
from .systems.original import Photos, read

# Enough for a steady figure; only ours decodes all.
_MOST = 800

Way = Callable[[Sequence[Path], Job], object]


def measure(job: Job) -> dict[str, Any]:
    """Photos a second of each way, and the seconds in which all come back from the cache."""
    table = pd.read_csv(Path(job.catalog) / MANIFEST)
    files = [Path(job.catalog) / IMAGES / image for image in table["image"]]
    some = files[:_MOST]
    for file in files:
        file.read_bytes()  # from the disk, once for all of them
    ways = {
        "Pillow, one process (the original)": pillow_alone,
        f"Pillow, DataLoader with {job.workers} workers": pillow_in_workers,
        "torchvision.io.decode_jpeg and resize, one process": torchvision_alone,
    }
    speeds = {name: len(some) / _seconds(way, some, job) for name, way in ways.items()}
    ours = f"ours, {os.cpu_count()} threads"
    speeds[ours] = len(files) / _seconds(ours_uncached, files, job)
    return {"speeds": speeds, "ours": ours, **cached(files, job)}


def cached(files: Sequence[Path], job: Job) -> dict[str, float]:
    """Seconds to fill the cache, and to get all photos from it, their files' digests included."""
    names = ("cold_cache_seconds", "warm_cache_seconds")
    return {name: _seconds(ours_cached, files, job) for name in names}


def pillow_alone(files: Sequence[Path], job: Job) -> None:
    """As the original does: each photo whole, then resized."""
    size = (job.image_size, job.image_size)
    for file in files:
        read(file).resize(size, Image.Resampling.BILINEAR)


def pillow_in_workers(files: Sequence[Path], job: Job) -> None:
    """The same in worker processes, which send tensors."""
    photos = Photos(Split(list(files), [0] * len(files)), job.image_size)
    for _ in DataLoader(photos, job.batch_size, num_workers=job.workers):
        pass


def torchvision_alone(files: Sequence[Path], job: Job) -> None:
    """libjpeg to a tensor, resized by torch."""
    mode = torchvision.io.ImageReadMode.RGB
    for file in files:
        encoded = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        pixels = torchvision.io.decode_jpeg(encoded, mode)
        transforms.resize(pixels, [job.image_size, job.image_size], antialias=True)


def ours_uncached(files: Sequence[Path], job: Job) -> None:
    """At reduced scale where the size allows it, in threads."""
    load_pixels(files, hash_files(files), job.image_size, cache=False)


def ours_cached(files: Sequence[Path], job: Job) -> None:
    """From the cache folder, which is filled where it is empty; every pixel is read."""
    load_pixels(files, hash_files(files), job.image_size).values.max()


def _seconds(way: Way, files: Sequence[Path], job: Job) -> float:
    way(files[:2], job)
    began = time.perf_counter()
    way(files, job)
    return time.perf_counter() - began
