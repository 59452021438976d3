"""Candidate pairs: nearest titles by chunked sparse products, and phashes a few bits apart.

The time of a sparse product grows with the squares of the terms' frequencies. So terms that are in
many titles are left out of the search; the similarities of the pairs found use all terms. Among
many titles, only words and pairs of words are searched, so rare that each title takes equal time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, hstack

from ..data.near_copies import NEAR_BITS, near_phashes
from ..data.splits import telling_phashes
from .nearest_index import EXACT_MOST, nearest_by_index
from .pairs import Pairs
from .title_vectors import TitleVectors

# Nearest titles and photos of each posting, and those of many postings.
NEAREST, NEAREST_OF_MANY = 60, 30
# Terms in more than this share of all titles are not searched, within these two counts.
_COMMON_SHARE, _COMMON_LEAST, _COMMON_MOST = 0.03, 500, 5_000
# Products for each of many titles.
_PRODUCTS_OF_MANY = 4_000
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
    """The ``nearest`` most similar titles of each title: rows of both.

    For more than :data:`.nearest_index.EXACT_MOST` titles, those that share a rare word.
    """
    vectors = TitleSearch(titles).vectors
    if vectors.shape[0] > EXACT_MOST:
        nearest = min(nearest, NEAREST_OF_MANY)
    return nearest_rows(vectors, nearest)


class TitleSearch:
    """Titles of a pool, searched by the terms that are not in too many of them."""

    def __init__(self, titles: TitleVectors) -> None:
        many = titles.words.shape[0] > EXACT_MOST
        self._kept = _rarest_words(titles) if many else [_rare_columns(p) for p in _parts(titles)]
        self.vectors = self._of(titles)

    def nearest(self, titles: TitleVectors, nearest: int) -> tuple[np.ndarray, np.ndarray]:
        """The most similar titles of the pool: rows of ``titles``, and rows of the pool.

        :param titles: by the terms of the pool, see :meth:`.TitleVectors.of`.
        """
        return _nearest_columns(self._of(titles), self._columns, nearest)

    def _of(self, titles: TitleVectors) -> csr_matrix:
        kept = zip(_parts(titles), self._kept, _WEIGHTS, strict=True)
        parts = [part[:, columns] * weight for part, columns, weight in kept]
        return hstack(parts, format="csr", dtype=np.float32)

    @cached_property
    def _columns(self) -> csr_matrix:
        return self.vectors.T.tocsr()


def nearest_photos(photos: np.ndarray, nearest: int = NEAREST) -> tuple[np.ndarray, np.ndarray]:
    """The ``nearest`` most similar photos of each photo: rows of both; none for zeros.

    Approximate for more than :data:`.nearest_index.EXACT_MOST` photos.
    """
    rows = np.flatnonzero(photos.any(axis=1))
    if len(rows) > EXACT_MOST:
        query, match = nearest_by_index(
            len(rows), lambda part: photos[rows[part]], min(nearest, NEAREST_OF_MANY)
        )
        return rows[query], rows[match]
    return PhotoSearch(photos).nearest(photos, nearest + 1)


class PhotoSearch:
    """Photos of a pool; the postings without one are never found.

    :param photos: (N, features) float32, zeros without a photo. They are not copied.
    """

    def __init__(self, photos: np.ndarray) -> None:
        self._photos, self._absent = photos, ~photos.any(axis=1)

    def nearest(self, photos: np.ndarray, nearest: int) -> tuple[np.ndarray, np.ndarray]:
        """The most similar photos of the pool: rows of ``photos`` and of the pool."""
        asked = np.flatnonzero(photos.any(axis=1))
        nearest = min(nearest, int((~self._absent).sum()))
        found = [np.empty((0, nearest), np.int64)]
        step = max(1, _PRODUCTS // max(len(self._photos), 1))
        for start in range(0, len(asked) if nearest else 0, step):
            products = photos[asked[start : start + step]] @ self._photos.T
            products[:, self._absent] = -np.inf
            found.append(np.argpartition(products, -nearest)[:, -nearest:])
        match = np.concatenate(found)
        return np.repeat(asked[: len(match)], nearest), match.ravel()


def nearest_rows(vectors: csr_matrix, nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``nearest`` other rows of largest scalar product with each row: rows of both."""
    query, match = _nearest_columns(vectors, vectors.T.tocsr(), nearest + 1)
    apart = query != match
    return query[apart], match[apart]


def _nearest_columns(
    vectors: csr_matrix, columns: csr_matrix, nearest: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``nearest`` columns of largest scalar product with each row."""
    queries, matches = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start, stop in _chunks(vectors, columns):
        products, own = vectors[start:stop] @ columns, []
        for row in range(stop - start):
            part = slice(products.indptr[row], products.indptr[row + 1])
            values, found = products.data[part], products.indices[part]
            if len(found) > nearest:
                found = found[np.argpartition(values, -nearest)[-nearest:]]
            own.append(found)
        # Joined at once: a part of the products would keep all of them in memory.
        queries.append(np.repeat(np.arange(start, stop), [len(found) for found in own]))
        matches.append(np.concatenate([np.empty(0, np.int64), *own]))
    return np.concatenate(queries), np.concatenate(matches)


def _chunks(vectors: csr_matrix, columns: csr_matrix) -> Iterator[tuple[int, int]]:
    """Yield first and last rows of parts whose product fits into memory."""
    rows = vectors.shape[0]
    frequency = np.diff(columns.indptr)
    present = csr_matrix((np.ones(vectors.nnz), vectors.indices, vectors.indptr), vectors.shape)
    most = np.cumsum(np.minimum(present @ frequency, columns.shape[1]))
    bounds = np.flatnonzero(np.diff(most // _PRODUCTS)) + 1
    yield from pairwise([0, *bounds.tolist(), rows])


def _parts(titles: TitleVectors) -> tuple[csr_matrix, csr_matrix, csr_matrix]:
    return titles.words, titles.bigrams, titles.characters


def _rare_columns(vectors: csr_matrix) -> np.ndarray:
    """The columns that are not in too many rows."""
    frequency = np.bincount(vectors.indices, minlength=vectors.shape[1])
    most = np.clip(_COMMON_SHARE * vectors.shape[0], _COMMON_LEAST, _COMMON_MOST)
    return np.flatnonzero(frequency <= most)


def _rarest_words(titles: TitleVectors) -> list[np.ndarray]:
    """Columns of words and of pairs of words, as rare as limits the products; no characters."""
    parts = (titles.words, titles.bigrams)
    counts = [np.bincount(part.indices, minlength=part.shape[1]) for part in parts]
    rarest = np.sort(np.concatenate(counts))
    products = np.cumsum(rarest.astype(np.float64) ** 2) / titles.words.shape[0]
    most = rarest[max(0, int(np.searchsorted(products, _PRODUCTS_OF_MANY)) - 1)]
    return [*(np.flatnonzero(count <= most) for count in counts), np.empty(0, np.int64)]


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
