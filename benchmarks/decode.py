"""Time decoding and resizing the same JPEG files of 1024 px in five ways."""

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

# Enough for a stable figure; only this project decodes all photos.
_MOST = 800

Way = Callable[[Sequence[Path], Job], object]


def measure(job: Job) -> dict[str, Any]:
    """Photos per second of each way, and seconds to read all photos from the cache."""
    table = pd.read_csv(Path(job.catalog) / MANIFEST)
    files = [Path(job.catalog) / IMAGES / image for image in table["image"]]
    some = files[:_MOST]
    for file in files:
        file.read_bytes()  # read from the disk once, for all ways
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
    """Seconds to fill the cache, and to read all photos from it, including file digests."""
    names = ("cold_cache_seconds", "warm_cache_seconds")
    return {name: _seconds(ours_cached, files, job) for name in names}


def pillow_alone(files: Sequence[Path], job: Job) -> None:
    """Decode each photo at full size, then resize it, as the original does."""
    size = (job.image_size, job.image_size)
    for file in files:
        read(file).resize(size, Image.Resampling.BILINEAR)


def pillow_in_workers(files: Sequence[Path], job: Job) -> None:
    """The same in worker processes that send tensors."""
    photos = Photos(Split(list(files), [0] * len(files)), job.image_size)
    for _ in DataLoader(photos, job.batch_size, num_workers=job.workers):
        pass


def torchvision_alone(files: Sequence[Path], job: Job) -> None:
    """Decode with libjpeg into a tensor, resize with torch."""
    mode = torchvision.io.ImageReadMode.RGB
    for file in files:
        encoded = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
        pixels = torchvision.io.decode_jpeg(encoded, mode)
        transforms.resize(pixels, [job.image_size, job.image_size], antialias=True)


def ours_uncached(files: Sequence[Path], job: Job) -> None:
    """Decode in threads, at a reduced scale where the size allows it."""
    load_pixels(files, hash_files(files), job.image_size, cache=False)


def ours_cached(files: Sequence[Path], job: Job) -> None:
    """Read every pixel from the cache folder, which is filled first if it is empty."""
    load_pixels(files, hash_files(files), job.image_size).values.max()


def _seconds(way: Way, files: Sequence[Path], job: Job) -> float:
    way(files[:2], job)
    began = time.perf_counter()
    way(files, job)
    return time.perf_counter() - began
