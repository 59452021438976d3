"""Requests to a matcher: postings in any state, and what one call costs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from shopee_mlflow.matching.ladder import climb
from shopee_mlflow.matching.pool import Pool
from shopee_mlflow.matching.postings import check_postings
from shopee_mlflow.tracking.posting_matcher import PostingMatcher


def catalogue() -> pd.DataFrame:
    """20 products of 3 postings, whose titles share four words and whose phashes are equal."""
    random = np.random.default_rng(0)
    rows = []
    for product in range(20):
        words = [*random.choice(["red", "blue", "shoe", "bag", "tea", "oil", "soap"], 3)]
        bits = random.permutation(np.arange(64) % 2)
        phash = f"{int(''.join(map(str, bits)), 2):016x}"
        for number in range(3):
            title = " ".join(random.permutation([*words, f"brand{product}"]))
            rows.append((f"p{product}_{number}", title, phash, f"g{product}"))
    return pd.DataFrame(rows, columns=["posting_id", "title", "image_phash", "label_group"])


@pytest.fixture(scope="module")
def matcher() -> PostingMatcher:
    postings = check_postings(catalogue())
    _, chosen, matches = climb(postings, 4, 0.5, 0, lambda _: None)
    return PostingMatcher(chosen, Pool(postings, matches.pairs))


@pytest.mark.fault
@pytest.mark.parametrize("form", ["z" * 16, "abc", "{0}{0}", "+{0}", " {0}", "0x{0}", " "])
def test_a_malformed_phash_counts_as_missing(matcher: PostingMatcher, form: str) -> None:
    phash, titles = matcher.index["image_phash"][0], list(matcher.index["title"][[3, 6]])
    phashes = [form.format(phash), ""]
    found = matcher.predict(pd.DataFrame({"title": titles, "image_phash": phashes}))
    without = matcher.predict(pd.DataFrame({"title": titles}))
    pd.testing.assert_frame_equal(found, without)


@pytest.mark.parametrize("phash", ["{0}", "000000000000fff0"])
def test_the_case_of_a_phash_does_not_matter(matcher: PostingMatcher, phash: str) -> None:
    phash = phash.format(matcher.index["image_phash"][0])
    titles = list(matcher.index["title"][:2])
    lower, upper = (
        matcher.predict(pd.DataFrame({"title": titles, "image_phash": [each] * 2}))
        for each in (phash, phash.upper())
    )
    assert "p0_0" in json.loads(lower["matches"][0])
    pd.testing.assert_frame_equal(upper, lower)


@pytest.mark.parametrize("columns", [["title"], ["posting_id", "title", "image_phash", "image"]])
def test_an_empty_table_has_an_empty_answer(matcher: PostingMatcher, columns: list[str]) -> None:
    found = matcher.predict(pd.DataFrame(columns=columns))
    assert found.shape == (0, 3)
    assert list(found.columns) == ["matches", "scores", "error"]


def test_adding_no_postings_changes_nothing(matcher: PostingMatcher) -> None:
    grown = matcher.add(pd.DataFrame(columns=["posting_id", "title"]))
    pd.testing.assert_frame_equal(grown.index, matcher.index)
