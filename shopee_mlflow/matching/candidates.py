"""Candidate pairs: nearest titles by chunked sparse products, and phashes a few bits apart.

The time of a sparse product grows with the squares of the terms' frequencies. So terms that are in
many titles are left out of the search; the similarities of the pairs found use all terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack

from ..data.near_copies import NEAR_BITS, near_phashes
from ..data.splits import telling_phashes
from .pairs import Pairs
from .title_vectors import TitleVectors

# Nearest titles of each posting.
NEAREST = 60
# Terms in more than this share of all titles are not searched, within these two counts.
_COMMON_SHARE, _COMMON_LEAST, _COMMON_MOST = 0.03, 500, 5_000
# Weights of words, pairs of words and characters in the search.
_WEIGHTS = (0.7, 0.3, 0.7)
# Rows of a phash that are paired with those of another one, or with each other.
_ROWS_OF_PHASH = 60
# Nonzero products in memory at a time: 8 bytes each, twice while they are computed.
_PRODUCTS = 12_000_000


def find_pairs(
    titles: TitleVectors | None, phashes: pd.Series | None, photos: np.ndarray | None = None
) -> Pairs:
    """Candidate pairs by titles, phashes and photos; any two of them may be missing.

    :param phashes: 16 hexadecimal digits, or empty.
    :param photos: (N, features) float32, embeddings of length 1, or of zeros.
    """
    ends, count = [(np.empty(0, np.int64), np.empty(0, np.int64))], 0
    if titles is not None:
        ends.append(nearest_titles(titles))
        count = titles.words.shape[0]
    if photos is not None:
        ends.append(nearest_photos(photos))
        count = len(photos)
    if phashes is not None:
        count = len(phashes)
        ends += _equal_and_near(telling_phashes(phashes.reset_index(drop=True)))
    left, right = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    return Pairs.of(count, left, right)


def nearest_titles(titles: TitleVectors, nearest: int = NEAREST) -> tuple[np.ndarray, np.ndarray]:
    """The ``nearest`` most similar titles of each title: rows of both."""
    parts = (titles.words, titles.bigrams, titles.characters)
    searched = [_rare(part) * weight for part, weight in zip(parts, _WEIGHTS, strict=True)]
    vectors = hstack(searched, format="csr", dtype=np.float32)
    return nearest_rows(vectors, nearest)


def nearest_photos(photos: np.ndarray, nearest: int = NEAREST) -> tuple[np.ndarray, np.ndarray]:
    """The ``nearest`` most similar photos of each photo: rows of both; none for zeros."""
    there = np.flatnonzero(photos.any(axis=1))
    vectors, nearest = photos[there], min(nearest, len(there) - 1)
    if nearest < 1:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found = []
    step = max(1, _PRODUCTS // len(there))
    for start in range(0, len(there), step):
        products = vectors[start : start + step] @ vectors.T
        found.append(np.argpartition(products, -nearest - 1)[:, -nearest - 1 :])
    match = np.concatenate(found)
    query = np.repeat(np.arange(len(there)), match.shape[1])
    return there[query], there[match.ravel()]


def nearest_rows(vectors: csr_matrix, nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``nearest`` other rows of largest scalar product with each row: rows of both."""
    columns = vectors.T.tocsr()
    queries, matches = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start, stop in _chunks(vectors):
        products = vectors[start:stop] @ columns
        for row in range(stop - start):
            part = slice(products.indptr[row], products.indptr[row + 1])
            values, found = products.data[part], products.indices[part]
            if len(found) > nearest + 1:
                found = found[np.argpartition(values, -nearest - 1)[-nearest - 1 :]]
            queries.append(np.full(len(found), start + row))
            matches.append(found)
    query, match = np.concatenate(queries), np.concatenate(matches)
    apart = query != match
    return query[apart], match[apart]


def _chunks(vectors: csr_matrix) -> Iterator[tuple[int, int]]:
    """Yield first and last rows of parts whose product fits into memory."""
    rows = vectors.shape[0]
    frequency = np.bincount(vectors.indices, minlength=vectors.shape[1])
    present = csr_matrix((np.ones(vectors.nnz), vectors.indices, vectors.indptr), vectors.shape)
    most = np.cumsum(np.minimum(present @ frequency, rows))
    bounds = np.flatnonzero(np.diff(most // _PRODUCTS)) + 1
    yield from pairwise([0, *bounds.tolist(), rows])


def _rare(vectors: csr_matrix) -> csr_matrix:
    """The columns that are not in too many rows."""
    frequency = np.bincount(vectors.indices, minlength=vectors.shape[1])
    most = np.clip(_COMMON_SHARE * vectors.shape[0], _COMMON_LEAST, _COMMON_MOST)
    return vectors[:, np.flatnonzero(frequency <= most)]


def _equal_and_near(phashes: pd.Series) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of equal phashes and of phashes up to 6 bits apart; a phash of many rows is sampled."""
    rows = phashes[phashes != ""]
    numbers, distinct = pd.factorize(rows)
    ends = [_rows_of_equal(numbers, rows.index.to_numpy())]
    near = near_phashes(list(distinct), NEAR_BITS)
    few = pd.DataFrame({"number": numbers, "row": rows.index})
    few = few[few.groupby("number").cumcount() < _ROWS_OF_PHASH]
    joined = pd.DataFrame({"left": near.left, "right": near.right})
    joined = joined.merge(few.rename(columns={"number": "left", "row": "one"}), on="left")
    joined = joined.merge(few.rename(columns={"number": "right", "row": "other"}), on="right")
    return [*ends, (joined["one"].to_numpy(), joined["other"].to_numpy())]


def _rows_of_equal(numbers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows with equal numbers, each row with at most the next 60 of them."""
    order = np.argsort(numbers, kind="stable")
    numbers, rows = numbers[order], rows[order]
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for step in range(1, min(_ROWS_OF_PHASH, len(rows) - 1) + 1):
        equal = np.flatnonzero(numbers[:-step] == numbers[step:])
        if not len(equal):
            break
        left.append(rows[equal])
        right.append(rows[equal + step])
    return np.concatenate(left), np.concatenate(right)
