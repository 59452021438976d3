"""How fast is predict beside the bare network? Photos of 1024 px, EfficientNet-B0, the same cores.

    python benchmarks/predict.py --photos 384

Draws the built-in catalogue at 1024 px once (about a minute), logs a model into a temporary
store, and prints a Markdown row: images/s of the bare fused network on decoded batches, and of the
whole of predict, loading and decoding included.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import shutil
import tempfile
import time
from pathlib import Path

import mlflow
import torch

from shopee_mlflow import build_model, predict, sample_catalog
from shopee_mlflow.modeling.inference import FastClassifier
from shopee_mlflow.tracking.runs import open_run

BATCH = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=384)
    parser.add_argument("--image-size", type=int, default=256)
    options = parser.parse_args()
    model = build_model("effnet", [str(i) for i in range(21)], options.image_size).eval()
    bare = bare_speed(model, options.image_size, options.photos)
    with tempfile.TemporaryDirectory() as place:
        mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
        whole = predict_speed(model, Path(place), options.photos)
    print(
        "| photos | px | bare network, images/s | predict, images/s | share | threads | machine |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    print(
        f"| {options.photos} | 1024 | {bare:.1f} | {whole:.1f} | {whole / bare:.0%} | "
        f"{torch.get_num_threads()} | {platform.machine()}, torch {torch.__version__} |"
    )


def bare_speed(model: torch.nn.Module, side: int, photos: int) -> float:
    """Images/s of the fused network on batches that are decoded already."""
    network = FastClassifier(model)
    batch = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    network(batch)
    started = time.perf_counter()
    for _ in range(photos // BATCH):
        network(batch)
    return photos // BATCH * BATCH / (time.perf_counter() - started)


def predict_speed(model: torch.nn.Module, place: Path, photos: int) -> float:
    """Images/s of predict from JPEG files, from the call to the CSV."""
    files = sorted((sample_catalog(1024) / "train_images").iterdir())
    (place / "photos").mkdir()
    for file in itertools.islice(files, photos):
        shutil.copy(file, place / "photos")
    with open_run("benchmark") as run:
        uri = f"models:/{run.log_model(model, {})}"
    started = time.perf_counter()
    predict(uri, str(place / "photos"), place / "answers.csv")
    return photos / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
