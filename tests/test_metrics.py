"""Scores and their intervals."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import (
    balanced_accuracy_score,
    classification_report,
    f1_score,
    top_k_accuracy_score,
)

from shopee_mlflow.modeling.metrics import (
    FINAL_METRICS,
    balanced_accuracy,
    class_report,
    confusion,
    holm,
    macro_f1,
    mcnemar,
    score,
    softmax,
    top_k_accuracy,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # From scipy.stats.binomtest(correct, total).proportion_ci(method="wilson").
        (74, 75, 0.928266, 0.997642),
        (1, 10, 0.017876, 0.404150),
        (0, 20, 0.0, 0.161125),
        (20, 20, 0.838875, 1.0),
    ],
)
def test_wilson_interval(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_interval_of_nonsense(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match="needs 0 <= correct <= total"):
        wilson_interval(correct, total)


def test_score_counts_every_photo() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]], np.float32)
    result = score(np.array([0, 1, 1]), logits)
    assert result["accuracy"] == pytest.approx(2 / 3)
    losses = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(-3.0)), np.log1p(np.exp(1.0))]
    assert result["loss"] == pytest.approx(np.mean(losses))
    assert result["accuracy_low"] < 2 / 3 < result["accuracy_high"]


def test_a_confident_mistake_has_a_finite_loss() -> None:
    assert score(np.array([1]), np.array([[2000.0, 0.0]]))["loss"] == pytest.approx(2000.0)


def test_softmax_sums_to_one_without_overflow() -> None:
    probabilities = softmax(np.array([[1000.0, 1000.0], [0.0, -1000.0]], np.float32))
    assert probabilities == pytest.approx(np.array([[0.5, 0.5], [1.0, 0.0]]))


def test_tables_name_the_classes_even_those_never_predicted() -> None:
    labels, predicted = np.array([0, 0, 2]), np.array([0, 2, 2])
    counts = confusion(labels, predicted, ["a", "b", "c"])
    assert counts.to_numpy().tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    report = class_report(labels, predicted, ["a", "b", "c"]).set_index("label_group")
    assert report.loc["a", "recall"] == 0.5
    assert report.loc["b", "support"] == 0
    assert report.loc["macro avg", "support"] == 3


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),  # they never differ
        (1, 0, 1.0),  # 2 (1/2)
        (5, 0, 0.0625),  # 2 (1/32)
        (0, 6, 0.03125),  # 2 (1/64): the other is the better one
        (8, 1, 0.0390625),  # 2 (1 + 9) / 512
        (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 64, which is more than 1
        (10, 2, 158 / 4096),  # 2 (1 + 12 + 66) / 4096
    ],
)
def test_mcnemar_counts_what_one_alone_gets_right(
    only_first: int, only_second: int, p: float
) -> None:
    # Of each kind of photo: right by the first, right by the second, photos.
    kinds = [(1, 1, 7), (0, 0, 4), (1, 0, only_first), (0, 1, only_second)]
    first = np.concatenate([np.full(n, a) for a, _, n in kinds])
    second = np.concatenate([np.full(n, b) for _, b, n in kinds])
    labels = np.ones(len(first), int)
    found = mcnemar(labels, first, second)
    assert found == (only_first, only_second, pytest.approx(p))
    assert mcnemar(labels, second, first) == (only_second, only_first, pytest.approx(p))


def signs_p(differences: list[int]) -> float:
    """The p value of all choices of signs, one by one."""
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(s >= abs(sum(differences)) for s in sums) / len(sums)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([12], 1.0),  # twelve copies of one photo are one photo
        ([3, 3, 3], 0.25),  # 2 (1/8)
        ([4, 1], 0.5),  # sums 5, 3, -3, -5
        ([3, 2, -1], 0.5),  # 4: sums 6, 4, 2, 0, 0, -2, -4, -6
        ([5, 4, 4, 2, 1, 1, -1, -3], None),
        ([-1] * 9 + [2, 2, -7], None),
    ],
)
def test_mcnemar_counts_a_set_of_copies_together(differences: list[int], p: float | None) -> None:
    first = np.concatenate([np.full(abs(d), d > 0) for d in differences]).astype(int)
    sets = np.repeat(np.arange(len(differences)), np.abs(differences))
    labels = np.ones(len(first), int)
    found = mcnemar(labels, first, 1 - first, sets)
    assert found[:2] == mcnemar(labels, first, 1 - first)[:2]
    assert found[2] == pytest.approx(signs_p(differences) if p is None else p)
    order = np.random.default_rng(0).permutation(len(first))
    assert mcnemar(labels, first[order], (1 - first)[order], sets[order]) == found


def test_mcnemar_of_copies_that_disagree_uses_their_balance() -> None:
    labels, sets = np.ones(6, int), np.array([7, 7, 7, 7, 3, 5])
    first, second = np.array([1, 1, 1, 0, 1, 0]), np.array([0, 0, 0, 1, 0, 0])
    # Differences 2, 1 and 0.
    assert mcnemar(labels, first, second, sets) == (4, 1, pytest.approx(0.5))


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_without_copies_has_the_very_same_p(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, first, second = rng.integers(3, size=(3, 200))
    sets = rng.permutation(200)
    assert mcnemar(labels, first, second, sets) == mcnemar(labels, first, second)


def test_mcnemar_of_many_sets_stays_finite() -> None:
    sizes = np.arange(1, 4).repeat(2000)
    first = (np.arange(6000) % 7 < 4).astype(int).repeat(sizes)
    sets = np.arange(6000).repeat(sizes)
    p = mcnemar(np.ones(len(first), int), first, 1 - first, sets)[2]
    balance = 2 * first.sum() - len(first)
    # The normal approximation, with a correction for continuity.
    expected = 2 * norm.sf((balance - 1) / np.sqrt((sizes**2.0).sum()))
    assert p == pytest.approx(expected, rel=0.01)


def test_mcnemar_of_many_photos_stays_finite() -> None:
    labels = np.zeros(3000, int)
    first = (np.arange(3000) < 1400).astype(int)
    only_first, only_second, p = mcnemar(labels, first, 1 - first)
    assert (only_first, only_second) == (1600, 1400)
    # From scipy.stats.binomtest(1600, 3000).pvalue.
    assert p == pytest.approx(0.000278564, rel=1e-5)


def test_holm_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    # 4 x 0.005; 3 x 0.01; 2 x 0.03; then 1 x 0.04, raised to what stands before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def random_answers(photos: int = 300, classes: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits in which some classes have no photo, and some are never predicted."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes - 5, photos)
    logits = rng.normal(size=(photos, classes))
    logits[np.arange(photos), labels] += 2
    return labels, logits


def test_averages_are_those_of_scikit_learn() -> None:
    labels, logits = random_answers()
    predicted = logits.argmax(axis=1)
    assert macro_f1(labels, predicted) == pytest.approx(
        f1_score(labels, predicted, average="macro", zero_division=0.0)
    )
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, predicted)
    assert balanced_accuracy(labels, predicted) == pytest.approx(expected)
    assert top_k_accuracy(labels, logits, 5) == top_k_accuracy_score(
        labels, logits, k=5, labels=range(40)
    )


def test_averages_by_hand() -> None:
    """Class 0: 2 of 3 photos found. Class 1: its photo is found. Class 2 has none, but is said."""
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 2, 1])
    assert balanced_accuracy(labels, predicted) == pytest.approx((2 / 3 + 1) / 2)
    assert macro_f1(labels, predicted) == pytest.approx((2 * 2 / 5 + 1 + 0) / 3)


def test_of_equal_logits_the_first_class_counts() -> None:
    equal = np.zeros((8, 8))
    assert top_k_accuracy(np.arange(8), equal, 5) == 5 / 8
    assert top_k_accuracy(np.arange(8), equal, 8) == 1
    assert top_k_accuracy(np.arange(3), np.full((3, 3), np.nan), 2) == 0


def test_score_names_every_value() -> None:
    labels, logits = random_answers()
    result = score(labels, logits)
    assert result["macro_f1"] == macro_f1(labels, logits.argmax(axis=1))
    assert result["top5_accuracy"] == top_k_accuracy(labels, logits, 5)
    assert {f"test_{name}" for name in result} <= set(FINAL_METRICS)


def test_many_classes_are_scored() -> None:
    labels, logits = np.arange(11_000) % 11_000, np.zeros((11_000, 1))
    assert macro_f1(labels, labels) == 1
    assert balanced_accuracy(labels, np.roll(labels, 1)) == 0
    assert top_k_accuracy(np.zeros(11_000, int), logits, 5) == 1


@pytest.mark.fault
def test_label_groups_named_like_a_report_lose_no_row() -> None:
    """The values are those of scikit-learn's own report under names of no meaning."""
    names = ["accuracy", "macro avg", "weighted avg", "micro avg", "samples avg", "support"]
    labels, predicted = np.array([0, 0, 1, 2, 3, 4, 5]), np.array([0, 1, 1, 2, 3, 4, 4])
    table = class_report(labels, predicted, names)
    assert table["label_group"].tolist() == [*names, "macro avg", "weighted avg"]
    known = classification_report(labels, predicted, output_dict=True, zero_division=0.0)
    rows = [*map(str, range(6)), "macro avg", "weighted avg"]
    columns = ["precision", "recall", "f1-score", "support"]
    expected = np.array([[known[row][column] for column in columns] for row in rows])
    assert table[columns].to_numpy() == pytest.approx(expected)
