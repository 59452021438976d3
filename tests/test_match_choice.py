"""Whether the pair model or a threshold matches postings, chosen on the validation groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from shopee_mlflow.matching.ladder import Ladder, climb
from shopee_mlflow.matching.match_scores import f1_of_postings
from shopee_mlflow.matching.matcher import Matcher, Matches, among, candidates
from shopee_mlflow.matching.pair_model import PairModel
from shopee_mlflow.matching.pool import Pool
from shopee_mlflow.matching.postings import Postings, check_postings
from shopee_mlflow.matching.weighted_sum import ThresholdModel

LENGTH = 64


def unit(values: np.ndarray) -> np.ndarray:
    scaled = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(scaled, np.float32)


def photographed(groups: int, shared: np.ndarray, own: float, noise: float) -> Postings:
    """Groups of 3 photos, in families of 4 groups that share as much as ``shared`` says of each."""
    random = np.random.default_rng(0)
    families = unit(random.standard_normal((groups // 4, LENGTH)))
    products = unit(random.standard_normal((groups, LENGTH)))
    group = np.repeat(np.arange(groups), 3)
    photos = shared[group // 4, None] * families[group // 4] + own * products[group]
    photos = photos + noise * unit(random.standard_normal((len(group), LENGTH)))
    rows = {"posting_id": [f"p{row}" for row in range(len(group))], "label_group": group}
    return check_postings(pd.DataFrame(rows).astype(str), unit(photos))


def chosen_for(postings: Postings) -> tuple[Ladder, Matcher, Matches]:
    return climb(postings, 4, 0.5, 0, lambda _: None)


@pytest.fixture(scope="module")
def alike() -> Postings:
    """80 groups: a threshold that fits one family is wrong for the next."""
    return photographed(80, np.linspace(0, 3, 20), 1, 0.5)


def test_a_pair_model_that_is_surely_better_is_used(alike: Postings) -> None:
    ladder, matcher, matches = chosen_for(alike)
    assert isinstance(matcher.model, PairModel)
    assert ladder.choice.startswith("The pair model is used")
    assert ladder.rungs[-1].name == "expected_f1"
    assert ladder.rungs[-1].f1 > ladder.best_simple().f1 + 0.05
    assert matches.model is matcher.model


@pytest.mark.fault
def test_a_pair_model_that_is_not_surely_better_is_not_used() -> None:
    """A threshold separates these groups, so nothing can be better."""
    postings = photographed(32, np.zeros(8), 1, 0.1)
    ladder, matcher, matches = chosen_for(postings)
    assert isinstance(matcher.model, ThresholdModel)
    assert ladder.choice.startswith("The pair model is not used")
    assert ladder.rungs[-1].name == "used"
    assert ladder.rungs[-1].f1 == 1
    f1 = f1_of_postings(matches.chosen, matches.pairs, ladder.labels)
    assert f1[ladder.side == "test"].mean() == ladder.rungs[-1].f1


@pytest.mark.fault
def test_few_groups_fit_no_pair_model() -> None:
    ladder, matcher, _ = chosen_for(photographed(12, np.zeros(3), 1, 0.1))
    assert isinstance(matcher.model, ThresholdModel)
    assert "the validation groups form 6 sets" in ladder.choice
    assert {rung.name for rung in ladder.rungs}.isdisjoint({"boosted_pairs", "expected_f1"})
    assert ladder.rungs[-1].name == "used"


def test_a_matcher_with_a_threshold_matches_other_postings() -> None:
    postings = photographed(12, np.zeros(3), 1, 0.1)
    _, matcher, matches = chosen_for(postings)
    again = matcher.match(postings)
    np.testing.assert_array_equal(again.chosen, matches.chosen)
    assert ((again.chances >= 0) & (again.chances <= 1)).all()
    some = np.arange(len(postings)) % 3 < 2
    few = among(again, some)
    assert few.pairs.totals(few.chosen)[some].tolist() == [1] * int(some.sum())

    assert postings.photos is not None
    pool = Pool.of(postings, matcher)
    new = pool.new_postings(
        pd.DataFrame({"posting_id": ["new"], "title": "", "image_phash": ""}), postings.photos[:1]
    )
    found = pool.match(matcher, new)
    mine = found.chosen & (found.pairs.query == len(postings))
    assert sorted(found.pairs.match[mine]) == [0, 1, 2]


def test_the_matches_of_some_postings_do_not_depend_on_what_else_is_asked(
    alike: Postings,
) -> None:
    _, matcher, _ = chosen_for(alike)
    pairs, found = candidates(alike)
    whole = matcher.weigh(alike, pairs, found)
    asked = np.zeros(len(alike), bool)
    asked[[0, 7, 100]] = True
    some = matcher.weigh(alike, pairs, found, asked)
    mine = asked[whole.pairs.query]
    np.testing.assert_array_equal(some.chances[mine], whole.chances[mine])
    np.testing.assert_array_equal(some.chosen[mine], whole.chosen[mine])
    assert (some.chances > 0).mean() < 0.1
