"""Matching by photos alone: a model trained on some label groups, matching on the others.

    python benchmarks/match_photos.py CATALOGUE --weights WEIGHTS

Half of the label groups train EfficientNet-B0. The postings of the other half are matched by its
embeddings, and by those of the weights it started from; half of these groups choose the matcher,
and the others score it. Titles are not used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from shopee_mlflow import TrainConfig, build_model, train
from shopee_mlflow.config import DataConfig
from shopee_mlflow.console import watch
from shopee_mlflow.data.catalog_forms import load_catalog
from shopee_mlflow.data.photo_files import find_photo_files
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
    options = parser.parse_args()
    config = DataConfig(data=str(options.catalogue), largest_groups=0)
    catalog = load_catalog(config, watch)
    assert catalog.folder is not None
    groups = np.sort(catalog.rows["label_group"].unique())
    groups = np.random.default_rng(_SEED).permutation(groups)
    trained = catalog.rows["label_group"].isin(groups[: len(groups) // 2])
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
                image_size=224,
            )
        )
    rows = catalog.rows[~trained].reset_index(drop=True)
    start = build_model("effnet_pretrained", ["a", "b"], 224, options.weights)
    print_ladder("starting weights", start.eval(), rows, catalog.folder)
    print_ladder("trained", embedding_model(result.uri, 224, "stretch"), rows, catalog.folder)


def print_ladder(name: str, model: ProductClassifier, rows: pd.DataFrame, folder: Path) -> None:
    """Match postings by photos alone, and print the ladder."""
    started = time.monotonic()
    files = find_photo_files(folder, list(rows["image"])).found()
    photos = embed_files(model, files)
    postings = check_postings(rows[["posting_id", "image", "image_phash", "label_group"]], photos)
    ladder, _, _ = climb(postings, 4, 0.5, _SEED, print)
    print(f"{name}: {len(rows):,} postings, {time.monotonic() - started:.1f} s")
    print(ladder.table().drop(columns="words").round(4).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
