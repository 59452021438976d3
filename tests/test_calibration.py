"""The calibration error of predicted probabilities, and the error expected by chance."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from shopee_mlflow.modeling.metrics import (
    calibration,
    chance_calibration_error,
    expected_calibration_error,
)


def logits_of(claimed: list[float]) -> np.ndarray:
    """Of two classes, the first one claimed with these probabilities."""
    p = np.array(claimed)
    return np.stack([np.log(p), np.log1p(-p)], axis=1)


def test_bins_by_hand() -> None:
    claimed = [0.95, 0.97, 0.75, 0.72, 0.51]
    table = calibration(np.array([0, 1, 0, 0, 1]), logits_of(claimed))
    assert table["low"].tolist() == [0.5, 0.7, 0.9]
    assert table["high"].tolist() == [0.6, 0.8, 1.0]
    assert table["photos"].tolist() == [1, 2, 2]
    assert table["confidence"].tolist() == pytest.approx([0.51, 0.735, 0.96])
    assert table["accuracy"].tolist() == [0.0, 1.0, 0.5]
    # (1 x 0.51 + 2 x 0.265 + 2 x 0.46) / 5
    assert expected_calibration_error(table) == pytest.approx(0.392)


def test_certainty_falls_into_the_last_bin() -> None:
    table = calibration(np.array([0, 1]), np.array([[1000.0, 0.0], [1000.0, 0.0]]))
    assert table.to_dict("records") == [
        {"low": 0.9, "high": 1.0, "photos": 2, "confidence": 1.0, "accuracy": 0.5}
    ]
    assert expected_calibration_error(table) == 0.5
    assert chance_calibration_error(table) == 0.0


def test_perfect_probabilities_have_no_error() -> None:
    table = calibration(np.array([0, 0, 0, 1]), logits_of([0.75] * 4))
    assert expected_calibration_error(table) == pytest.approx(0)


@pytest.mark.parametrize(("photos", "claimed"), [(1, 0.75), (2, 0.5), (9, 0.31), (400, 0.93)])
def test_what_chance_gives_is_the_mean_over_all_outcomes(photos: int, claimed: float) -> None:
    ways = [math.comb(photos, k) for k in range(photos + 1)]
    mean = sum(
        way * claimed**k * (1 - claimed) ** (photos - k) * abs(k / photos - claimed)
        for k, way in enumerate(ways)
    )
    table = pd.DataFrame({"photos": [photos], "confidence": [claimed], "accuracy": [0.0]})
    assert chance_calibration_error(table) == pytest.approx(mean)


def test_chance_is_weighted_by_photos() -> None:
    """A photo claimed with 0.75 is off by 0.375 in the mean; three with certainty by nothing."""
    table = pd.DataFrame({"photos": [1, 3], "confidence": [0.75, 1.0], "accuracy": [1.0, 1.0]})
    assert chance_calibration_error(table) == pytest.approx(0.375 / 4)
