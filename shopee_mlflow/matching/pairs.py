"""Pairs of postings that may show the same product: candidates, never all n x n.

A pair is stored in both directions, because a posting may be the best match of another one and not
the reverse. All arrays of a pair set have one entry for each direction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Candidate pairs of ``count`` postings, sorted by query and then by match.

    :ivar query: (P,) int64, row of the posting whose matches are sought.
    :ivar match: (P,) int64, row of the posting that may match it.
    """

    count: int
    query: np.ndarray
    match: np.ndarray

    @classmethod
    def of(cls, count: int, left: np.ndarray, right: np.ndarray) -> Pairs:
        """Both directions of pairs, each once; pairs of a posting with itself are left out."""
        left, right = left.astype(np.int64), right.astype(np.int64)
        keys = np.unique(np.concatenate([left * count + right, right * count + left]))
        query, match = keys // max(count, 1), keys % max(count, 1)
        apart = query != match
        return cls(count, query[apart], match[apart])

    def __len__(self) -> int:
        return len(self.query)

    @cached_property
    def reverse(self) -> np.ndarray:
        """(P,) int64, the position of each pair's other direction."""
        return np.lexsort((self.query, self.match))

    @cached_property
    def forward(self) -> np.ndarray:
        """(P / 2,) int64, the positions of one direction of each pair."""
        return np.flatnonzero(self.query < self.match)

    def both_ways(self, values: np.ndarray) -> np.ndarray:
        """Values of :attr:`forward` for all pairs."""
        result = np.empty(len(self), values.dtype)
        result[self.forward] = values
        result[self.reverse[self.forward]] = values
        return result

    def keep(self, kept: np.ndarray) -> tuple[Pairs, np.ndarray]:
        """The pairs of which at least one direction is kept, and their positions."""
        positions = np.flatnonzero(kept | kept[self.reverse])
        kept_pairs = replace(self, query=self.query[positions], match=self.match[positions])
        return kept_pairs, positions

    def ranks(self, scores: np.ndarray) -> np.ndarray:
        """(P,) int64, the rank of each match among those of its query; 0 is the best score."""
        order = self.best_first(scores)
        result = np.empty(len(self), np.int64)
        result[order] = np.arange(len(self)) - np.searchsorted(self.query, self.query)
        return result

    def best_first(self, scores: np.ndarray) -> np.ndarray:
        """Positions sorted by query, and by descending score within each query."""
        return np.lexsort((self.match, -scores, self.query))

    def totals(self, values: np.ndarray) -> np.ndarray:
        """(count,) float64, the sum of the values of each query's pairs."""
        return np.bincount(self.query, weights=values, minlength=self.count)

    def best(self, scores: np.ndarray) -> np.ndarray:
        """(count,) float32, the highest score of each query; 0 without candidates."""
        result = np.zeros(self.count, np.float32)
        np.maximum.at(result, self.query, scores.astype(np.float32))
        return result
