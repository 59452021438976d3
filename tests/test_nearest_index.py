"""Nearest titles and photos of many postings, by an approximate index."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from shopee_mlflow.errors import CatalogError
from shopee_mlflow.matching import candidates, nearest_index
from shopee_mlflow.matching.candidates import find_pairs
from shopee_mlflow.matching.title_vectors import title_vectors


def clusters(count: int, features: int, each: int = 5) -> np.ndarray:
    """Vectors of length 1, each of a few near one another."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((count // each, features), np.float32)
    values = np.repeat(centres, each, axis=0)
    values += 0.2 * random.standard_normal(values.shape, np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("features", [30, 64, 600])
def test_the_index_finds_most_of_the_nearest(features: int) -> None:
    vectors = clusters(3_000, features)
    query, match = nearest_index.nearest_by_index(3_000, lambda rows: vectors[rows], 8)
    assert (query != match).all()
    assert np.bincount(query).max() <= 9
    same = query // 5 == match // 5
    assert same.sum() > 0.9 * 3_000 * 4


def test_many_postings_are_searched_by_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "EXACT_MOST", 500)
    random = np.random.default_rng(0)
    names = ["".join(letters) for letters in random.choice(list("abcdefghij"), (400, 5))]
    titles = [" ".join([names[row // 2], names[-row // 2], str(row // 2)]) for row in range(800)]
    photos = clusters(800, 32, each=2)
    photos[7] = 0
    found = find_pairs(title_vectors([*titles[:-1], ""]), None)
    pairs = set(zip(found.query.tolist(), found.match.tolist(), strict=True))
    assert np.mean([(row, row + 1) in pairs for row in range(0, 798, 2)]) > 0.9
    assert 799 not in found.query
    found = find_pairs(None, pd.Series([""] * 800), photos)
    pairs = set(zip(found.query.tolist(), found.match.tolist(), strict=True))
    assert np.mean([(row, row + 1) in pairs for row in range(8, 800, 2)]) > 0.9
    assert 7 not in found.query


def test_many_titles_are_searched_by_their_rare_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a time that does not grow with the words that all of them have; without faiss."""
    monkeypatch.setattr(nearest_index, "find_spec", lambda _: None)
    titles = [f"brand{row // 2} promo {'original' if row % 2 else 'murah'}" for row in range(800)]
    monkeypatch.setattr(candidates, "EXACT_MOST", 500)
    monkeypatch.setattr(candidates, "_PRODUCTS_OF_MANY", 8)
    vectors = title_vectors(titles)
    assert vectors is not None
    query, match = candidates.nearest_titles(vectors)
    assert sorted(zip(query.tolist(), match.tolist(), strict=True)) == [
        (row, row + 1 - row % 2 * 2) for row in range(800)
    ]


@pytest.mark.fault
def test_without_faiss_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_index, "find_spec", lambda _: None)
    monkeypatch.setattr(candidates, "EXACT_MOST", 500)
    with pytest.raises(CatalogError, match=r"600 photos .* pip install faiss-cpu"):
        find_pairs(None, None, clusters(600, 16))


def test_long_positive_vectors_are_ranked_by_scalar_product() -> None:
    """Embeddings of a ReLU network: their mean is far from zero, and varies in its share."""
    random, count = np.random.default_rng(0), 3_000
    shares = random.uniform(0.05, 0.9, (count, 1))
    vectors = random.random((count, 600), np.float32) * (random.random((count, 600)) < shares)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    query, match = nearest_index.nearest_by_index(count, lambda rows: vectors[rows], 30)
    products = vectors @ vectors.T
    usual = products[~np.eye(count, dtype=bool)].mean()
    np.fill_diagonal(products, -1)
    best = np.partition(products, -30, axis=1)[:, -30:].mean()
    assert (products[query, match].mean() - usual) / (best - usual) > 0.85


def test_nearest_rows_do_not_keep_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second row has one match; the others have a thousand each."""
    monkeypatch.setattr(candidates, "_PRODUCTS", 10_000)
    rows = np.arange(2_000)
    columns = np.where(rows % 2, 0, 1 + rows // 4)
    vectors = csr_matrix((np.ones(2_000, np.float32), (rows, columns)), (2_000, 502))
    tracemalloc.start()
    query, match = candidates.nearest_rows(vectors, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    assert np.bincount(query)[::2].tolist() == [1] * 1_000
    assert (query[query % 2 == 0] // 4 == match[query % 2 == 0] // 4).all()
