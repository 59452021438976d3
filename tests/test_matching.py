"""Candidate pairs, features, honest splits, thresholds and scores of matching."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from shopee_mlflow.errors import CatalogError
from shopee_mlflow.matching.candidates import find_pairs, nearest_photos, nearest_rows
from shopee_mlflow.matching.group_split import (
    TEST,
    VALIDATION,
    draw_folds,
    split_groups,
    tied_groups,
)
from shopee_mlflow.matching.match_scores import Labels, bootstrap_mean, f1_of_postings
from shopee_mlflow.matching.match_sets import Threshold, best_threshold, expected_f1_sets
from shopee_mlflow.matching.pair_features import differing_bits, relative_features, similarities
from shopee_mlflow.matching.pair_model import fit_pair_model
from shopee_mlflow.matching.pairs import Pairs
from shopee_mlflow.matching.postings import check_postings
from shopee_mlflow.matching.title_vectors import plain_title, title_vectors

PHASHES = ("b3d1c2a09f4e5b68", "b3d1c2a09f4e5b69", "1f2e3d4c5b6a7988")


def all_pairs(count: int) -> Pairs:
    left, right = zip(*combinations(range(count), 2), strict=True)
    return Pairs.of(count, np.array(left), np.array(right))


def test_a_pair_is_there_in_both_directions_and_once() -> None:
    pairs = Pairs.of(4, np.array([2, 0, 3, 1]), np.array([0, 2, 3, 2]))
    assert list(zip(pairs.query, pairs.match, strict=True)) == [(0, 2), (1, 2), (2, 0), (2, 1)]
    np.testing.assert_array_equal(pairs.query[pairs.reverse], pairs.match)
    np.testing.assert_array_equal(pairs.match[pairs.reverse], pairs.query)
    np.testing.assert_array_equal(pairs.both_ways(np.array([5.0, 7.0])), [5, 7, 5, 7])


def test_ranks_begin_at_each_posting() -> None:
    pairs = all_pairs(3)
    assert pairs.ranks(np.array([0.1, 0.9, 0.5, 0.2, 0.7, 0.8])).tolist() == [1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize("rows", [3, 40])
def test_nearest_rows_are_those_of_the_whole_product(rows: int) -> None:
    dense = np.random.default_rng(0).random((rows, 12), np.float32)
    query, match = nearest_rows(csr_matrix(dense), 2)
    products = dense @ dense.T
    np.fill_diagonal(products, -1)
    for row in range(rows):
        best = set(np.argsort(-products[row])[:2])
        assert best <= set(match[query == row])


def test_nearest_photos_leave_out_postings_without_one() -> None:
    photos = np.array([[1, 0], [0, 0], [0.9, 0.1], [0, 1]], np.float32)
    query, match = nearest_photos(photos, 1)
    found = {(int(q), int(m)) for q, m in zip(query, match, strict=True) if q != m}
    assert (0, 2) in found
    assert 1 not in {*query, *match}


@pytest.mark.fault
def test_a_phash_of_many_postings_does_not_give_all_their_pairs() -> None:
    pairs = find_pairs(None, pd.Series([PHASHES[0]] * 3_000))
    assert 3_000 <= len(pairs) <= 3_000 * 130


def test_a_photo_without_detail_matches_nothing() -> None:
    assert len(find_pairs(None, pd.Series(["0000000000000000"] * 5))) == 0
    assert differing_bits(pd.Series([PHASHES[0], PHASHES[1], ""]), [0, 0], [1, 2]).tolist() == [
        1,
        64,
    ]


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("Minyak 1,5 Liter", "minyak 1.5liter"),
        ("Caf\\xc3\\xa9 250 GR", "cafe 250g"),
        ("Rp 10.000", "rp 10.000"),
        ("ＳＥＲＵＭ", "serum"),
    ],
)
def test_titles_are_read_without_their_dress(title: str, plain: str) -> None:
    assert plain_title(title) == plain


def test_similarities_have_the_values_of_equal_and_unrelated_postings() -> None:
    titles = title_vectors(["red rice 5 kg", "red rice 5 kg", "blue shoes", "blue shoe"])
    found = similarities(titles, pd.Series([*PHASHES, ""]), all_pairs(4))
    assert found["words"][0] == pytest.approx(1)
    assert found["covered"][0] == pytest.approx(1)
    assert found["words"][1] == 0
    assert found["bits"][:3].tolist() == [1, 35, 64]


def test_relative_features_compare_with_the_best_of_both_sides() -> None:
    pairs = all_pairs(3)
    scores = np.array([0.8, 0.4, 0.8, 0.2, 0.4, 0.2], np.float32)
    found = relative_features("score", scores, pairs)
    np.testing.assert_allclose(found["score_of_best"], [1, 0.5, 1, 0.25, 1, 0.5])
    np.testing.assert_allclose(found["score_of_best_back"], [1, 1, 1, 0.5, 0.5, 0.25])


def test_the_score_is_the_f1_of_each_posting_with_itself() -> None:
    pairs, labels = all_pairs(4), Labels(np.array([0, 0, 0, 1]))
    chosen = np.array([True, False, True, False, False, False, False, False, False, False, True, 0])
    # 0 predicts 1 (right) and 3 (wrong); 3 predicts 1 (wrong); 1 and 2 predict themselves.
    f1 = f1_of_postings(chosen.astype(bool), pairs, labels)
    np.testing.assert_allclose(f1, [2 * 2 / 6, 2 / 4, 2 / 4, 2 / 3])


def test_a_posting_without_a_label_matches_no_group() -> None:
    labels = Labels(np.array([-1, -1, 0]))
    assert not labels.equal(all_pairs(3)).any()
    assert labels.sizes.tolist() == [1, 1, 1]


def test_the_interval_resamples_groups_not_postings() -> None:
    values = np.repeat([0.0, 1.0], 50)
    low, high = bootstrap_mean(values, np.repeat([0, 1], 50))
    assert (low, high) == (0.0, 1.0)
    low, high = bootstrap_mean(values, np.arange(100))
    assert 0.35 < low < 0.5 < high < 0.65
    assert bootstrap_mean(values, np.arange(100)) == (low, high)


def expected_f1(chances: np.ndarray, chosen: list[int]) -> float:
    """The quotient of expectations, as the docstring of expected_f1_sets says."""
    group = 1 + max(chances.sum(), 1)
    return float(2 * (1 + chances[chosen].sum()) / (1 + len(chosen) + group))


@pytest.mark.parametrize("seed", range(5))
def test_the_chosen_set_has_the_highest_expected_f1(seed: int) -> None:
    pairs = all_pairs(5)
    chances = np.random.default_rng(seed).random(len(pairs)) ** 2
    chosen = expected_f1_sets(chances, pairs)
    for row in range(5):
        own = pairs.query == row
        every = chain.from_iterable(combinations(range(4), size) for size in range(5))
        best = max(expected_f1(chances[own], list(each)) for each in every)
        taken = np.flatnonzero(chosen[own]).tolist()
        assert expected_f1(chances[own], taken) == pytest.approx(best)


def test_the_best_match_has_a_threshold_of_its_own() -> None:
    pairs = all_pairs(3)
    scores = np.array([0.9, 0.5, 0.9, 0.4, 0.5, 0.4])
    assert Threshold(0.8).choose(scores, pairs).tolist() == [1, 0, 1, 0, 0, 0]
    assert Threshold(0.8, 0.45).choose(scores, pairs).tolist() == [1, 0, 1, 0, 1, 0]


def test_both_thresholds_are_chosen_together() -> None:
    """Alone, the first one is best where it costs eight postings a wrong match."""
    left = np.array([0, 2, 4, 6, 8, 10, 12, 14, 16, 10, 14])
    right = np.array([1, 3, 5, 7, 9, 11, 13, 15, 17, 12, 16])
    pairs = Pairs.of(18, left, right)
    labels = Labels(np.repeat(np.arange(9), 2))
    wrong = ~labels.equal(pairs)
    scores = np.where(wrong, 0.5, np.where(pairs.query < 10, 0.4, 0.9))
    found = best_threshold(scores, pairs, labels, np.ones(18, bool), one_match=True)
    chosen = found.choose(scores, pairs)
    assert f1_of_postings(chosen, pairs, labels).min() == 1


def test_a_threshold_is_chosen_by_the_rows_that_choose() -> None:
    pairs, labels = all_pairs(4), Labels(np.array([0, 0, 1, 1]))
    scores = np.where(labels.equal(pairs), 0.6, 0.3)
    found = best_threshold(scores, pairs, labels, np.array([True, True, False, False]))
    chosen = found.choose(scores, pairs)
    assert f1_of_postings(chosen, pairs, labels).tolist() == [1, 1, 1, 1]


def labelled(count: int, titles: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "label_group": [f"g{row // 2}" for row in range(count)],
            "title": titles or [f"title {row}" for row in range(count)],
            "image_phash": "",
        }
    )


def test_no_group_copy_or_title_is_on_both_sides() -> None:
    frame = labelled(60)
    frame.loc[[3, 40], "title"] = "one title"
    frame.loc[5, "image_phash"], frame.loc[30, "image_phash"] = PHASHES[:2]
    sets = tied_groups(frame, near_bits=4)
    assert sets[2] == sets[3] == sets[40] == sets[41]
    assert sets[5] == sets[30]
    apart = tied_groups(frame, near_bits=0)
    assert apart[5] != apart[30]
    side = split_groups(frame, sets, 0.5, seed=3)
    for values in (frame["label_group"], sets):
        assert pd.Series(side).groupby(np.asarray(values)).nunique().max() == 1
    assert 0.3 < (side == VALIDATION).mean() < 0.7
    assert set(side) == {VALIDATION, TEST}


@pytest.mark.fault
def test_too_few_groups_are_an_error() -> None:
    frame = labelled(4)
    with pytest.raises(CatalogError, match="form 2 sets"):
        split_groups(frame, tied_groups(frame, 4), 0.5, 0)


def test_the_pair_model_has_not_seen_the_labels_of_the_pairs_it_scores() -> None:
    """With features that only name the query, a model can score well only by having seen it."""
    count = 40
    pairs = all_pairs(count)
    same = np.random.default_rng(0).random(count)[pairs.query] > 0.5
    features = {"query": pairs.query.astype(np.float32)}
    folds = np.random.default_rng(1).permutation(np.arange(count) % 3)
    _, first, _ = fit_pair_model(features, same, pairs, folds, 0)
    assert 0.2 < ((first > 0.5) == same).mean() < 0.8


def test_nor_in_the_other_direction() -> None:
    """A feature that names the match tells only what other pairs of it have shown."""
    count = 40
    pairs = all_pairs(count)
    same = np.random.default_rng(0).random(count)[pairs.match] > 0.5
    features = {"match": pairs.match.astype(np.float32)}
    folds = np.random.default_rng(1).permutation(np.arange(count) % 3)
    _, first, _ = fit_pair_model(features, same, pairs, folds, 0)
    within = folds[pairs.query] == folds[pairs.match]
    assert 0.2 < ((first > 0.5) == same)[within].mean() < 0.8
    assert ((first > 0.5) == same)[~within].mean() > 0.9


def test_folds_are_equally_large_and_keep_sets_whole() -> None:
    sets = np.repeat(np.arange(8), 2)
    chosen = sets < 5
    for seed in range(5):
        folds = draw_folds(sets, chosen, 3, seed)
        assert (folds[~chosen] == -1).all()
        assert sorted(np.bincount(folds[chosen])) == [2, 4, 4]
        assert (folds[::2] == folds[1::2]).all()


ROWS = {"posting_id": ["a", "b"], "title": ["red rice", "blue shoes"]}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"posting_id": ["a"], "title": ["red rice"]}, "has one posting"),
        ({"posting_id": ["a", "b"]}, "No posting has a title"),
        ({**ROWS, "title": ["rice", "rice"]}, "All titles are the same"),
        ({**ROWS, "title": ["!", "?"]}, "No posting has a title"),
        ({**ROWS, "posting_id": ["a", "a"]}, "repeat an earlier one, such as 'a'"),
        ({**ROWS, "posting_id": ["a", "b c"]}, "'b c' holds a space"),
        ({**ROWS, "posting_id": ["a", ""]}, "Row 2 has no posting_id"),
        ({"title": ["red rice", "blue shoes"]}, "Row 1 has no image.*add a column posting_id"),
        ({**ROWS, "title": ["", ""], "image_phash": ["x", "y"]}, "No posting has a title"),
    ],
)
def test_postings_that_cannot_be_matched(rows: dict[str, list[str]], words: str) -> None:
    with pytest.raises(CatalogError, match=words):
        check_postings(pd.DataFrame(rows, dtype=str))


@pytest.mark.fault
def test_titles_all_alike_are_not_used_where_there_are_phashes() -> None:
    rows = pd.DataFrame({**ROWS, "title": ["rice", "rice"], "image_phash": list(PHASHES[:2])})
    postings = check_postings(rows)
    assert postings.signals == ["phashes"]
    assert postings.remarks == ["all titles are the same, so they are not used"]
