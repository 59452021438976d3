"""Metrics of labels and logits, with confidence intervals and significance tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

# scipy and scikit-learn are imported where they are used: each takes about a second.

# Metrics that a finished training logs: those of its best epoch, and score() of the test split.
FINAL_METRICS = (
    *("best_val_accuracy", "best_epoch", "strangers_accepted"),
    *("test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_loss"),
    *("test_macro_f1", "test_balanced_accuracy", "test_top5_accuracy"),
)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209-212.

    :returns: lower and upper bound, 0..1.
    :raises ValueError: unless 0 <= correct <= total and total > 0.
    """
    from scipy.stats import binomtest

    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}: needs 0 <= correct <= total, total > 0")
    interval = binomtest(int(correct), int(total)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) logits -> probabilities, in float64."""
    from scipy.special import softmax as scipy_softmax

    probabilities: np.ndarray = scipy_softmax(np.float64(logits), axis=1)
    return probabilities


def score(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Accuracy with its 95 % Wilson interval, loss, macro F1, balanced and top-5 accuracy.

    :param labels: (N,) int, indices of the true classes.
    :param logits: (N, C) float.
    :returns: accuracy, accuracy_low, accuracy_high, loss, macro_f1, balanced_accuracy,
        top5_accuracy.
    """
    from scipy.special import log_softmax

    predicted = logits.argmax(axis=1)
    correct = int((predicted == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    # From the logits: a probability that underflows to 0 must not make the loss infinite.
    log_probabilities = log_softmax(np.float64(logits), axis=1)[np.arange(len(labels)), labels]
    return {
        "accuracy": correct / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": -float(log_probabilities.mean()),
        "macro_f1": macro_f1(labels, predicted),
        "balanced_accuracy": balanced_accuracy(labels, predicted),
        "top5_accuracy": top_k_accuracy(labels, logits, 5),
    }


def accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Share of photos whose predicted class is right, 0..1."""
    return float((labels == predicted).mean())


def macro_f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean of the F1 scores of the classes, 0..1, as scikit-learn defines it.

    The mean is over classes that occur in ``labels`` or ``predicted``. A class with neither a
    photo nor a prediction is left out; one without photos that is predicted counts as 0.

    It is implemented here because an epoch with frozen layers may take only 30 ms: for 83 photos
    this function takes 0.01 ms, scikit-learn's takes 7 ms.

    :param labels: (N,) int, indices of the true classes; ``predicted`` (N,) int.
    """
    size = max(labels.max(), predicted.max()) + 1
    correct = np.bincount(labels[labels == predicted], minlength=size)
    total = np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)
    return float((2 * correct / np.maximum(total, 1))[total > 0].mean())


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean of the recalls of the classes, 0..1, as scikit-learn defines it.

    A class without photos is left out, whether it is predicted or not.

    :param labels: (N,) int, indices of the true classes; ``predicted`` (N,) int.
    """
    total = np.bincount(labels)
    correct = np.bincount(labels[labels == predicted], minlength=len(total))
    return float((correct[total > 0] / total[total > 0]).mean())


def top_k_accuracy(labels: np.ndarray, logits: np.ndarray, k: int) -> float:
    """Share of photos whose true class is among the ``k`` largest logits, 0..1.

    Of equal logits, the first one ranks higher, as in ``argmax``. With ``k`` or fewer classes the
    result is 1.

    :param labels: (N,) int, indices of the true classes.
    :param logits: (N, C) float.
    """
    true = logits[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    # Comparisons with NaN are false, so a NaN logit never counts as correct.
    rank = (~(logits <= true) | ((logits == true) & earlier)).sum(axis=1)
    return float((rank < k).mean())


def scores_of_test(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """:func:`score`, with the metric names of a run: test_accuracy and so on."""
    return {f"test_{name}": value for name, value in score(labels, logits).items()}


def mcnemar(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, sets: np.ndarray | None = None
) -> tuple[int, int, float]:
    """McNemar's exact test: whether two classifiers differ significantly on the same photos.

    The test uses the photos that only one of the two gets right. If both were equally good, each
    would be right on half of these. With ``sets``, the photos of a set of copies count together:
    each set has a difference, the photos that only the first gets right minus those that only the
    second does. If both were equally good, each difference would be as likely with the other sign.
    The p value is the share of all choices of signs whose sum is at least as far from 0. For sets
    of one photo this is McNemar's exact test.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12 (1947), 153-157; the exact form uses
    the binomial distribution. R. A. Fisher, "The Design of Experiments" (1935), section 21, for the
    randomization test of paired differences by their signs.

    :param labels: (N,) int, true classes; ``first`` and ``second`` (N,) int, predicted ones.
    :param sets: (N,) int, the number of the set of copies of each photo; None: all are independent.
    :returns: photos that only the first gets right, only the second, and the two-sided p value.
    """
    difference = (first == labels).astype(int) - (second == labels)
    counted = int((difference > 0).sum()), int((difference < 0).sum())
    if sets is not None:
        number = np.unique(sets, return_inverse=True)[1]
        difference = np.bincount(number, difference).astype(int)
    return *counted, _sign_test(difference[difference != 0])


def _sign_test(differences: np.ndarray) -> float:
    """Two-sided p value of a sum: the share of all choices of signs with one as far from 0.

    :param differences: (K,) int, none of them 0.
    """
    from scipy.stats import binom, binomtest

    sizes, counts = np.unique(np.abs(differences), return_counts=True)
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        return float(binomtest(int((differences > 0).sum()), int(counts[0]), 0.5).pvalue)
    # The positive part of the sum has a scaled binomial distribution for each size.
    shares = np.ones(1)
    for size, count in zip(sizes, counts, strict=True):
        part = np.zeros(size * count + 1)
        part[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        shares = np.convolve(shares, part)
    total = int(np.abs(differences).sum())
    far = np.abs(2 * np.arange(total + 1) - total) >= abs(int(differences.sum()))
    return min(1.0, float(shares[far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of several tests, adjusted to control the family-wise error rate.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979), 65-70.

    :returns: adjusted p values, 0..1, in the order given.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def calibration(labels: np.ndarray, logits: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Accuracy by predicted probability, in bins of equal width.

    :param labels: (N,) int; ``logits`` (N, C) float.
    :returns: a row for each bin that has photos: low, high, photos, confidence (mean probability
        of the predicted class), accuracy.
    """
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = [
        {
            "low": b / bins,
            "high": (b + 1) / bins,
            "photos": int((number == b).sum()),
            "confidence": float(confidence[number == b].mean()),
            "accuracy": float(right[number == b].mean()),
        }
        for b in np.unique(number)
    ]
    return pd.DataFrame(rows)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Mean gap between confidence and accuracy, weighted by photos, 0..1.

    Source: M. Pakdaman Naeini et al., "Obtaining well calibrated probabilities using Bayesian
    binning", AAAI 2015.

    :param table: as :func:`calibration` returns it.
    """
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float((gaps * table["photos"]).sum() / table["photos"].sum())


def chance_calibration_error(table: pd.DataFrame) -> float:
    """Expected calibration error of a perfectly calibrated model on as many photos, 0..1.

    The expected gap of a bin is the mean absolute deviation of a binomial distribution.

    Source: de Moivre's formula, in P. Diaconis and S. Zabell, "Closed form summation for classical
    distributions: variations on a theme of de Moivre", Statistical Science 6 (1991), 284-302.

    :param table: as :func:`calibration` returns it; all photos of a bin have its mean confidence.
    """
    from scipy.stats import binom

    photos, p = table["photos"].to_numpy(dtype=int), table["confidence"].to_numpy(dtype=float)
    # E|X - np| of a binomial X is 2 m (1 - p) P(X = m) with m = floor(np) + 1.
    m = np.floor(photos * p) + 1
    deviation = 2 * m * (1 - p) * binom.pmf(m, photos, p)
    return float(deviation.sum() / photos.sum())


def class_report(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 and support of each class, and their averages, as in scikit-learn.

    :returns: columns label_group, precision, recall, f1-score, support. A row for each class, in
        the order of ``classes``, then the two rows ``macro avg`` and ``weighted avg``. A label
        group may have the same name, so identify the averages by their position.
    """
    from sklearn.metrics import precision_recall_fscore_support

    values = np.array(
        precision_recall_fscore_support(
            labels, predicted, labels=range(len(classes)), zero_division=0.0
        )
    ).T
    averages = np.stack([values.mean(axis=0), np.average(values, axis=0, weights=values[:, 3])])
    averages[:, 3] = values[:, 3].sum()
    table = pd.DataFrame(
        np.concatenate([values, averages]), columns=["precision", "recall", "f1-score", "support"]
    )
    table.insert(0, "label_group", [*classes, "macro avg", "weighted avg"])
    return table


def with_label_names(report: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A class report with a column ``label_name`` if names differ from the label groups.

    :param report: as :func:`class_report` returns it.
    :param names: names of the classes, in order; may be empty.
    """
    if not names or list(names) == report["label_group"].tolist()[: len(names)]:
        return report
    averages = len(report) - len(names)
    report = report.copy()
    report.insert(1, "label_name", [*names, *[""] * averages])
    return report


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Counts of true (rows) against predicted (columns) label groups."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predicted, labels=range(len(classes)))
    return pd.DataFrame(counts, index=pd.Index(classes, name="true"), columns=classes)
