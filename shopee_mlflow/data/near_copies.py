"""Near copies of photos: pairs whose phashes differ in few bits, and the clusters of such pairs.

No n x n matrix is computed. A phash has eight bytes. If two phashes differ in at most six of their
64 bits, at least two bytes are equal. So each pair is found in one of 28 tables, each sorted by
two bytes.

In a contrived file, nearly all phashes may share bytes or be near one another. So the numbers of
comparisons and pairs are limited, and the result says whether a limit was reached.

A phash has a bit for each of 64 cosine coefficients, which is set where the coefficient is above
their median. So 32 bits are set, as in all 29,692 phashes of Kaggle's catalogue and of the photos
of groceries, unless many coefficients are equal. In a photo of one colour, or one whose rows or
columns are all equal, nearly all of them are 0, and 0 to 8 bits are set. Such a phash does not tell
photos apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

# A phash as text.
PHASH = re.compile(r"[0-9a-f]{16}")
# Two photos whose phashes differ in at most this many bits are near copies.
NEAR_BITS = 6
# The most pairs that are returned.
MOST_PAIRS = 500_000
# The most comparisons in each of the 28 tables: in all, or per phash if that is more. Uniformly
# distributed phashes need n / 131,072 comparisons each: 8 for a million.
_COMPARISONS, _COMPARISONS_EACH = 300_000, 50
_BYTES = 8
_CHUNK = 65_536
# A phash with fewer bits set, or with fewer bits not set, belongs to a photo without detail.
_LEAST_SET = 16


@dataclass(frozen=True)
class NearPairs:
    """Pairs of values that differ in few bits, each pair once.

    :ivar left: (P,) int64, indices of the first values; ``right`` those of the second, always
        larger.
    :ivar bits: (P,) uint8, how many bits differ.
    :ivar complete: whether these are all pairs; False where a limit was reached.
    """

    left: np.ndarray
    right: np.ndarray
    bits: np.ndarray
    complete: bool = True

    def __len__(self) -> int:
        return len(self.left)


def parse_phashes(phashes: Sequence[str]) -> np.ndarray:
    """Phashes of 16 hexadecimal digits as numbers, uint64."""
    return np.array([int(text, 16) for text in phashes], dtype=np.uint64)


def near_phashes(phashes: Sequence[str], most: int = NEAR_BITS) -> NearPairs:
    """:func:`near_pairs` of those distinct phashes that tell photos apart, see :func:`telling`.

    :returns: pairs of indices of ``phashes``.
    """
    rows = np.flatnonzero(telling(phashes))
    pairs = near_pairs(parse_phashes(np.array(phashes, dtype=object)[rows].tolist()), most)
    return NearPairs(rows[pairs.left], rows[pairs.right], pairs.bits, pairs.complete)


def telling(phashes: Sequence[str]) -> np.ndarray:
    """Whether each phash tells photos apart: 16 to 48 of its bits are set; (N,) bool."""
    bits = np.bitwise_count(parse_phashes(phashes))
    return (bits >= _LEAST_SET) & (bits <= 8 * _BYTES - _LEAST_SET)


def near_pairs(values: np.ndarray, most: int = NEAR_BITS, limit: int = MOST_PAIRS) -> NearPairs:
    """Find the pairs of values that differ in 1 to ``most`` bits.

    Time and memory grow with the number of values, not with its square: see ``NearPairs.complete``.

    :param values: uint64, no two equal.
    :param most: 1 to 6; for more, two bytes need not be equal.
    :param limit: the most pairs returned.
    """
    if not 1 <= most <= _BYTES - 2:
        raise ValueError(f"most={most}: must be 1 to {_BYTES - 2}")
    values = np.ascontiguousarray(values, dtype=np.uint64)
    if len(np.unique(values)) != len(values):
        raise ValueError("values must differ from one another")
    octets = values.view(np.uint8).reshape(-1, _BYTES)
    comparisons = max(_COMPARISONS, _COMPARISONS_EACH * len(values))
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
    total, complete = 0, True
    for table in combinations(range(_BYTES), 2):
        compared = 0
        for one, other in _pairs_of_equal_keys(octets[:, table[0]], octets[:, table[1]]):
            if compared >= comparisons or total > limit:
                complete = False
                break
            compared += len(one)
            found.append(_near_of(values, one, other, table, most))
            total += len(found[-1][0])
    left, right, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if total > limit:
        left, right, bits, complete = left[:limit], right[:limit], bits[:limit], False
    order = np.lexsort((right, left))
    return NearPairs(left[order], right[order], bits[order], complete)


def connected(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Number the connected components of a graph with nodes 0..count-1.

    :param left: (E,) int, one end of each edge; ``right`` (E,) int, the other one.
    :returns: (count,) int64, numbers 0, 1, ... in order of first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(count, count))
    components = connected_components(edges, directed=False)[1]
    return np.asarray(pd.factorize(components)[0], dtype=np.int64)


def _near_of(
    values: np.ndarray, one: np.ndarray, other: np.ndarray, table: tuple[int, int], most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The near pairs among the given ones whose first two equal bytes are the table's."""
    differing = values[one] ^ values[other]
    bits = np.bitwise_count(differing)
    near = bits <= most
    one, other, bits = one[near], other[near], bits[near]
    equal = differing[near].view(np.uint8).reshape(-1, _BYTES) == 0
    first = equal.argmax(axis=1)
    equal[np.arange(len(first)), first] = False
    in_table = (first == table[0]) & (equal.argmax(axis=1) == table[1])
    return np.minimum(one, other)[in_table], np.maximum(one, other)[in_table], bits[in_table]


def _pairs_of_equal_keys(
    high: np.ndarray, low: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield all pairs of indices with equal keys: first neighbours in sorted order, then others."""
    keys = high.astype(np.uint16) << 8 | low
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    step, starts = 1, np.arange(len(keys))
    while True:
        starts = starts[starts + step < len(keys)]
        starts = starts[keys[starts] == keys[starts + step]]
        if not len(starts):
            return
        for first in range(0, len(starts), _CHUNK):
            part = starts[first : first + _CHUNK]
            yield order[part], order[part + step]
        step += 1
