"""How many planted wrong labels a cross-validation finds.

    python benchmarks/label_issues.py --data shop --weights backbone.pth [--seed 0]

A share of the labels is replaced by other label groups, drawn by the seed, in a copy of the table
without the original's own split. All options of the command line after these are options of
cross-validate. docs/label_issues.md discusses the results.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from shopee_mlflow import cross_validate, load_dataset
from shopee_mlflow.config import CrossValidateConfig, resolve

OPTIONS = {"image_size": 128, "freeze": "features.6", "epochs": 12, "experiment": "planted"}


def main() -> None:
    """Print how many of the first labels of the list are planted, and how many are found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train.csv and train_images")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--share", type=float, default=0.05, help="share of labels to replace")
    parser.add_argument("--seed", type=int, default=0)
    given, rest = parser.parse_known_args()
    options = {**OPTIONS, "weights": given.weights, **pairs(rest)}
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(given.data, Path(folder) / "train.csv", given.share, given.seed)
        images = str(Path(given.data) / "train_images")
        config = resolve(CrossValidateConfig, {**options, "data": folder, "images": images})
        result = cross_validate(config)
    print(words(result.label_issues["image"], planted, len(result.predictions)))


def pairs(words: list[str]) -> dict[str, str]:
    """Options from ``--name value``."""
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    return dict(zip(names, words[1::2], strict=True))


def plant(data: str, file: Path, share: float, seed: int) -> set[str]:
    """Write the table of the photos that training keeps, some with other label groups.

    :returns: the files of these photos.
    """
    dataset = load_dataset(data)
    frame, rng = dataset.frame, np.random.default_rng(seed)
    rows = rng.choice(len(frame), round(share * len(frame)), replace=False)
    labels = frame["label_group"].to_numpy(object).copy()
    for row in rows:
        labels[row] = rng.choice([name for name in dataset.classes if name != labels[row]])
    columns = [name for name in ("image", "title", "image_phash") if name in frame]
    frame[columns].assign(label_group=labels).to_csv(file, index=False)
    return set(frame["image"].iloc[rows])


def words(listed: pd.Series, planted: set[str], photos: int) -> str:
    """Precision at several lengths of the list, and recall."""
    found, count = listed.isin(planted).to_numpy(), len(planted)
    lines = [f"{count} of {photos} labels planted, {len(listed)} listed"]
    lines += [f"precision of the first {k}: {found[:k].mean():.0%}" for k in (10, 20, count)]
    lines += [
        f"recall of {k} labels: {found[:k].sum() / count:.0%}"
        for k in (count, 2 * count, len(listed))
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
