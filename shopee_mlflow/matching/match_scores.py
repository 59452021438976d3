"""The score of matches: the F1 of each posting's predicted set, averaged over postings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .pairs import Pairs

_RESAMPLES = 1_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Labels:
    """Label groups of postings as numbers, -1 where a posting has none.

    :ivar numbers: (N,) int64.
    """

    numbers: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64, the postings of each posting's label group."""
        counts = np.bincount(self.numbers + 1)
        return np.asarray(np.where(self.numbers < 0, 1, counts[self.numbers + 1]))

    def equal(self, pairs: Pairs) -> np.ndarray:
        """(P,) bool, whether both postings of a pair are of one label group."""
        same = self.numbers[pairs.query] == self.numbers[pairs.match]
        return np.asarray(same & (self.numbers[pairs.query] >= 0))


def f1_of_postings(chosen: np.ndarray, pairs: Pairs, labels: Labels) -> np.ndarray:
    """(N,) float64, the F1 of each posting: of its matches and itself against its label group.

    :param chosen: (P,) bool, the pairs that are predicted to match.
    """
    right = 1 + pairs.totals(chosen & labels.equal(pairs))
    predicted = 1 + pairs.totals(chosen)
    return np.asarray(2 * right / (predicted + labels.sizes))


def bootstrap_mean(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """A 95 % percentile interval of the mean over values whose groups are resampled.

    :param values: (N,) float; ``groups`` (N,) int, equal for values that are not independent.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    totals, sizes = np.bincount(numbers, weights=values), np.bincount(numbers)
    generator = np.random.default_rng(seed)
    means = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        drawn = generator.integers(len(totals), size=len(totals))
        means[number] = totals[drawn].sum() / sizes[drawn].sum()
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
