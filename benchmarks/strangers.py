"""Which score tells photos of no label group best, and what a temperature changes.

    python benchmarks/strangers.py shop --weights FILE --freeze features.6 [--seeds 4]

Other options are those of train. Each seed is a split and a training. The left-out label groups are
divided into two halves, four times. Scores are compared ("chosen") on the first half alone: a part
of it has the references, the other is measured. Then the whole first half has the references, and
the second half, which has chosen nothing, is measured ("reported"). For the first of the four
divisions, a network is also trained with the references as one more label group (outlier exposure).
docs/strangers.md discusses the results.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shopee_mlflow.config import TrainConfig, resolve
from shopee_mlflow.data.dataset import Dataset, load_dataset
from shopee_mlflow.data.left_out_photos import Strangers
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
Row = dict[str, object]
_HALVES = 4
_NONE = "none of these"


def main(arguments: list[str]) -> None:
    """Train with each seed, and print tables of scores and one of calibration errors."""
    given = dict(zip([a.lstrip("-") for a in arguments[1::2]], arguments[2::2], strict=True))
    seeds = int(given.pop("seeds", "4"))
    rows: list[Row] = []
    calibrated = []
    for seed in range(seeds):
        options = {**given, "data": arguments[0], "seed": str(seed), "split_seed": str(seed)}
        config = resolve(TrainConfig, options)
        machine = choose_machine(config.device, config.precision)
        context = TrainingContext(load_dataset(config), machine)
        strangers = left_out_photos(context)
        session = TrainingSession(config, context, NullRunLog())
        session.fit(_Silent())
        test = session.test()
        raw = test.logits * np.float32(test.temperature.value)
        facts = calibration_facts(test.labels, raw, test.logits, test.temperature)
        calibrated.append({"test_accuracy": test.scores["test_accuracy"], **facts})
        photos, groups = _embedded(session, strangers), strangers.frame["label_group"]
        distances = mahalanobis(photos[0])
        for stage, train, reference, measured in divisions(groups.tolist()):
            found = measure(*photos, groups, reference, measured, distances)
            if train:
                found += exposed(context, config, strangers, reference, measured)
            rows += [{"stage": stage, "trained": train, **row} for row in found]
        print(f"seed {seed}: test accuracy {test.scores['test_accuracy']:.1%}", flush=True)
    everything = pd.DataFrame(rows)
    exposure = everything["score"].str.startswith("exposure")
    print("\nAll divisions", table(everything[~exposure]), sep="\n")
    print(
        "\nThe first division, with outlier exposure",
        table(everything[everything["trained"]]),
        sep="\n",
    )
    print(pd.DataFrame(calibrated).drop(columns="words").to_string(float_format="{:.3f}".format))


def table(rows: pd.DataFrame) -> str:
    """Means over seeds and divisions, the best area under the curve of the choice first."""
    names = ["AUROC", "accepted", "kept", "at 95", "at 80"]
    means = rows.pivot_table(index="score", columns="stage", values=names)
    order = [(name, stage) for stage in ("chosen", "reported") for name in names]
    shown = means[order].swaplevel(axis=1).sort_values(("chosen", "AUROC"), ascending=False)
    text: str = shown.to_string(float_format="{:.3f}".format)
    return text


def divisions(groups: list[str]) -> Iterator[tuple[str, bool, np.ndarray, np.ndarray]]:
    """Stage, whether to train with the references, and which strangers are references or measured.

    The last two are (N,) bool each.
    """
    names = np.array(groups, dtype=object)
    for half in range(_HALVES):
        first = reference_half(groups, half)
        inner = np.zeros(len(names), bool)
        inner[first] = reference_half(names[first].tolist(), _HALVES + half)
        yield "chosen", half == 0, inner, first & ~inner
        yield "chosen", False, first & ~inner, inner
        yield "reported", half == 0, first, ~first


def measure(
    train: Embedded,
    val: Embedded,
    test: Embedded,
    strangers: Embedded,
    groups: pd.Series,
    reference: np.ndarray,
    measured: np.ndarray,
    distances: tuple[Score, Score],
) -> list[Row]:
    """One row for each score; thresholds keep 95 % of val.

    :param groups: the label groups of the strangers; ``distances`` as for :func:`scores`.
    """
    found = scores(train, val, _part(strangers, reference), groups[reference], distances)
    return [
        _row(name, score(val), score(test), score(_part(strangers, measured)))
        for name, score in found.items()
    ]


def _row(name: str, val: np.ndarray, known: np.ndarray, others: np.ndarray) -> Row:
    limit = np.quantile(val, 0.05, method="lower")
    truth = np.r_[np.ones(len(known)), np.zeros(len(others))]
    return {
        "score": name,
        "AUROC": roc_auc_score(truth, np.r_[known, others]),
        "accepted": (others >= limit).mean(),
        "kept": (known >= limit).mean(),
        "at 95": (others >= np.quantile(known, 0.05, method="lower")).mean(),
        "at 80": (others >= np.quantile(known, 0.2)).mean(),
    }


def scores(
    train: Embedded,
    val: Embedded,
    references: Embedded,
    groups: pd.Series,
    distances: tuple[Score, Score],
) -> Mapping[str, Score]:
    """Name -> photos -> scores, higher for known photos.

    :param distances: as :func:`mahalanobis` returns them.
    :param groups: the label groups of the reference strangers.
    """
    known, others = _directions(train.embeddings), _directions(references.embeddings)
    apart = groups.to_numpy()[:, None] != groups.to_numpy()[None]

    def nearest(photos: Embedded, among: np.ndarray, k: int = 1) -> np.ndarray:
        similar = _directions(photos.embeddings) @ among.T
        if photos is references and among is others:
            # For a reference, photos of its own label group are no strangers that a shop has.
            similar = np.where(apart, similar, -1)
        mean: np.ndarray = np.sort(similar, axis=1)[:, -k:].mean(axis=1)
        return mean

    def soft(photos: Embedded) -> np.ndarray:
        similar = [_directions(photos.embeddings) @ among.T / 0.03 for among in (known, others)]
        sides = [logsumexp(each, axis=1) - np.log(each.shape[1]) for each in similar]
        difference: np.ndarray = sides[0] - sides[1]
        return difference

    linear = LogisticRegression(C=10, class_weight="balanced", max_iter=500).fit(
        np.concatenate([known, others]), np.r_[np.ones(len(known)), np.zeros(len(others))]
    )
    distance, background = distances

    def side(photos: Embedded) -> np.ndarray:
        value: np.ndarray = linear.decision_function(_directions(photos.embeddings))
        return value

    found: dict[str, Score] = {
        "highest probability": lambda photos: softmax(photos.logits).max(axis=1),
        "highest logit": lambda photos: photos.logits.max(axis=1),
        "energy": lambda photos: logsumexp(photos.logits, axis=1),
        "Mahalanobis": lambda photos: -distance(photos),
        "relative Mahalanobis": lambda photos: background(photos) - distance(photos),
        "known, nearest": lambda photos: nearest(photos, known),
        "known, mean of 3": lambda photos: nearest(photos, known, 3),
        "known, mean of 10": lambda photos: nearest(photos, known, 10),
        "difference, nearest": lambda photos: nearest(photos, known) - nearest(photos, others),
        "difference, nearest and 3 strangers": lambda photos: (
            nearest(photos, known) - nearest(photos, others, 3)
        ),
        "difference, means of 3": lambda photos: (
            nearest(photos, known, 3) - nearest(photos, others, 3)
        ),
        "difference, soft": soft,
        "logistic regression of embeddings": side,
        "the same + known": lambda photos: side(photos) / 4 + 4 * nearest(photos, known),
    }
    used = ("highest logit", "energy", "relative Mahalanobis", "known, nearest", "known, mean of 3")
    parts = [*(found[name] for name in used), lambda photos: nearest(photos, others)]
    found["logistic regression of six scores"] = _stacked(parts, val, references)
    return found


def _stacked(parts: list[Score], val: Embedded, references: Embedded) -> Score:
    """A logistic regression of several scores, fitted on val and the reference strangers."""

    def columns(photos: Embedded) -> np.ndarray:
        return np.column_stack([part(photos) for part in parts])

    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    ).fit(
        np.concatenate([columns(val), columns(references)]),
        np.r_[np.ones(len(val.logits)), np.zeros(len(references.logits))],
    )
    return lambda photos: np.asarray(model.decision_function(columns(photos)))


def exposed(
    context: TrainingContext,
    config: TrainConfig,
    strangers: Strangers,
    reference: np.ndarray,
    measured: np.ndarray,
) -> list[Row]:
    """Rows for a network that was trained with the references as one more label group."""
    data = with_references(context.dataset, strangers, reference)
    session = TrainingSession(config, TrainingContext(data, context.machine), NullRunLog())
    session.fit(_Silent())
    session.load_best()
    train, val, test, others = _embedded(session, strangers)
    last = len(data.classes) - 1
    known = train.labels < last
    found = scores(
        _part(train, known),
        val,
        _part(others, reference),
        strangers.frame["label_group"][reference],
        mahalanobis(_part(train, known)),
    )

    def odds(photos: Embedded) -> np.ndarray:
        value: np.ndarray = logsumexp(photos.logits[:, :last], axis=1) - photos.logits[:, last]
        return value

    nearest = found["difference, nearest and 3 strangers"]
    used: dict[str, Score] = {
        "exposure: odds of a label group": odds,
        "exposure: difference, nearest and 3 strangers": nearest,
        "exposure: both": lambda photos: nearest(photos) + odds(photos) / 20,
    }
    rows = [
        _row(name, score(val), score(test), score(_part(others, measured)))
        for name, score in used.items()
    ]
    right = (test.logits[:, :last].argmax(axis=1) == test.labels).mean()
    print(f"  exposure: test accuracy among the known label groups {right:.1%}", flush=True)
    return rows


def with_references(data: Dataset, strangers: Strangers, reference: np.ndarray) -> Dataset:
    """The dataset with reference strangers in train, as one more label group, the last one."""
    rows, count = np.flatnonzero(reference), len(data)
    added = pd.DataFrame({"image": strangers.frame["image"].iloc[rows].to_numpy()})
    content = [f"stranger {image}" for image in added["image"]]
    added = added.assign(label_group=_NONE, content=content, image_phash="", split=TRAIN)
    added = added.assign(label=len(data.classes), copy_set=-1 - np.arange(len(rows)))
    added = added.reindex(columns=data.frame.columns, fill_value="")
    return dataclasses.replace(
        data,
        frame=pd.concat([data.frame, added], ignore_index=True),
        decoded=np.concatenate([data.pixels, strangers.pixels[rows]]),
        cache_rows=np.arange(count + len(rows)),
        classes=[*data.classes, _NONE],
    )


def _embedded(
    session: TrainingSession, strangers: Strangers
) -> tuple[Embedded, Embedded, Embedded, Embedded]:
    """Train, val, test and the strangers, as the trained network sees them."""
    data = session.context.dataset
    embedder = Embedder(session.context, session.model, session.inputs)
    train, val, test = (embedder.rows(data.rows(name)) for name in (TRAIN, VAL, TEST))
    return train, val, test, embedder.photos(strangers.pixels)


def _part(photos: Embedded, chosen: np.ndarray) -> Embedded:
    labels = photos.labels[chosen] if len(photos.labels) else photos.labels
    return Embedded(photos.embeddings[chosen], photos.logits[chosen], labels)


def _one_class(photos: Embedded) -> Embedded:
    return dataclasses.replace(photos, labels=np.zeros_like(photos.labels))


def mahalanobis(train: Embedded) -> tuple[Score, Score]:
    """Squared Mahalanobis distances: to the nearest class mean, and to the mean of all photos."""
    return _mahalanobis(train), _mahalanobis(_one_class(train))


def _mahalanobis(train: Embedded) -> Score:
    """Squared Mahalanobis distance to the nearest class mean, with a shared covariance."""
    means = np.stack(
        [train.embeddings[train.labels == c].mean(axis=0) for c in np.unique(train.labels)]
    )
    shared = LedoitWolf(assume_centered=True).fit(train.embeddings - means[train.labels])

    def distance(photos: Embedded) -> np.ndarray:
        # scikit-learn's mahalanobis takes minutes here.
        apart = [photos.embeddings - mean for mean in means]
        each = [np.einsum("nd,nd->n", one @ shared.precision_, one) for one in apart]
        nearest: np.ndarray = np.min(each, axis=0)
        return nearest

    return distance


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
