"""Matching by photos: models trained on some label groups, matching on the others.

    python benchmarks/match_photos.py CATALOGUE --weights WEIGHTS --losses cross_entropy,arcface

Half of the label groups train EfficientNet-B0, once with each loss. The postings of the other half
are matched by its embeddings, and by those of the weights it started from; half of these groups
choose the threshold, and the others score it. The row "photos" of a ladder is by the cosine of
embeddings alone; docs/match.md has its results. Titles are not used. Phashes keep copies on one
side of the split, and the rows after "photos" are also by phashes. Each model's photos are matched
again after averaging each embedding with its neighbours'.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from shopee_mlflow import TrainConfig, build_model, train
from shopee_mlflow.console import watch
from shopee_mlflow.data.catalog_forms import load_catalog
from shopee_mlflow.data.photo_files import find_photo_files
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.matching.ladder import climb
from shopee_mlflow.matching.postings import check_postings
from shopee_mlflow.modeling.models import ProductClassifier
from shopee_mlflow.tracking.photo_embeddings import embed_files, embedding_model

_SEED = 0


def main() -> None:
    """Train, match by both models, and print their ladders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--freeze", default="features.5")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--losses", default="cross_entropy")
    parser.add_argument("--lr", type=float, default=0.02)
    options = parser.parse_args()
    config = DataConfig(data=str(options.catalogue), largest_groups=0)
    catalog = load_catalog(config, watch)
    assert catalog.folder is not None
    groups = np.sort(catalog.rows["label_group"].unique())
    groups = np.random.default_rng(_SEED).permutation(groups)
    trained = catalog.rows["label_group"].isin(groups[: len(groups) // 2])
    rows = catalog.rows[~trained].reset_index(drop=True)
    size = options.image_size
    start = build_model("effnet_pretrained", ["a", "b"], size, options.weights)
    print_ladders("starting weights", start.eval(), rows, catalog.folder)
    for loss in options.losses.split(","):
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "train.csv"
            catalog.rows[trained].to_csv(table, index=False)
            result = train(
                TrainConfig(
                    data=str(table),
                    images=str(catalog.folder),
                    largest_groups=0,
                    model="effnet_pretrained",
                    weights=options.weights,
                    freeze=options.freeze,
                    epochs=options.epochs,
                    augment="flip",
                    batch_size=32,
                    image_size=size,
                    loss=loss,
                    lr=options.lr,
                    unknown="none",
                )
            )
        print_ladders(loss, embedding_model(result.uri, size, "stretch"), rows, catalog.folder)


def averaged(photos: np.ndarray, nearest: int = 5, power: int = 3) -> np.ndarray:
    """Embeddings averaged with those of the nearest photos, weighted by powers of their cosines."""
    cosines = photos @ photos.T
    least = np.partition(cosines, -nearest, axis=1)[:, -nearest]
    weights = np.where(cosines >= least[:, None], np.maximum(cosines, 0) ** power, 0)
    mean = weights @ photos
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def print_ladders(name: str, model: ProductClassifier, rows: pd.DataFrame, folder: Path) -> None:
    """Match postings without and with averaging of embeddings, and print both ladders."""
    files = find_photo_files(folder, list(rows["image"])).found()
    photos = embed_files(model, files)
    for words, values in ((name, photos), (f"{name}, averaged", averaged(photos))):
        started = time.monotonic()
        postings = check_postings(
            rows[["posting_id", "image", "image_phash", "label_group"]], values
        )
        ladder, _, _ = climb(postings, 4, 0.5, _SEED, lambda _: None)
        print(f"{words}: {len(rows):,} postings, {time.monotonic() - started:.1f} s")
        print(ladder.table().drop(columns="words").round(4).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
