"""Labels and logits become named scores, with intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report, confusion_matrix

# Two-sided 95 % of the normal distribution.
_Z95 = 1.959963984540054


def wilson_interval(correct: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209-212.

    :returns: lower and upper bound, 0..1.
    :raises ValueError: unless 0 <= correct <= total and total > 0.
    """
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}: needs 0 <= correct <= total, total > 0")
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At 0 and at all correct the bound is exact; rounding must not pass it.
    low = 0.0 if correct == 0 else (centre - spread) / scale
    high = 1.0 if correct == total else (centre + spread) / scale
    return low, high


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) logits -> probabilities, in float64."""
    shifted = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def score(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Accuracy with its 95 % Wilson interval, and cross entropy, over every photo given.

    :param labels: (N,) int, positions of the true classes.
    :param logits: (N, C) float.
    :returns: accuracy, accuracy_low, accuracy_high, loss.
    """
    correct = int((logits.argmax(axis=1) == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    # log-sum-exp form: a probability that underflows to 0 must not make the loss infinite
    shifted = np.float64(logits) - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    loss = float((log_total - shifted[np.arange(len(labels)), labels]).mean())
    return {
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": loss,
    }


def mcnemar(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Whether two classifiers differ by more than chance on the same photos: McNemar's exact test.

    Photos that both get right, or both wrong, say nothing; of the others, each classifier would
    be right on half, were they equally good.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12 (1947), 153-157; the exact form takes the
    binomial distribution.

    :param labels: (N,) int, true classes; ``first`` and ``second`` (N,) int, predicted ones.
    :returns: photos that only the first gets right, only the second, and the two-sided p value.
    """
    right, other = first == labels, second == labels
    only_first, only_second = int((right & ~other).sum()), int((~right & other).sum())
    differ = only_first + only_second
    tail = sum(math.comb(differ, k) for k in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, 2 * tail / 2**differ)


def class_report(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """scikit-learn's classification report: precision, recall, f1-score and support by class."""
    report: dict[str, Any] = classification_report(
        labels,
        predicted,
        labels=range(len(classes)),
        target_names=classes,
        output_dict=True,
        zero_division=0.0,
    )
    report.pop("accuracy", None)
    report.pop("micro avg", None)
    return pd.DataFrame(report).T.rename_axis("label_group").reset_index()


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Counts of true (rows) against predicted (columns) label groups."""
    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=classes)
