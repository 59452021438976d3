"""The pair model: the probability that two postings match, by gradient boosting in two passes.

The first pass knows a pair and the similarities of both postings' neighbours. The second one also
knows the first one's probabilities: those of the neighbours, and of paths between both postings. A
model never sees a label of the postings whose pairs it scores: validation groups are divided into
folds, and the pairs of a fold's postings are scored by a model fitted on no pair of theirs, in
either direction. All other pairs get the mean over the folds' models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .match_sets import expected_f1_sets
from .pair_features import Features, neighbour_features
from .pairs import Pairs

FOLDS = 3
_PART = 50_000
_SETTINGS: dict[str, Any] = {
    "max_iter": 150,
    "learning_rate": 0.1,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 60,
    "l2_regularization": 1.0,
    "early_stopping": False,
}


@dataclass(frozen=True)
class PairModel:
    """Both passes, each with one model for each fold, and the features they need by name."""

    first: list[Any]
    second: list[Any]
    first_names: list[str]
    second_names: list[str]

    def chances(
        self, features: Features, pairs: Pairs, asked: np.ndarray | None = None
    ) -> np.ndarray:
        """(P,) float32, the probability that each pair matches.

        :param asked: (N,) bool, the postings whose pairs are needed; those of others are 0. None:
            all are.
        """
        asked = np.ones(pairs.count, bool) if asked is None else asked
        needed = asked[pairs.query] | asked[pairs.match]
        # The second pass also knows the first one's probabilities for the pairs of their matches.
        near = asked.copy()
        near[pairs.match[needed]] = True
        early = near[pairs.query] | near[pairs.match]
        first = _means(self.first, features, self.first_names, early)
        wide = {**features, **neighbour_features(first, pairs)}
        return _means(self.second, wide, self.second_names, needed)

    def choose(self, found: Features, chances: np.ndarray, pairs: Pairs) -> np.ndarray:  # noqa: ARG002 - as of a threshold
        """(P,) bool, for each posting the set of matches with the highest expected F1."""
        return expected_f1_sets(chances, pairs)


def fit_pair_model(
    features: Features, same: np.ndarray, pairs: Pairs, folds: np.ndarray, seed: int
) -> tuple[PairModel, np.ndarray, np.ndarray]:
    """Fit both passes.

    :param same: (P,) bool, whether a pair matches; only those of validation postings are used.
    :param folds: (N,) int64, the fold of each validation posting; -1 for all others.
    :returns: the model, and the probabilities of the first and of the second pass, each by models
        that have not seen the query's label.
    """
    first_names = sorted(features)
    first, early = _fit_folds(_table(features, first_names), same, pairs, folds, seed)
    wide = {**features, **neighbour_features(early, pairs)}
    second_names = sorted(wide)
    table = _table(wide, second_names)
    del wide  # not needed while models are fitted
    second, late = _fit_folds(table, same, pairs, folds, seed)
    return PairModel(first, second, first_names, second_names), early, late


def _fit_folds(
    table: np.ndarray, same: np.ndarray, pairs: Pairs, folds: np.ndarray, seed: int
) -> tuple[list[Any], np.ndarray]:
    from sklearn.ensemble import HistGradientBoostingClassifier

    numbers = np.unique(folds[folds >= 0])
    models, result = [], np.zeros(len(table), np.float32)
    other_side, folds = folds[pairs.match], folds[pairs.query]
    others = folds < 0
    # Pairs of two folds match in no case. Those with the fold that is left out are made up for by
    # those with the other folds, so that the share of matches stays as it is.
    across = (other_side >= 0) & (other_side != folds)
    weight = np.where(across, (len(numbers) - 1) / max(len(numbers) - 2, 1), 1.0)
    for number in numbers:
        # A pair is left out in both directions: the label of one is that of the other.
        trained = (folds >= 0) & (folds != number) & (other_side != number)
        model = HistGradientBoostingClassifier(**_SETTINGS, random_state=seed)
        model.fit(table[trained], same[trained], weight[trained])
        models.append(model)
        result[folds == number] = _chances(model, table[folds == number])
        result[others] += _chances(model, table[others]) / len(numbers)
    return models, result


def _means(
    models: list[Any], features: Features, names: list[str], needed: np.ndarray
) -> np.ndarray:
    """(P,) float32, the mean probability over models; 0 for pairs that are not needed."""
    table = _table(features, names)
    table = table if needed.all() else table[needed]
    result = np.zeros(len(needed), np.float32)
    result[needed] = np.mean([_chances(model, table) for model in models], axis=0)
    return result


def _chances(model: Any, table: np.ndarray) -> np.ndarray:
    """The probability of a match; that of the only class where all training pairs were alike."""
    if not len(table):
        return np.empty(0, np.float32)
    if len(model.classes_) == 1:
        return np.full(len(table), float(model.classes_[0]), np.float32)
    # In parts, since scikit-learn copies them as float64.
    parts = [table[start : start + _PART] for start in range(0, len(table), _PART)]
    return np.concatenate([model.predict_proba(part)[:, 1] for part in parts]).astype(np.float32)


def _table(features: Features, names: list[str]) -> np.ndarray:
    # Column by column: some are float64, and np.column_stack would make all of them so.
    table = np.empty((len(features[names[0]]), len(names)), np.float32)
    for column, name in enumerate(names):
        table[:, column] = features[name]
    return table
