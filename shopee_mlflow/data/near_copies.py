"""Photos that look almost alike: phashes few bits apart, and the clusters that they form.

No n x n matrix is made. A phash has eight bytes; where at most six of its 64 bits differ, at least
two of the eight bytes are equal. So each pair is met in one of 28 tables, sorted by two bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

# Two photos whose phashes differ in so many bits or fewer are called near copies here.
NEAR_BITS = 6
_BYTES = 8


@dataclass(frozen=True)
class NearPairs:
    """Pairs of values that differ in few bits, each pair once.

    :ivar left: positions (int64); ``right`` the other ones, always the larger.
    :ivar bits: how many bits differ (uint8).
    """

    left: np.ndarray
    right: np.ndarray
    bits: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


def parse_phashes(phashes: Sequence[str]) -> np.ndarray:
    """Phashes of 16 hexadecimal digits as numbers, uint64."""
    return np.array([int(text, 16) for text in phashes], dtype=np.uint64)


def near_pairs(values: np.ndarray, most: int = NEAR_BITS) -> NearPairs:
    """All pairs of values that differ in 1 to ``most`` bits, by position.

    :param values: uint64, no two equal.
    :param most: 1 to 6; for more, two bytes need not be equal.
    """
    if not 1 <= most <= _BYTES - 2:
        raise ValueError(f"most={most}: must be 1 to {_BYTES - 2}")
    values = np.ascontiguousarray(values, dtype=np.uint64)
    if len(np.unique(values)) != len(values):
        raise ValueError("values must differ from one another")
    octets = values.view(np.uint8).reshape(-1, _BYTES)
    found = [
        _pairs_in_table(values, octets, table, most) for table in combinations(range(_BYTES), 2)
    ]
    left, right, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((right, left))
    return NearPairs(left[order], right[order], bits[order])


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


def _pairs_in_table(
    values: np.ndarray, octets: np.ndarray, table: tuple[int, int], most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Near pairs that are equal in two given bytes, and in no two bytes that come before them."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
    for one, other in _pairs_of_equal_keys(octets[:, table[0]], octets[:, table[1]]):
        differing = values[one] ^ values[other]
        bits = np.bitwise_count(differing)
        near = bits <= most
        one, other, bits = one[near], other[near], bits[near]
        equal = differing[near].view(np.uint8).reshape(-1, _BYTES) == 0
        first = equal.argmax(axis=1)
        equal[np.arange(len(first)), first] = False
        here = (first == table[0]) & (equal.argmax(axis=1) == table[1])
        left, right = np.minimum(one, other)[here], np.maximum(one, other)[here]
        found.append((left, right, bits[here]))
    left, right, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return left, right, bits


def _pairs_of_equal_keys(
    high: np.ndarray, low: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of all pairs with equal keys: neighbours in sorted order, then next but one, ..."""
    keys = high.astype(np.uint16) << 8 | low
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    step, here = 1, np.arange(len(keys))
    while True:
        here = here[here + step < len(keys)]
        here = here[keys[here] == keys[here + step]]
        if not len(here):
            return
        yield order[here], order[here + step]
        step += 1
