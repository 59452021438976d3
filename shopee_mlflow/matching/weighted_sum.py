"""Weighted sums of similarities, and matches by a threshold on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from ..data.near_copies import NEAR_BITS
from .match_sets import Threshold
from .pair_features import Features
from .pairs import Pairs

# The name of the fitted weighted sum among the similarities of likely pairs.
SUM = "sum"
_SUMMED = ("words", "bigrams", "characters", "covered", "phash", "photos")


@dataclass(frozen=True)
class WeightedSum:
    """A score of pairs, linear in the similarities: log-odds of a match if it has been fitted.

    :ivar weights: one for each name, and one more for near phashes where there are phashes.
    """

    names: list[str]
    weights: np.ndarray
    intercept: float

    def scores(self, found: Features) -> np.ndarray:
        """(P,) float32."""
        table = similarity_table(found, self.names)
        return np.asarray(table @ self.weights + self.intercept, np.float32)


@dataclass(frozen=True)
class ThresholdModel:
    """Matches are the pairs whose weighted sum is above a threshold."""

    total: WeightedSum
    threshold: Threshold

    def chances(self, found: Features) -> np.ndarray:
        """(P,) float64, the probability of each likely pair, by the logistic regression."""
        return np.asarray(expit(found[SUM].astype(np.float64)))

    def choose(self, found: Features, chances: np.ndarray, pairs: Pairs) -> np.ndarray:  # noqa: ARG002 - as of the pair model
        """(P,) bool, the pairs that are predicted to match."""
        return self.threshold.choose(self.total.scores(found), pairs)


def fit_weighted_sum(found: Features, same: np.ndarray, own: np.ndarray) -> WeightedSum:
    """Fit the weights by logistic regression.

    :param same: (P,) bool, whether a pair matches; ``own`` (P,) bool, the pairs to fit.
    """
    from sklearn.linear_model import LogisticRegression

    names = [name for name in _SUMMED if name in found]
    table = similarity_table(found, names)
    if len(np.unique(same[own])) < 2:
        return WeightedSum(names, np.ones(table.shape[1]), 0.0)
    model = LogisticRegression(C=10, max_iter=300).fit(table[own], same[own])
    return WeightedSum(names, model.coef_[0], float(model.intercept_[0]))


def given_sum(found: Features, weights: Mapping[str, float], near: float = 0.0) -> WeightedSum:
    """A sum with given weights.

    :param near: the weight of near phashes.
    """
    values = [*weights.values(), *[near] * ("bits" in found)]
    return WeightedSum(list(weights), np.array(values), 0.0)


def similarity_table(found: Features, names: list[str]) -> np.ndarray:
    """(P, columns) float32, the similarities that are summed, and whether phashes are near."""
    columns: list[Any] = [found[name] for name in names]
    if "bits" in found:
        columns.append(found["bits"] <= NEAR_BITS)
    return np.column_stack(columns).astype(np.float32)
