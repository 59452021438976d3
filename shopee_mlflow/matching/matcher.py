"""A matcher: what has been chosen on labelled postings, applicable to any others.

Candidate pairs are found by titles, phashes and photos. A weighted sum of their similarities keeps
the likely ones, a pair model gives them probabilities, and each posting gets the set of matches
with the highest expected F1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CatalogError
from .candidates import find_pairs
from .match_scores import Labels
from .match_sets import expected_f1_sets
from .pair_features import Features, relative_features, similarities, title_features
from .pair_model import PairModel
from .pairs import Pairs
from .postings import Postings

# Likely pairs: the best 15 of a posting, and all whose weighted sum is above this log-odds.
_LIKELY_RANK, _LIKELY_SUM = 15, -3.0
_SUMMED = ("words", "bigrams", "characters", "covered", "phash", "photos")
_NEAR_BITS = 6
# For catalogues without labels. Near the best ones for the 34,250 postings of Kaggle.
_UNLABELLED_TITLES, _UNLABELLED_PHOTOS = 1.0, 0.9


@dataclass(frozen=True)
class WeightedSum:
    """Log-odds of a match, linear in the similarities."""

    names: list[str]
    weights: np.ndarray
    intercept: float

    def scores(self, found: Features) -> np.ndarray:
        """(P,) float32."""
        table = similarity_table(found, self.names)
        return np.asarray(table @ self.weights + self.intercept, np.float32)


@dataclass(frozen=True)
class Matches:
    """Candidate pairs of postings, their probabilities, and those that are predicted to match.

    :ivar found: similarities by name, each (P,) float32.
    :ivar calibrated: whether ``chances`` are probabilities; without labels they are scores from
        0 to 1.
    """

    pairs: Pairs
    found: Features
    chances: np.ndarray
    chosen: np.ndarray
    calibrated: bool = True


@dataclass(frozen=True)
class Matcher:
    """A weighted sum and a pair model, for postings with the same signals."""

    signals: list[str]
    likely: WeightedSum
    model: PairModel

    def match(self, postings: Postings) -> Matches:
        """Matches of postings.

        :raises CatalogError: when they have other signals than those the matcher was chosen with.
        """
        self.check_signals(postings)
        return self.weigh(postings, *candidates(postings))

    def check_signals(self, postings: Postings) -> None:
        """Check that postings have the signals that the matcher was chosen with.

        :raises CatalogError: otherwise.
        """
        if postings.signals != self.signals:
            raise CatalogError(
                f"These postings have {_listed(postings.signals)}, and the matcher was chosen with "
                f"{_listed(self.signals)}; give both the same."
            )

    def weigh(self, postings: Postings, pairs: Pairs, found: Features) -> Matches:
        """Matches among candidate pairs, by their similarities."""
        pairs, features = likely_pairs(postings, pairs, found, self.likely)
        chances = both_directions(self.model.chances(features, pairs), pairs)
        return Matches(pairs, features, chances, expected_f1_sets(chances, pairs))


def match_unlabelled(postings: Postings) -> Matches:
    """Matches without a matcher, by fixed thresholds: similar titles, near phashes or photos."""
    return match_among(postings, find_pairs(postings.titles, postings.phashes, postings.photos))


def match_among(postings: Postings, pairs: Pairs) -> Matches:
    """Matches among candidate pairs by fixed thresholds."""
    found = similarities(postings.titles, postings.phashes, pairs, postings.photos)
    scores = np.zeros(len(pairs))
    if postings.titles is not None:
        scores = np.maximum(scores, title_scores(found) / _UNLABELLED_TITLES / 2)
    if postings.phashes is not None:
        scores = np.maximum(scores, np.where(found["bits"] <= _NEAR_BITS, 1.0, 0.0))
    if postings.photos is not None:
        scores = np.maximum(scores, found["photos"] / _UNLABELLED_PHOTOS / 2)
    return Matches(pairs, found, np.minimum(scores, 1.0), scores > 0.5, calibrated=False)


def among(matches: Matches, asked: np.ndarray) -> Matches:
    """The matches among some of the postings; their probabilities still know the whole pool.

    :param asked: (N,) bool.
    """
    pairs = matches.pairs
    pairs, positions = pairs.keep(asked[pairs.query] & asked[pairs.match])
    found = {name: value[positions] for name, value in matches.found.items()}
    chances, chosen = matches.chances[positions], matches.chosen[positions]
    if matches.calibrated:
        chosen = expected_f1_sets(chances, pairs)
    return Matches(pairs, found, chances, chosen, matches.calibrated)


def candidates(postings: Postings) -> tuple[Pairs, Features]:
    """Candidate pairs and their similarities."""
    pairs = find_pairs(postings.titles, postings.phashes, postings.photos)
    return pairs, similarities(postings.titles, postings.phashes, pairs, postings.photos)


def title_scores(found: Features) -> np.ndarray:
    """The cosines of words and of characters, summed."""
    return np.asarray(found["words"] + found["characters"], np.float64)


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


def likely_pairs(
    postings: Postings, pairs: Pairs, found: Features, likely: WeightedSum
) -> tuple[Pairs, Features]:
    """The likely pairs, with all features for the pair model."""
    scores = likely.scores(found)
    kept = (pairs.ranks(scores) < _LIKELY_RANK) | (scores > _LIKELY_SUM)
    pairs, positions = pairs.keep(kept)
    features = {name: value[positions] for name, value in found.items()}
    features["sum"] = scores[positions]
    if postings.titles is not None:
        features |= title_features(postings.titles, pairs)
    for name in ("words", "characters", "photos", "sum"):
        if name in features:
            features |= relative_features(name, features[name], pairs)
    return pairs, features


def both_directions(chances: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(P,) float64, the mean over both directions of each pair."""
    return np.asarray((chances + chances[pairs.reverse]) / 2.0, np.float64)


def matcher_labels(postings: Postings) -> Labels:
    """The label groups of postings as numbers."""
    groups = postings.frame["label_group"]
    numbers = groups.where(groups != "", None).astype("category").cat.codes
    return Labels(numbers.to_numpy(np.int64))


def similarity_table(found: Features, names: list[str]) -> np.ndarray:
    """(P, columns) float32, the similarities that are summed, and whether phashes are near."""
    columns: list[Any] = [found[name] for name in names]
    if "bits" in found:
        columns.append(found["bits"] <= _NEAR_BITS)
    return np.column_stack(columns).astype(np.float32)


def _listed(names: list[str]) -> str:
    return " and ".join(names) or "no signal"
