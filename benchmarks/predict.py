"""Compare the speed of predict with that of the network alone, on photos of 1024 px.

    python benchmarks/predict.py --photos 384

Draws the built-in catalogue at 1024 px once (about a minute), logs an EfficientNet-B0 into a
temporary store, and prints a Markdown row: images/s of the fused network on decoded batches, and of
the whole predict command, including loading and decoding, on the same cores.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import torch

from shopee_mlflow import build_model, predict, sample_catalog
from shopee_mlflow.modeling.inference import FastClassifier
from shopee_mlflow.modeling.models import ProductClassifier
from shopee_mlflow.tracking.runs import open_run

if TYPE_CHECKING:
    from .job import Job

BATCH = 32
_MOST = 384


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=384)
    parser.add_argument("--image-size", type=int, default=256)
    options = parser.parse_args()
    photos = sorted((sample_catalog(1024) / "train_images").iterdir())[: options.photos]
    bare, whole = speeds(photos, options.image_size)
    print(
        "| photos | px | bare network, images/s | predict, images/s | share | threads | machine |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {len(photos)} | 1024 | {bare:.1f} | {whole:.1f} | {whole / bare:.0%} | "
        f"{torch.get_num_threads()} | {platform.machine()}, torch {torch.__version__} |"
    )


def measure(job: Job) -> dict[str, Any]:
    """Both speeds for a catalogue of the benchmark."""
    folder = Path(job.catalog) / "train_images"
    photos = list(itertools.islice(sorted(folder.iterdir()), _MOST))
    bare, whole = speeds(photos, job.image_size)
    return {"photos": len(photos), "bare": bare, "predict": whole}


def speeds(photos: list[Path], side: int) -> tuple[float, float]:
    """Images/s of the network alone, and of predict from files to predictions."""
    model = build_model("effnet", [str(i) for i in range(21)], side).eval()
    bare = bare_speed(model, side, len(photos))
    with tempfile.TemporaryDirectory() as place:
        mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
        return bare, predict_speed(model, Path(place), photos)


def bare_speed(model: torch.nn.Module, side: int, photos: int) -> float:
    """Images/s of the fused network on decoded batches."""
    network = FastClassifier(model)
    batch = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    network(batch)
    rounds = max(1, photos // BATCH)
    started = time.perf_counter()
    for _ in range(rounds):
        network(batch)
    return rounds * BATCH / (time.perf_counter() - started)


def predict_speed(model: ProductClassifier, place: Path, photos: list[Path]) -> float:
    """Images/s of predict from JPEG files, from the call to the CSV."""
    (place / "photos").mkdir()
    for file in photos:
        shutil.copy(file, place / "photos")
    with open_run("benchmark") as run:
        uri = f"models:/{run.log_model(model, {})}"
    started = time.perf_counter()
    predict(uri, str(place / "photos"), place / "answers.csv")
    return len(photos) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
