"""Strangers: a threshold below which a photo belongs to none of the label groups, and its errors.

Half of the photos of left-out label groups are references of the detector; the other half, of other
label groups, measures it together with the test split. docs/strangers.md compares the scores that
were tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch

from .inference import UNKNOWN
from .metrics import softmax
from .models import StrangerDetector

# The share of known photos that the threshold keeps.
KEPT = 0.95
# With fewer validation photos, their lowest 5 % are no photo or one.
FEWEST_VAL = 20
# Embeddings in a model: 10 MiB with 1,280 features.
_MOST_REFERENCES = 4096
FEW_STRANGERS = 20


@dataclass(frozen=True)
class Embedded:
    """Photos as the network sees them.

    :ivar embeddings: (N, features) float32; ``logits`` (N, C) float32, calibrated.
    :ivar labels: (N,) int64; empty for strangers.
    """

    embeddings: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class StrangerResult:
    """A detector of strangers and its measurement.

    :ivar detector: None if there is none; ``words`` say why.
    :ivar facts: name -> number. Shares: kept_val, kept_test, strangers_accepted; and the area under
        the ROC curve, auroc. The same with the highest probability as the score: by_probability_*.
    :ivar curve: one row per threshold: known_kept and strangers_accepted (shares), and accuracy of
        the known photos that are kept.
    :ivar photos: the strangers: image, label_group, use (reference or measured), known_score,
        nearest (the label group that the model would name), probability.
    :ivar known_scores: of the test photos, (T,) float32; ``stranger_scores`` of the measured ones.
    """

    detector: StrangerDetector | None = None
    words: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    curve: pd.DataFrame = field(default_factory=pd.DataFrame)
    photos: pd.DataFrame = field(default_factory=pd.DataFrame)
    known_scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    stranger_scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def scores(self) -> dict[str, float]:
        """The metric of a run: strangers_accepted, if it is measured."""
        return {name: self.facts[name] for name in ("strangers_accepted",) if name in self.facts}


def detect_strangers(
    train: Embedded,
    val: Embedded,
    test: Embedded,
    strangers: Embedded,
    frame: pd.DataFrame,
    classes: Sequence[str],
    seed: int,
) -> StrangerResult:
    """Make a detector from train, val and half of the strangers; measure it on the others and test.

    :param frame: columns image and label_group of the strangers.
    :param seed: of the halves.
    """
    if UNKNOWN in classes:
        return StrangerResult(
            words=[
                f"a label group is named {UNKNOWN}, so photos of no label group cannot be answered "
                "by this word"
            ]
        )
    if len(val.labels) < FEWEST_VAL:
        return StrangerResult(
            words=[
                f"strangers are not refused: a threshold needs {FEWEST_VAL} validation photos, and "
                f"there {'is' if len(val.labels) == 1 else 'are'} {len(val.labels)}"
            ]
        )
    reference = reference_half(frame["label_group"].tolist(), seed)
    # The threshold needs both halves to be measured.
    measured = ~reference & reference.any()
    detector = _fitted(train, val, strangers.embeddings[reference])
    facts = _measured(detector, val, test, strangers, measured)
    known, others = _scores(detector, test), _scores(detector, strangers)[measured]
    return StrangerResult(
        detector,
        [_how_found(frame, reference), *_in_words(facts)],
        facts,
        stranger_curve(known, test.logits.argmax(axis=1) == test.labels, others),
        _photos(detector, frame, strangers, reference, classes),
        known,
        others,
    )


def reference_half(groups: Sequence[str], seed: int) -> np.ndarray:
    """(N,) bool: a half of the photos by label groups; all False for fewer than two groups."""
    chosen = np.zeros(len(groups), bool)
    names = np.array(groups, dtype=object)
    sizes = pd.Series(names, dtype=object).value_counts()
    order = np.random.default_rng(seed).permutation(sorted(sizes.index))
    counts = [0, 0]
    for name in order if len(order) > 1 else ():
        half = int(counts[1] < counts[0])
        counts[half] += int(sizes[name])
        chosen[names == name] = half == 0
    return chosen


def _fitted(train: Embedded, val: Embedded, references: np.ndarray) -> StrangerDetector:
    known = torch.from_numpy(train.embeddings[reference_rows(train.labels)])
    detector = StrangerDetector(known, torch.from_numpy(references))
    detector.threshold = float(np.quantile(_scores(detector, val), 1 - KEPT, method="lower"))
    return detector


def reference_rows(labels: np.ndarray, most: int = _MOST_REFERENCES) -> np.ndarray:
    """Rows of the training photos that a detector keeps: as many of each label group."""
    each = max(most // max(len(np.unique(labels)), 1), 1)
    rank = pd.Series(labels).groupby(labels).cumcount().to_numpy()
    return np.flatnonzero(rank < each) if len(labels) > most else np.arange(len(labels))


@torch.inference_mode()
def _scores(detector: StrangerDetector, photos: Embedded) -> np.ndarray:
    scores: np.ndarray = detector(torch.from_numpy(photos.embeddings)).numpy()
    return scores


def _measured(
    detector: StrangerDetector,
    val: Embedded,
    test: Embedded,
    strangers: Embedded,
    measured: np.ndarray,
) -> dict[str, float]:
    kept = {"val": _scores(detector, val) >= 0, "test": _scores(detector, test) >= 0}
    facts = {f"kept_{name}": float(values.mean()) for name, values in kept.items() if len(values)}
    if not (measured.any() and len(test.labels)):
        return facts
    scores = _scores(detector, test), _scores(detector, strangers)[measured]
    best = [softmax(photos.logits).max(axis=1) for photos in (val, test, strangers)]
    lowest = float(np.quantile(best[0], 1 - KEPT, method="lower"))
    return {
        **facts,
        "photos_measured": float(measured.sum()),
        "strangers_accepted": float((scores[1] >= 0).mean()),
        "auroc": auroc(*scores),
        "by_probability_accepted": float((best[2][measured] >= lowest).mean()),
        "by_probability_auroc": auroc(best[1], best[2][measured]),
    }


def auroc(known: np.ndarray, strangers: np.ndarray) -> float:
    """Area under the ROC curve: how often a known photo scores higher than a stranger."""
    from sklearn.metrics import roc_auc_score

    truth = np.r_[np.ones(len(known)), np.zeros(len(strangers))]
    return float(roc_auc_score(truth, np.r_[known, strangers]))


def stranger_curve(known: np.ndarray, right: np.ndarray, others: np.ndarray) -> pd.DataFrame:
    """One row per threshold: known_score, known_kept, accuracy and, if any, strangers_accepted.

    :param known: (T,) scores of known photos, and ``right`` (T,) bool whether they are classified
        correctly; ``others`` (M,) scores of strangers.
    """
    rows = []
    for limit in np.unique(known):
        kept = known >= limit
        row = {"known_kept": float(kept.mean()), "accuracy": float(right[kept].mean())}
        if len(others):
            row["strangers_accepted"] = float((others >= limit).mean())
        rows.append({"known_score": float(limit), **row})
    return pd.DataFrame(rows)


def _photos(
    detector: StrangerDetector,
    frame: pd.DataFrame,
    strangers: Embedded,
    reference: np.ndarray,
    classes: Sequence[str],
) -> pd.DataFrame:
    probabilities = softmax(strangers.logits)
    return frame.assign(
        use=np.where(reference, "reference", "measured"),
        known_score=_scores(detector, strangers).round(4),
        nearest=[classes[i] for i in probabilities.argmax(axis=1)],
        probability=probabilities.max(axis=1).round(6),
    )


def _how_found(frame: pd.DataFrame, reference: np.ndarray) -> str:
    if reference.any():
        examples, groups = int(reference.sum()), frame["label_group"].nunique()
        return (
            f"strangers: {len(frame):,} photos show {groups:,} label groups that the model does "
            f"not learn; {examples:,} of them are its examples for the answer unknown, the other "
            f"{len(frame) - examples:,} test it"
        )
    if len(frame):
        return (
            f"strangers: {len(frame):,} photos of one left-out label group are too few for two "
            "halves, so the threshold follows from val alone and is not measured"
        )
    return (
        "strangers: no label group is left out, so the threshold follows from val alone and is not "
        "measured"
    )


def _in_words(facts: dict[str, float]) -> list[str]:
    if "auroc" not in facts:
        return []
    measured = int(facts["photos_measured"])
    few = " (too few photos for a precise share)" if measured < FEW_STRANGERS else ""
    return [
        f"{facts['strangers_accepted']:.1%} of {measured:,} strangers{few} get a label group, and "
        f"{facts['kept_test']:.1%} of the test photos keep theirs (AUROC {facts['auroc']:.3f}); "
        "with a threshold on the probability, "
        f"{facts['by_probability_accepted']:.1%} of the strangers would get one "
        f"(AUROC {facts['by_probability_auroc']:.3f})"
    ]
