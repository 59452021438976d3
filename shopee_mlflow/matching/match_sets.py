"""Which candidates of a posting are predicted to match it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .match_scores import Labels
from .pairs import Pairs

_STEPS, _ROUNDS = 40, 4


@dataclass(frozen=True)
class Threshold:
    """Matches are the pairs whose score is above ``value``.

    :ivar best: the best match of a posting is predicted if its score is above this lower value,
        since nearly every posting has one.
    """

    value: float
    best: float = np.inf

    def choose(self, scores: np.ndarray, pairs: Pairs) -> np.ndarray:
        """(P,) bool."""
        chosen = scores > self.value
        if self.best < self.value:
            chosen |= (scores > self.best) & (pairs.ranks(scores) == 0)
        return np.asarray(chosen)


def best_threshold(
    scores: np.ndarray, pairs: Pairs, labels: Labels, rows: np.ndarray, *, one_match: bool = False
) -> Threshold:
    """The threshold of the highest mean F1 of some postings, and for their best match.

    :param rows: (N,) bool, the postings that choose.
    """
    own = rows[pairs.query]
    if not own.any():
        return Threshold(0.0)
    scores, best = scores[own], (pairs.ranks(scores) == 0)[own]
    query, same = pairs.query[own], labels.equal(pairs)[own]
    values = np.unique(np.quantile(scores, 1 - _shares(len(scores), int(rows.sum()))))
    values = np.r_[scores.min() - 1, values]  # below the lowest one: all candidates match

    def mean_f1(chosen: np.ndarray) -> float:
        right = 1 + np.bincount(query[chosen & same], minlength=pairs.count)
        predicted = 1 + np.bincount(query[chosen], minlength=pairs.count)
        return float((2 * right / (predicted + labels.sizes))[rows].mean())

    value = max(values, key=lambda value: mean_f1(scores > value))
    if not one_match:
        return Threshold(float(value))
    for _ in range(_ROUNDS):  # each of both for the other, until the first one stays
        lower, above = values[values <= value], scores > value
        least = max(lower[::-1], key=lambda least: mean_f1(above | (best & (scores > least))))
        kept, higher = best & (scores > least), values[values >= least]
        again = max(higher, key=lambda value: mean_f1((scores > value) | kept))
        if again == value:
            break
        value = again
    return Threshold(float(value), float(least))


def expected_f1_sets(chances: np.ndarray, pairs: Pairs) -> np.ndarray:
    """For each posting the best candidates, as many as maximise its expected F1.

    The expected F1 of the best k is approximated by the quotient of expectations: 2 (1 + the sum
    of their probabilities) over (1 + k) + the expected size of the group. A posting has at least
    one match, so the expected size is at least 2.

    :param chances: (P,) the probability of each pair.
    :returns: (P,) bool.
    """
    order = pairs.best_first(chances)
    ranks = pairs.ranks(chances)
    sums = np.cumsum(chances[order])
    start = np.searchsorted(pairs.query, pairs.query)
    right = sums - np.r_[0.0, sums][start]
    group = 1 + np.maximum(pairs.totals(chances), 1.0)
    expected = np.empty(len(pairs))
    expected[order] = 2 * (1 + right) / (2 + ranks[order] + group[pairs.query])
    alone = 2 / (1 + group)
    most = np.maximum(pairs.best(expected), alone)
    best = (expected >= most[pairs.query] - 1e-6) & (alone < most)[pairs.query]
    taken = np.full(pairs.count, -1)
    np.maximum.at(taken, pairs.query[best], ranks[best])
    return np.asarray(ranks <= taken[pairs.query])


def _shares(pairs: int, postings: int) -> np.ndarray:
    """Shares of the pairs above a threshold: from one for ten postings to 60 for each."""
    return np.minimum(np.geomspace(0.1, 60, _STEPS) * postings / pairs, 1.0)
