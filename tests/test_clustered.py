"""Intervals for photos in sets of copies."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from shopee_mlflow.modeling.clustered import clustered_interval, macro_f1_interval
from shopee_mlflow.modeling.metrics import wilson_interval

RIGHT = np.arange(200) % 5 > 0


def test_without_copies_it_is_wilsons_interval() -> None:
    expected = wilson_interval(160, 200)
    assert clustered_interval(RIGHT, np.arange(200)) == pytest.approx(expected, abs=2e-4)


def test_exact_copies_add_nothing() -> None:
    twice = clustered_interval(np.repeat(RIGHT, 2), np.repeat(np.arange(200), 2))
    assert twice == pytest.approx(clustered_interval(RIGHT, np.arange(200)))
    assert twice[0] < wilson_interval(320, 400)[0] - 0.01


def test_copies_that_differ_in_their_result_do_not_narrow_the_interval() -> None:
    # Each pair has one right photo, so the variance over sets is 0.
    right, sets = np.arange(200) % 2 == 0, np.arange(200) // 2
    assert clustered_interval(right, sets) == pytest.approx(wilson_interval(100, 200), abs=1e-6)


@pytest.mark.parametrize("value", [True, False])
def test_if_all_are_right_or_wrong_each_set_counts_once(value: bool) -> None:
    found = clustered_interval(np.full(60, value), np.arange(60) // 3)
    assert found == pytest.approx(wilson_interval(20 * value, 20), abs=1e-6)


def test_the_interval_holds_the_true_share_in_95_of_100_cases() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        size = rng.integers(1, 4, 150)
        right = np.repeat(rng.random(150) < 0.8, size)
        low, high = clustered_interval(right, np.repeat(np.arange(150), size))
        hits += low <= 0.8 <= high
    assert 0.92 < hits / 400 < 0.98


def test_the_macro_f1_interval_surrounds_the_score_and_respects_copies() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 200)
    predicted = np.where(RIGHT, labels, (labels + 1) % 4)
    low, high = macro_f1_interval(labels, predicted, np.arange(200))
    assert low < f1_score(labels, predicted, average="macro") < high
    assert 0.08 < high - low < 0.14
    pairs = np.repeat(labels, 2), np.repeat(predicted, 2), np.repeat(np.arange(200), 2)
    assert macro_f1_interval(*pairs) == (low, high)


def test_the_macro_f1_of_small_label_groups_is_within_its_interval() -> None:
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(300), 3)
    predicted = np.where(rng.random(900) < 0.6, labels, rng.integers(0, 300, 900))
    low, high = macro_f1_interval(labels, predicted, np.arange(900))
    assert low < f1_score(labels, predicted, average="macro") < high
    assert macro_f1_interval(labels, labels, np.arange(900)) == (1.0, 1.0)
