"""The ladder: what each signal and each step adds to the score, in one table.

All thresholds, weights and models are chosen on the validation groups with the whole catalogue as
the pool. The test groups' postings score them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..data.near_copies import NEAR_BITS
from .group_split import TEST, VALIDATION, draw_folds, split_groups, tied_groups
from .match_scores import Labels, bootstrap_mean, f1_of_postings
from .match_sets import Threshold, best_threshold
from .matcher import (
    Matcher,
    Matches,
    both_directions,
    candidates,
    chosen_matches,
    likely_pairs,
    matcher_labels,
    with_pair_features,
)
from .pair_features import Features
from .pair_model import FOLDS, PairModel, fit_pair_model
from .pairs import Pairs
from .postings import Postings
from .weighted_sum import ThresholdModel, WeightedSum, fit_weighted_sum, given_sum

# A pair model is fitted on at least this many sets of validation groups. With less, the interval
# by which it is compared with a threshold says nothing.
_LEAST_SETS = 10
Say = Callable[[str], None]


@dataclass(frozen=True)
class Rung:
    """A way to match, and its score.

    :ivar choice: the threshold that was chosen on the validation groups.
    :ivar validation_f1: mean F1 of the validation groups' postings; ``f1`` that of the test
        groups', with its 95 % interval.
    """

    name: str
    words: str
    choice: str
    validation_f1: float
    f1: float
    low: float
    high: float


@dataclass
class Ladder:
    """The rungs so far; the last one is how postings are matched.

    :ivar side: (N,) text, validation, test or empty.
    :ivar sets: (N,) int64, the sets of postings over which intervals are resampled.
    :ivar simple: the rungs that are a threshold on a sum of similarities, by name.
    :ivar f1: (N,) float64, the F1 of each posting, by the name of a rung.
    :ivar choice: why the last rung was chosen, as a sentence.
    """

    labels: Labels
    side: np.ndarray
    sets: np.ndarray
    rungs: list[Rung] = field(default_factory=list)
    simple: dict[str, ThresholdModel] = field(default_factory=dict)
    f1: dict[str, np.ndarray] = field(default_factory=dict)
    choice: str = ""

    @property
    def validation(self) -> np.ndarray:
        """(N,) bool, the postings that choose."""
        return self.side == VALIDATION

    def add(
        self, name: str, words: str, chosen: np.ndarray, pairs: Pairs, choice: str = ""
    ) -> None:
        """Score a way to match."""
        f1 = f1_of_postings(chosen, pairs, self.labels)
        test = self.side == TEST
        low, high = bootstrap_mean(f1[test], self.sets[test])
        scores = (float(f1[self.validation].mean()), float(f1[test].mean()), low, high)
        self.rungs.append(Rung(name, words, choice, *scores))
        self.f1[name] = f1

    def add_threshold(
        self, name: str, words: str, scores: np.ndarray, pairs: Pairs, *, one_match: bool = False
    ) -> Threshold:
        """Choose a threshold on the validation groups, and score it."""
        rows = self.validation
        found = best_threshold(scores, pairs, self.labels, rows, one_match=one_match)
        choice = f"above {found.value:.3f}"
        if found.best < found.value:
            choice += f", the best one above {found.best:.3f}"
        self.add(name, words, found.choose(scores, pairs), pairs, choice)
        return found

    def add_sum(
        self, name: str, words: str, total: WeightedSum, found: Features, pairs: Pairs, **how: bool
    ) -> None:
        """Choose a threshold on a sum of similarities, and score it."""
        threshold = self.add_threshold(name, words, total.scores(found), pairs, **how)
        self.simple[name] = ThresholdModel(total, threshold)

    def best_simple(self) -> Rung:
        """The rung of highest F1 on the validation groups, of those that are a threshold.

        Of equal ones it is the last, which uses the most signals.
        """
        rungs = [rung for rung in reversed(self.rungs) if rung.name in self.simple]
        return max(rungs, key=lambda rung: rung.validation_f1)

    def gain(self, name: str, other: str) -> tuple[float, float]:
        """A 95 % interval of the F1 that one rung adds to another, on the validation groups."""
        rows = self.validation
        return bootstrap_mean((self.f1[name] - self.f1[other])[rows], self.sets[rows])

    def table(self) -> pd.DataFrame:
        """One row for each rung."""
        return pd.DataFrame([vars(rung) for rung in self.rungs])


def climb(
    postings: Postings, near_bits: int, validation_share: float, seed: int, say: Say
) -> tuple[Ladder, Matcher, Matches]:
    """Choose a matcher on some of the label groups, and score every step of it on the others.

    The pair model is chosen if its F1 on the validation groups is significantly higher than that of
    the best threshold on a sum of similarities. It has not seen the labels of the postings that it
    scores there. The threshold was chosen on them, so it is favoured.

    :param say: called with a line when a long step begins.
    :returns: the ladder, the matcher, and its matches of all postings. Those of validation
        postings are by models that have not seen their labels.
    :raises CatalogError: when there are too few label groups.
    """
    sets = tied_groups(postings.frame, near_bits)
    side = split_groups(postings.frame, sets, validation_share, seed)
    ladder = Ladder(matcher_labels(postings), side, sets)
    say("finding candidate pairs")
    pairs, found = candidates(postings)
    ladder.add("self", "each posting matches itself alone", np.zeros(len(pairs), bool), pairs)
    _add_signals(ladder, pairs, found)
    say(f"weighing {len(pairs) // 2:,} candidate pairs")
    likely = _add_weighted_sum(ladder, pairs, found)
    pairs, found = likely_pairs(pairs, found, likely)
    matches = _add_pair_model(ladder, postings, pairs, found, seed, say)
    if matches is None:
        matches = _add_best_simple(ladder, pairs, found)
    assert matches.model is not None
    return ladder, Matcher(postings.signals, likely, matches.model), matches


def _add_signals(ladder: Ladder, pairs: Pairs, found: Features) -> None:
    """Rungs of single signals and of their union."""
    if "bits" in found:
        _add_bits(ladder, pairs, found)
    if "photos" in found:
        total = given_sum(found, {"photos": 1})
        ladder.add_sum("photos", "cosine of photo embeddings", total, found, pairs)
    if "words" not in found:
        return
    both = {"words": 1.0, "characters": 1.0}
    for name, words, total in (
        ("words", "TF-IDF of words", given_sum(found, {"words": 1})),
        ("words_characters", "TF-IDF of words and of characters", given_sum(found, both)),
    ):
        ladder.add_sum(name, words, total, found, pairs)
    if "bits" in found:
        words = f"the same, or phashes up to {NEAR_BITS} bits apart"
        total = given_sum(found, both, near=10)
        ladder.add_sum("titles_or_phash", words, total, found, pairs)


def _add_bits(ladder: Ladder, pairs: Pairs, found: Features) -> None:
    """Rungs of equal phashes and of near ones, as near as is best for the validation groups."""
    bits = found["bits"]
    ladder.add("equal_phash", "equal phashes", bits == 0, pairs)
    validation, scores = ladder.validation, []
    for most in range(NEAR_BITS + 1):
        f1 = f1_of_postings(bits <= most, pairs, ladder.labels)
        scores.append(float(f1[validation].mean()))
    best = int(np.argmax(scores))
    near = ThresholdModel(given_sum(found, {"bits": -1}), Threshold(-best - 0.5))
    ladder.simple["phash_bits"] = near
    ladder.add(
        "phash_bits", "phashes a few bits apart", bits <= best, pairs, f"at most {best} bits"
    )


def _add_weighted_sum(ladder: Ladder, pairs: Pairs, found: Features) -> WeightedSum:
    """Rungs of the sum of all similarities."""
    own = ladder.validation[pairs.query]
    total = fit_weighted_sum(found, ladder.labels.equal(pairs), own)
    words = "a weighted sum of all similarities"
    ladder.add_sum("weighted_sum", words, total, found, pairs)
    words = "a weighted sum, and the best match at a lower threshold"
    ladder.add_sum("one_match", words, total, found, pairs, one_match=True)
    return total


def _add_pair_model(
    ladder: Ladder, postings: Postings, pairs: Pairs, found: Features, seed: int, say: Say
) -> Matches | None:
    """Rungs of the pair model, and its matches; None where a threshold is to be used instead."""
    sets = len(np.unique(ladder.sets[ladder.validation]))
    if sets < _LEAST_SETS:
        ladder.choice = (
            f"No pair model was fitted: the validation groups form {sets} sets that share no copy "
            f"or title, and it needs at least {_LEAST_SETS}."
        )
        return None
    say(f"fitting the pair model; {len(pairs) // 2:,} likely pairs")
    model, first, second = _fitted(ladder, postings, pairs, found, seed)
    words = "a pair model (gradient boosting)"
    ladder.add_threshold("boosted_pairs", words, first, pairs, one_match=True)
    words = "a second pair model that knows the neighbours' probabilities"
    ladder.add_threshold("second_pass", words, second, pairs, one_match=True)
    matches = chosen_matches(model, pairs, found, second)
    words = "of its pairs, the set of highest expected F1"
    ladder.add("expected_f1", words, matches.chosen, pairs)
    return matches if _pair_model_is_better(ladder) else None


def _fitted(
    ladder: Ladder, postings: Postings, pairs: Pairs, found: Features, seed: int
) -> tuple[PairModel, np.ndarray, np.ndarray]:
    """The pair model, and the probabilities of both passes."""
    folds = draw_folds(ladder.sets, ladder.validation, FOLDS, seed)
    features = with_pair_features(postings, pairs, found)
    same = ladder.labels.equal(pairs)
    model, first, second = fit_pair_model(features, same, pairs, folds, seed)
    return model, both_directions(first, pairs), both_directions(second, pairs)


def _pair_model_is_better(ladder: Ladder) -> bool:
    """Whether the 95 % interval of what the last rung adds to the best threshold is above 0."""
    simple, last = ladder.best_simple(), ladder.rungs[-1]
    low, high = ladder.gain(last.name, simple.name)
    ladder.choice = (
        f"The pair model is {'' if low > 0 else 'not '}used: on the validation groups, whose "
        f"labels it has not seen, its F1 is {last.validation_f1:.4f}, and the best threshold's is "
        f"{simple.validation_f1:.4f} ({simple.words}); 95 % interval of the difference "
        f"{low:+.4f} to {high:+.4f}."
    )
    return low > 0


def _add_best_simple(ladder: Ladder, pairs: Pairs, found: Features) -> Matches:
    """A rung of the best threshold, among likely pairs, and its matches."""
    simple = ladder.best_simple()
    model = ladder.simple[simple.name]
    matches = chosen_matches(model, pairs, found, model.chances(found))
    words = f"used: {simple.words}, among the likely pairs"
    ladder.add("used", words, matches.chosen, pairs, simple.choice)
    return matches
