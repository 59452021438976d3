"""The ladder: what each signal and each step adds to the score, in one table.

All thresholds, weights and models are chosen on the validation groups with the whole catalogue as
the pool. The test groups' postings score them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from .group_split import TEST, VALIDATION, draw_folds, split_groups, tied_groups
from .match_scores import Labels, bootstrap_mean, f1_of_postings
from .match_sets import Threshold, best_threshold, expected_f1_sets
from .matcher import (
    Matcher,
    Matches,
    both_directions,
    candidates,
    fit_weighted_sum,
    likely_pairs,
    matcher_labels,
    title_scores,
)
from .pair_features import Features
from .pair_model import FOLDS, fit_pair_model
from .pairs import Pairs
from .postings import Postings

_NEAREST_BITS = 6
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
    """The rungs so far.

    :ivar side: (N,) text, validation, test or empty.
    :ivar sets: (N,) int64, the sets of postings over which intervals are resampled.
    """

    labels: Labels
    side: np.ndarray
    sets: np.ndarray
    rungs: list[Rung] = field(default_factory=list)
    postings_f1: np.ndarray = field(default_factory=lambda: np.empty(0))

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
        self.postings_f1 = f1

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

    def table(self) -> pd.DataFrame:
        """One row for each rung."""
        return pd.DataFrame([vars(rung) for rung in self.rungs])


def climb(
    postings: Postings, near_bits: int, validation_share: float, seed: int, say: Say
) -> tuple[Ladder, Matcher, Matches]:
    """Choose a matcher on some of the label groups, and score every step of it on the others.

    :param say: called with a line when a long step begins.
    :returns: the ladder, the matcher, and its matches of all postings. Those of validation
        postings are by models that have not seen their labels.
    :raises CatalogError: when there are too few label groups.
    """
    labels = matcher_labels(postings)
    sets = tied_groups(postings.frame, near_bits)
    side = split_groups(postings.frame, sets, validation_share, seed)
    ladder = Ladder(labels, side, sets)
    say("finding candidate pairs")
    pairs, found = candidates(postings)
    ladder.add("self", "each posting matches itself alone", np.zeros(len(pairs), bool), pairs)
    _add_signals(ladder, pairs, found)
    say(f"weighing {len(pairs) // 2:,} candidate pairs")
    same, own = labels.equal(pairs), ladder.validation[pairs.query]
    likely = fit_weighted_sum(found, same, own)
    total = likely.scores(found)
    ladder.add_threshold("weighted_sum", "a weighted sum of all similarities", total, pairs)
    ladder.add_threshold(
        "one_match",
        "the same, and the best match at a lower threshold",
        total,
        pairs,
        one_match=True,
    )
    pairs, features = likely_pairs(postings, pairs, found, likely)
    del found, total
    say(f"fitting the pair model; {len(pairs) // 2:,} likely pairs")
    folds = np.where(ladder.validation, draw_folds(sets, FOLDS, seed), -1)
    model, first, second = fit_pair_model(features, labels.equal(pairs), pairs, folds, seed)
    ladder.add_threshold(
        "boosted_pairs",
        "a pair model (gradient boosting)",
        both_directions(first, pairs),
        pairs,
        one_match=True,
    )
    chances = both_directions(second, pairs)
    ladder.add_threshold(
        "second_pass",
        "a second pair model that knows the neighbours' probabilities",
        chances,
        pairs,
        one_match=True,
    )
    chosen = expected_f1_sets(chances, pairs)
    ladder.add("expected_f1", "of its pairs, the set of highest expected F1", chosen, pairs)
    matcher = Matcher(postings.signals, likely, model)
    return ladder, matcher, Matches(pairs, features, chances, chosen)


def _add_signals(ladder: Ladder, pairs: Pairs, found: Features) -> None:
    """Rungs of single signals and of their union."""
    if "bits" in found:
        ladder.add("equal_phash", "equal phashes", found["bits"] == 0, pairs)
        bits = _best_bits(ladder, pairs, found["bits"])
        ladder.add(
            "phash_bits",
            "phashes a few bits apart",
            found["bits"] <= bits,
            pairs,
            f"at most {bits} bits",
        )
    if "photos" in found:
        ladder.add_threshold("photos", "cosine of photo embeddings", found["photos"], pairs)
    if "words" not in found:
        return
    ladder.add_threshold("words", "TF-IDF of words", found["words"], pairs)
    both = title_scores(found)
    ladder.add_threshold("words_characters", "TF-IDF of words and of characters", both, pairs)
    if "bits" in found:
        near = np.where(found["bits"] <= _NEAREST_BITS, both + 10, both)
        ladder.add_threshold(
            "titles_or_phash", f"the same, or phashes up to {_NEAREST_BITS} bits apart", near, pairs
        )


def _best_bits(ladder: Ladder, pairs: Pairs, bits: np.ndarray) -> int:
    """How many bits may differ, by the validation groups."""
    rows = ladder.validation

    def score(most: int) -> float:
        return float(f1_of_postings(bits <= most, pairs, ladder.labels)[rows].mean())

    return max(range(_NEAREST_BITS + 1), key=score)
