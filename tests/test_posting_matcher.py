"""Requests to a matcher: postings in any state, and what one call costs."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import draw_photo

from shopee_mlflow import build_model
from shopee_mlflow.errors import CatalogError, TrackingError
from shopee_mlflow.matching.candidates import PhotoSearch
from shopee_mlflow.matching.ladder import climb
from shopee_mlflow.matching.pairs import Pairs
from shopee_mlflow.matching.pool import Pool
from shopee_mlflow.matching.postings import check_postings
from shopee_mlflow.modeling import inference
from shopee_mlflow.modeling.inference import Predictor
from shopee_mlflow.tracking.matcher_files import load_matcher, log_matcher
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


def peak_memory(call: Callable[[], object]) -> int:
    """The most bytes that a second call allocates; the first one may fill caches."""
    call()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("absent", [0, 5])
def test_a_request_does_not_copy_the_photos_of_the_pool(absent: int) -> None:
    random = np.random.default_rng(0)
    photos = random.standard_normal((2_000, 64)).astype(np.float32)
    photos[:absent] = 0
    search = PhotoSearch(photos)
    query, match = search.nearest(photos[[absent, 9]], 3)
    assert query.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.argsort(-photos[[absent, 9]] @ photos.T, axis=1)[:, :3]
    assert [set(each) for each in match.reshape(2, 3)] == [set(each) for each in expected]
    assert peak_memory(lambda: search.nearest(photos[9:10], 3)) < photos.nbytes / 4


def test_photos_that_are_far_from_all_find_none_that_are_missing() -> None:
    pool = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    _, match = PhotoSearch(pool).nearest(np.array([[-0.6, -0.8]], np.float32), 3)
    assert sorted(match) == [1, 2]


def test_a_request_does_not_hash_the_ids_of_the_pool() -> None:
    ids = [f"p{row}" for row in range(20_000)]
    rows = pd.DataFrame({"posting_id": ids, "image_phash": "b3d1c2a09f4e5b68"})
    pool = Pool(check_postings(rows), Pairs.of(len(ids), np.empty(0), np.empty(0)))
    assert peak_memory(lambda: pool.check_new_ids(pd.Series(["n1"]))) < 50_000
    with pytest.raises(CatalogError, match="1 of 2 postings are in the index already.*'p7'"):
        pool.check_new_ids(pd.Series(["n1", "p7"]))


def test_a_network_is_prepared_once_and_for_photos_alone(
    matcher: PostingMatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, made = matcher.pool.postings, []
    photos = np.random.default_rng(0).standard_normal((len(known), 512)).astype(np.float32)
    pool = Pool(replace(known, photos=photos), matcher.pool.pairs)
    seeing = PostingMatcher(matcher.matcher, pool, build_model("cnn", ["a", "b"], 64).eval())

    def counted(*given: Any) -> Predictor:
        made.append(given)
        return Predictor(*given)

    monkeypatch.setattr(inference, "Predictor", counted)
    title, photo = known.frame["title"][0], np.asarray(draw_photo(0, 0, 64))
    seeing.predict(pd.DataFrame({"title": [title]}))
    seeing.predict(pd.DataFrame({"title": [title], "image": [None]}))
    assert not made
    for _ in range(2):
        found = seeing.predict(pd.DataFrame({"title": [title, title], "image": [photo, None]}))
        assert found["error"].isna().all()
    assert len(made) == 1


@pytest.mark.parametrize("missing", ["", None, float("nan"), pd.NA])
def test_postings_without_an_id_are_called_by_their_rows(
    matcher: PostingMatcher, missing: object
) -> None:
    title = "unheard thing red blue"
    ids = [missing, "mine", missing]
    found = matcher.predict(pd.DataFrame({"posting_id": ids, "title": [title] * 3}))
    unnamed = matcher.predict(pd.DataFrame({"title": [title] * 3}))
    expected = [each.replace('"new-2"', '"mine"') for each in unnamed["matches"]]
    assert found["matches"].tolist() == expected
    assert '"new-3"' in expected[0]
    assert '"new-1"' in expected[2]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("no photo", "no base64 text"),
        (b"no photo", "no JPEG, PNG"),
        (np.zeros((4, 4), np.float32), "array"),
    ],
)
def test_a_matcher_of_phashes_says_why_it_cannot_read_a_photo(
    matcher: PostingMatcher, image: object, words: str
) -> None:
    rows = {"title": list(matcher.index["title"][:2]), "image": [image, None]}
    found = matcher.predict(pd.DataFrame(rows))
    without = matcher.predict(pd.DataFrame({"title": rows["title"]}))
    assert words in found["error"][0]
    assert found["error"][1] is None
    assert found["matches"].tolist() == without["matches"].tolist()
    with pytest.raises(CatalogError, match=f"image of n1: .*{words}"):
        matcher.add(pd.DataFrame({"posting_id": ["n1", "n2"], **rows}))


@pytest.mark.fault
def test_a_matcher_of_titles_says_that_it_does_not_use_photos() -> None:
    postings = check_postings(catalogue().drop(columns="image_phash"))
    _, chosen, matches = climb(postings, 4, 0.5, 0, lambda _: None)
    titles = PostingMatcher(chosen, Pool(postings, matches.pairs))
    photo = np.asarray(draw_photo(0, 0, 64))
    rows = {"title": list(postings.frame["title"][:3]), "image": [photo, "no photo", None]}
    found = titles.predict(pd.DataFrame(rows))
    assert ["not used" in (error or "") for error in found["error"]] == [True, True, False]
    new = pd.DataFrame({"posting_id": ["n1", "n2", "n3"], **rows})
    assert titles.add(new).index["posting_id"].tolist()[-3:] == ["n1", "n2", "n3"]


@pytest.mark.fault
def test_only_postings_with_an_id_are_added(matcher: PostingMatcher) -> None:
    new = pd.DataFrame({"posting_id": ["n1", "", None], "title": ["rice", "tea", "oil"]})
    with pytest.raises(CatalogError, match="2 of 3 new postings have no posting_id"):
        matcher.add(new)
    with pytest.raises(CatalogError, match="3 of 3 new postings have no posting_id"):
        matcher.add(new[["title"]])


@pytest.mark.fault
@pytest.mark.slow
def test_a_stored_matcher_keeps_any_title_and_names_what_it_cannot_read(
    matcher: PostingMatcher,
) -> None:
    title = "a\rb"
    new = pd.DataFrame({"posting_id": ["odd"], "title": [title]})
    with mlflow.start_run():
        uri = log_matcher(matcher.add(new), register=False)
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    loaded = load_matcher(str(folder))
    assert loaded.index["title"].iloc[-1] == title
    (folder / "data" / "matcher" / "matcher.pkl").write_bytes(b"cshopee_mlflow\nGone\n.")
    with pytest.raises(TrackingError, match=r"matcher\.pkl cannot be read .* run match again"):
        load_matcher(str(folder))
