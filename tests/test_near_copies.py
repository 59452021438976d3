"""Near phashes: every pair is found once, and no other."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shopee_mlflow.data.near_copies import (
    MOST_PAIRS,
    NEAR_BITS,
    NearPairs,
    connected,
    near_pairs,
    parse_phashes,
)

_WORDS = st.integers(0, 2**64 - 1)


def by_brute_force(values: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    found = []
    for left in range(len(values)):
        for right in range(left + 1, len(values)):
            bits = (int(values[left]) ^ int(values[right])).bit_count()
            if bits <= most:
                found.append((left, right, bits))
    return found


def as_list(pairs: NearPairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.bits.tolist(), strict=True))


def ends_of(*edges: tuple[int, int]) -> np.ndarray:
    """(2, E): one end of each edge, and the other one."""
    return np.array(edges, dtype=np.int64).reshape(-1, 2).T


@st.composite
def neighbourhoods(draw: st.DrawFn) -> np.ndarray:
    """Values that lie close to a few centres, so that many pairs are near, some just not."""
    values = []
    for centre in draw(st.lists(_WORDS, min_size=1, max_size=3)):
        for flips in draw(st.lists(st.sets(st.integers(0, 63), max_size=5), max_size=12)):
            values.append(centre ^ sum(1 << bit for bit in flips))
    return np.array(list(dict.fromkeys(values)), dtype=np.uint64)


@settings(deadline=None)
@given(neighbourhoods(), st.integers(1, NEAR_BITS))
def test_pairs_are_those_of_brute_force(values: np.ndarray, most: int) -> None:
    assert as_list(near_pairs(values, most)) == by_brute_force(values, most)


def test_many_values_of_few_bits_are_those_of_brute_force() -> None:
    """Small numbers share bytes: every table holds long runs of equal keys."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2**63, (3, 600), dtype=np.uint64)
    values = np.unique(masks[0] & masks[1] & masks[2])
    expected = by_brute_force(values, NEAR_BITS)
    assert len(expected) > 20
    assert as_list(near_pairs(values)) == expected


def test_six_bits_in_six_bytes_are_near_and_seven_are_not() -> None:
    spread = [1 << (8 * byte) for byte in range(8)]
    values = np.array([0, sum(spread[:6]), sum(spread[:7])], dtype=np.uint64)
    assert as_list(near_pairs(values)) == [(0, 1, 6), (1, 2, 1)]


@pytest.mark.parametrize("count", [0, 1])
def test_none_or_one_have_no_pair(count: int) -> None:
    values = np.arange(count, dtype=np.uint64)
    assert as_list(near_pairs(values)) == []
    assert connected(count, *ends_of()).tolist() == list(range(count))


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="most=7: must be 1 to 6"):
        near_pairs(np.arange(2, dtype=np.uint64), 7)
    with pytest.raises(ValueError, match="values must differ"):
        near_pairs(np.zeros(2, dtype=np.uint64))


def test_chains_are_one_cluster_numbered_in_order() -> None:
    assert connected(7, *ends_of((4, 5), (1, 4), (3, 6))).tolist() == [0, 1, 2, 3, 1, 1, 3]
    assert connected(3, *ends_of()).tolist() == [0, 1, 2]


@settings(deadline=None)
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=40),
        )
    )
)
def test_clusters_are_those_of_a_walk(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, ends = case
    number = list(range(count))
    for _ in range(count):
        for left, right in ends:
            number[left] = number[right] = min(number[left], number[right])
    order = {first: index for index, first in enumerate(dict.fromkeys(number))}
    expected = [order[first] for first in number]
    assert connected(count, *ends_of(*ends)).tolist() == expected


def test_phashes_are_read_whole() -> None:
    assert parse_phashes(["ffffffffffffffff", "0000000000000001"]).tolist() == [2**64 - 1, 1]


def all_near(count: int) -> np.ndarray:
    """Values within 3 bits of zero, so each is near each other one."""
    flips = [1 << a | 1 << b | 1 << c for a in range(64) for b in range(a) for c in range(b)]
    return np.array(flips[:count], dtype=np.uint64)


def in_one_bucket(count: int) -> np.ndarray:
    """Values that share their two highest bytes, and differ in more than 6 bits from most."""
    return np.random.default_rng(0).choice(2**46, count, replace=False).astype(np.uint64)


@pytest.mark.fault
@pytest.mark.parametrize("values", [all_near(9_000), in_one_bucket(40_000)], ids=["near", "bucket"])
def test_crafted_values_take_bounded_memory(values: np.ndarray) -> None:
    """40 million pairs are near in one case, 800 million share two bytes in the other."""
    tracemalloc.start()
    try:
        pairs = near_pairs(values)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not pairs.complete
    assert len(pairs) <= MOST_PAIRS
    assert most < 200e6
    assert (np.bitwise_count(values[pairs.left] ^ values[pairs.right]) <= NEAR_BITS).all()
    assert (pairs.left < pairs.right).all()
    both = pairs.left * len(values) + pairs.right
    assert len(np.unique(both)) == len(both)


def test_a_limit_that_is_not_reached_leaves_all_pairs() -> None:
    values = all_near(100)
    assert len(near_pairs(values)) == 100 * 99 // 2
    assert near_pairs(values).complete
    assert near_pairs(values, limit=4950).complete
    cut = near_pairs(values, limit=4949)
    assert (len(cut), cut.complete) == (4949, False)
