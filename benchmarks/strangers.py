"""Which score tells photos of no label group best, and what a temperature changes.

    python benchmarks/strangers.py shop --weights FILE --freeze features.6 [--seeds 3]

Other options are those of train. Each seed is a split, a training and a choice of the half of the
left-out label groups that serve as references. docs/strangers.md discusses the results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from shopee_mlflow.config import TrainConfig, resolve
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.data.splits import TEST, TRAIN, VAL
from shopee_mlflow.modeling.device import choose_machine
from shopee_mlflow.modeling.metrics import softmax
from shopee_mlflow.modeling.strangers import Embedded, reference_half
from shopee_mlflow.modeling.temperature import calibration_facts
from shopee_mlflow.tracking.run_log import NullRunLog
from shopee_mlflow.training.context import TrainingContext
from shopee_mlflow.training.refusal import Embedder, left_out_photos
from shopee_mlflow.training.session import TrainingSession

Score = Callable[[Embedded], np.ndarray]
_HALVES = 4


def main(arguments: list[str]) -> None:
    """Train with each seed, and print a table of scores and one of calibration errors."""
    given = dict(zip([a.lstrip("-") for a in arguments[1::2]], arguments[2::2], strict=True))
    seeds = int(given.pop("seeds", "3"))
    rows, calibrated = [], []
    for seed in range(seeds):
        options = {**given, "data": arguments[0], "seed": str(seed), "split_seed": str(seed)}
        config = resolve(TrainConfig, options)
        context = TrainingContext(
            load_dataset(config), choose_machine(config.device, config.precision)
        )
        session = TrainingSession(config, context, NullRunLog())
        session.fit(_Silent())
        test = session.test()
        raw = test.logits * np.float32(test.temperature.value)
        facts = calibration_facts(test.labels, raw, test.logits, test.temperature)
        calibrated.append({"test_accuracy": test.scores["test_accuracy"], **facts})
        embedder, strangers = (
            Embedder(context, session.model, session.inputs),
            left_out_photos(context),
        )
        train, val, known = (embedder.rows(context.dataset.rows(n)) for n in (TRAIN, VAL, TEST))
        others = embedder.photos(strangers.pixels)
        rows += measure(train, val, known, others, strangers.frame["label_group"].tolist())
    print(table(rows).to_string(float_format="{:.3f}".format))
    print(pd.DataFrame(calibrated).drop(columns="words").to_string(float_format="{:.3f}".format))


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Means over seeds and halves, the best area under the curve first."""
    means = pd.DataFrame(rows).groupby("score").mean()
    return means.sort_values("AUROC", ascending=False)


def measure(
    train: Embedded, val: Embedded, test: Embedded, strangers: Embedded, groups: list[str]
) -> list[dict[str, object]]:
    """One row for each score and choice of halves; thresholds keep 95 % of val."""
    rows: list[dict[str, object]] = []
    mahalanobis = _mahalanobis(train)
    for seed in range(_HALVES):
        half = reference_half(groups, seed)
        references = Embedded(strangers.embeddings[half], strangers.logits[half], strangers.labels)
        measured = Embedded(strangers.embeddings[~half], strangers.logits[~half], strangers.labels)
        for name, score in scores(train, references, mahalanobis).items():
            known, others = score(test), score(measured)
            limit = np.quantile(score(val), 0.05, method="lower")
            truth = np.r_[np.ones(len(known)), np.zeros(len(others))]
            rows.append(
                {
                    "score": name,
                    "AUROC": roc_auc_score(truth, np.r_[known, others]),
                    "strangers accepted": (others >= limit).mean(),
                    "test photos kept": (known >= limit).mean(),
                    "accepted at 80 % kept": (others >= np.quantile(known, 0.2)).mean(),
                }
            )
    return rows


def scores(train: Embedded, references: Embedded, mahalanobis: Score) -> Mapping[str, Score]:
    """Name -> photos -> scores, higher for known photos."""
    known, others = _directions(train.embeddings), _directions(references.embeddings)

    def nearest(photos: Embedded, among: np.ndarray, k: int = 1) -> np.ndarray:
        similar = np.sort(_directions(photos.embeddings) @ among.T, axis=1)
        mean: np.ndarray = similar[:, -k:].mean(axis=1)
        return mean

    linear = LogisticRegression(C=10, class_weight="balanced", max_iter=500).fit(
        np.concatenate([known, others]), np.r_[np.ones(len(known)), np.zeros(len(others))]
    )

    def sum_with_linear(photos: Embedded) -> np.ndarray:
        side: np.ndarray = linear.decision_function(_directions(photos.embeddings))
        return side / 4 + 4 * nearest(photos, known)

    return {
        "highest probability": lambda photos: softmax(photos.logits).max(axis=1),
        "energy": lambda photos: logsumexp(photos.logits, axis=1),
        "Mahalanobis distance": mahalanobis,
        "nearest known photo": lambda photos: nearest(photos, known),
        "nearest known - nearest stranger": lambda photos: (
            nearest(photos, known) - nearest(photos, others)
        ),
        "the same, means of 3": lambda photos: (
            nearest(photos, known, 3) - nearest(photos, others, 3)
        ),
        "logistic regression": lambda photos: linear.decision_function(
            _directions(photos.embeddings)
        ),
        "logistic regression + nearest known": sum_with_linear,
        "nearest difference + energy": lambda photos: (
            4 * (nearest(photos, known) - nearest(photos, others))
            + logsumexp(photos.logits, axis=1) / 4
        ),
    }


def _mahalanobis(train: Embedded) -> Score:
    """Minus the Mahalanobis distance to the nearest class mean, with a shared covariance."""
    means = np.stack(
        [train.embeddings[train.labels == c].mean(axis=0) for c in np.unique(train.labels)]
    )
    precision = LedoitWolf().fit(train.embeddings - means[train.labels]).precision_
    whitened = np.linalg.cholesky(precision)

    def score(photos: Embedded) -> np.ndarray:
        distances: np.ndarray = cdist(photos.embeddings @ whitened, means @ whitened).min(axis=1)
        return -distances

    return score


def _directions(embeddings: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    directions: np.ndarray = embeddings / np.maximum(lengths, 1e-12)
    return directions


class _Silent:
    """Shows no progress."""

    def batch(self, done: int, loss: float, accuracy: float) -> None:
        """Do nothing."""

    def epoch(self, number: int, metrics: Mapping[str, float], best: bool) -> None:
        """Do nothing."""


if __name__ == "__main__":
    main(sys.argv[1:])
