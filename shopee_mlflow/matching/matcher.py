"""A matcher: what has been chosen on labelled postings, applicable to any others.

Candidate pairs are found by titles, phashes and photos. A weighted sum of their similarities keeps
the likely ones. A pair model gives them probabilities, and each posting gets the set of matches
with the highest expected F1; or, where few label groups have chosen, a threshold decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.near_copies import NEAR_BITS
from ..errors import CatalogError
from .candidates import find_pairs
from .match_scores import Labels
from .pair_features import Features, relative_features, similarities, title_features
from .pair_model import PairModel
from .pairs import Pairs
from .postings import Postings
from .weighted_sum import SUM, ThresholdModel, WeightedSum

# Likely pairs: the best 15 of a posting, and all whose weighted sum is above this log-odds.
_LIKELY_RANK, _LIKELY_SUM = 15, -3.0
# For catalogues without labels. Near the best ones for the 34,250 postings of Kaggle.
_UNLABELLED_TITLES, _UNLABELLED_PHOTOS = 1.0, 0.9


@dataclass(frozen=True)
class Matches:
    """Candidate pairs of postings, their probabilities, and those that are predicted to match.

    :ivar found: similarities by name, each (P,) float32.
    :ivar chances: (P,) float64, probabilities; without labels, scores from 0 to 1.
    :ivar model: chooses among the pairs; None without labels.
    """

    pairs: Pairs
    found: Features
    chances: np.ndarray
    chosen: np.ndarray
    model: PairModel | ThresholdModel | None = None


@dataclass(frozen=True)
class Matcher:
    """A weighted sum and a model, for postings with the same signals."""

    signals: list[str]
    likely: WeightedSum
    model: PairModel | ThresholdModel

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

    def weigh(
        self, postings: Postings, pairs: Pairs, found: Features, asked: np.ndarray | None = None
    ) -> Matches:
        """Matches among candidate pairs, by their similarities.

        :param asked: (N,) bool, the postings whose matches are needed; those of others are not
            computed. None: all are.
        """
        pairs, found = likely_pairs(pairs, found, self.likely)
        if isinstance(self.model, PairModel):
            features = with_pair_features(postings, pairs, found)
            chances = self.model.chances(features, pairs, asked)
        else:
            chances = self.model.chances(found)
        return chosen_matches(self.model, pairs, found, both_directions(chances, pairs))


def chosen_matches(
    model: PairModel | ThresholdModel, pairs: Pairs, found: Features, chances: np.ndarray
) -> Matches:
    """The matches that a model chooses among likely pairs."""
    return Matches(pairs, found, chances, model.choose(found, chances, pairs), model)


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
        scores = np.maximum(scores, np.where(found["bits"] <= NEAR_BITS, 1.0, 0.0))
    if postings.photos is not None:
        scores = np.maximum(scores, found["photos"] / _UNLABELLED_PHOTOS / 2)
    return Matches(pairs, found, np.minimum(scores, 1.0), scores > 0.5)


def among(matches: Matches, asked: np.ndarray) -> Matches:
    """The matches among some of the postings; their probabilities still know the whole pool.

    :param asked: (N,) bool.
    """
    pairs = matches.pairs
    pairs, positions = pairs.keep(asked[pairs.query] & asked[pairs.match])
    found = {name: value[positions] for name, value in matches.found.items()}
    chances = matches.chances[positions]
    if matches.model is None:
        return Matches(pairs, found, chances, matches.chosen[positions])
    return chosen_matches(matches.model, pairs, found, chances)


def candidates(postings: Postings) -> tuple[Pairs, Features]:
    """Candidate pairs and their similarities."""
    pairs = find_pairs(postings.titles, postings.phashes, postings.photos)
    return pairs, similarities(postings.titles, postings.phashes, pairs, postings.photos)


def title_scores(found: Features) -> np.ndarray:
    """The cosines of words and of characters, summed."""
    return np.asarray(found["words"] + found["characters"], np.float64)


def likely_pairs(pairs: Pairs, found: Features, likely: WeightedSum) -> tuple[Pairs, Features]:
    """The likely pairs and their similarities, with the weighted sum among them."""
    scores = likely.scores(found)
    kept = (pairs.ranks(scores) < _LIKELY_RANK) | (scores > _LIKELY_SUM)
    pairs, positions = pairs.keep(kept)
    return pairs, {name: value[positions] for name, value in {**found, SUM: scores}.items()}


def with_pair_features(postings: Postings, pairs: Pairs, found: Features) -> Features:
    """The similarities of likely pairs, and all other features for the pair model."""
    features = dict(found)
    if postings.titles is not None:
        features |= title_features(postings.titles, pairs)
    for name in ("words", "characters", "photos", SUM):
        if name in features:
            features |= relative_features(name, features[name], pairs)
    return features


def both_directions(chances: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(P,) float64, the mean over both directions of each pair."""
    return np.asarray((chances + chances[pairs.reverse]) / 2.0, np.float64)


def matcher_labels(postings: Postings) -> Labels:
    """The label groups of postings as numbers."""
    groups = postings.frame["label_group"]
    numbers = groups.where(groups != "", None).astype("category").cat.codes
    return Labels(numbers.to_numpy(np.int64))


def _listed(names: list[str]) -> str:
    return " and ".join(names) or "no signal"
