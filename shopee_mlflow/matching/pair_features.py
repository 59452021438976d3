"""Features of candidate pairs: similarities, shared words, and the neighbours of both postings."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, diags

from ..data.near_copies import parse_phashes
from ..data.splits import telling_phashes
from .pairs import Pairs
from .title_vectors import TitleVectors

# Pairs whose scalar products are computed at a time.
_CHUNK = 200_000
# A word is rare if it is in at most this many titles.
_RARE = 30
Features = dict[str, np.ndarray]


def similarities(
    titles: TitleVectors | None,
    phashes: pd.Series | None,
    pairs: Pairs,
    photos: np.ndarray | None = None,
) -> Features:
    """Similarities by name, each (P,) float32.

    Of titles: the cosines words, bigrams, characters, and covered, the share of the idf of the
    longer title's words that both have. Of phashes: bits, the number of bits that differ, 64
    where a phash is missing, and phash, which is 1 for equal and 0 for unrelated phashes. Photos:
    the cosine of embeddings.
    """
    left, right = pairs.query[pairs.forward], pairs.match[pairs.forward]
    found: Features = {}
    if titles is not None:
        for name in ("words", "bigrams", "characters"):
            vectors = getattr(titles, name)
            found[name] = row_products(vectors, vectors, left, right)
        shared, smaller, larger = _overlap(titles.counts, titles.idf, left, right)
        found["covered"] = shared / np.maximum(larger, 1e-6)
        found["contained"] = shared / np.maximum(smaller, 1e-6)
    if phashes is not None:
        found["bits"] = differing_bits(phashes, left, right)
        found["phash"] = np.maximum(0, 1 - found["bits"] / 32)
    if photos is not None:
        found["photos"] = _dense_products(photos, left, right)
    return {name: pairs.both_ways(value.astype(np.float32)) for name, value in found.items()}


def title_features(titles: TitleVectors, pairs: Pairs) -> Features:
    """What two titles share and what only one of them has: rare words, numbers, lengths."""
    left, right = pairs.query[pairs.forward], pairs.match[pairs.forward]
    digits = np.array([bool(re.search(r"\d", word)) for word in titles.vocabulary])
    frequency = np.asarray(titles.counts.sum(axis=0)).ravel()
    ones = np.ones(len(digits), np.float32)
    kinds = {
        "idf": (np.ones(len(digits), bool), titles.idf),
        "word": (np.ones(len(digits), bool), ones),
        "number": (digits, ones),
        "rare": (frequency <= _RARE, titles.idf),
    }
    found: Features = {}
    for name, (chosen, weights) in kinds.items():
        columns = np.flatnonzero(chosen)
        shared, smaller, larger = _overlap(titles.counts[:, columns], weights[columns], left, right)
        found[f"{name}_shared"] = shared
        found[f"{name}_missing_least"] = smaller - shared
        found[f"{name}_missing_most"] = larger - shared
    return {name: pairs.both_ways(value.astype(np.float32)) for name, value in found.items()}


def relative_features(name: str, scores: np.ndarray, pairs: Pairs) -> Features:
    """A score compared with the other candidates of both postings.

    The rank, the quotient by the best score, and the differences from the means of the best 5 and
    20; each for the query and, with the ending ``_back``, for the match.
    """
    ranks = pairs.ranks(scores)
    best = pairs.best(scores)
    found: Features = {f"{name}_rank": ranks.astype(np.float32)}
    found[f"{name}_of_best"] = scores / np.maximum(best[pairs.query], 1e-6)
    for top in (5, 20):
        mean = pairs.totals(np.where(ranks < top, scores, 0))[pairs.query] / top
        found[f"{name}_over_{top}"] = (scores - mean).astype(np.float32)
    back = {f"{key}_back": value[pairs.reverse] for key, value in found.items()}
    return {
        **found,
        **back,
        f"{name}_best": best[pairs.query],
        f"{name}_best_back": best[pairs.match],
    }


def neighbour_features(chances: np.ndarray, pairs: Pairs) -> Features:
    """Features from a first model's probabilities: of this pair, and of paths between both.

    :param chances: (P,) probability that a pair matches, by a model that was not trained on its
        query's label group.
    """
    shape = (pairs.count, pairs.count)
    graph = csr_matrix((chances, (pairs.query, pairs.match)), shape=shape)
    sure = graph.multiply(graph > 0.05).tocsr()
    both = (chances + chances[pairs.reverse]) / 2
    sizes = 1 + pairs.totals(chances)
    common = row_products(sure, sure, pairs.query, pairs.match)
    found = relative_features("chance", both, pairs)
    return {
        **found,
        "chance": chances,
        "chance_back": chances[pairs.reverse],
        "size": sizes[pairs.query],
        "size_back": sizes[pairs.match],
        "common": common,
        "common_share": common / (sizes[pairs.query] + sizes[pairs.match] - common - both),
    }


def row_products(
    one: csr_matrix, other: csr_matrix, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """(P,) float32, scalar products of row ``left[i]`` of one and row ``right[i]`` of the other."""
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(left), _CHUNK):
        part = slice(start, start + _CHUNK)
        products = one[left[part]].multiply(other[right[part]])
        parts.append(np.asarray(products.sum(axis=1), np.float32).ravel())
    return np.concatenate(parts)


def _dense_products(vectors: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(left), _CHUNK // 8):
        part = slice(start, start + _CHUNK // 8)
        parts.append(np.einsum("ij,ij->i", vectors[left[part]], vectors[right[part]]))
    return np.concatenate(parts)


def differing_bits(phashes: pd.Series, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(P,) float32, the bits in which two phashes differ; 64 where one is missing."""
    known = telling_phashes(phashes.reset_index(drop=True))
    present = (known != "").to_numpy()
    values = parse_phashes([text or "0" for text in known])
    bits = np.bitwise_count(values[left] ^ values[right]).astype(np.float32)
    return np.where(present[left] & present[right], bits, np.float32(64))


def _overlap(
    counts: csr_matrix, weights: np.ndarray, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Summed weights of words in both titles, in the title with less, in that with more."""
    weighted = (counts @ diags(weights)).tocsr()
    totals = np.asarray(weighted.sum(axis=1)).ravel()
    shared = row_products(weighted, counts, left, right)
    one, other = totals[left], totals[right]
    return shared, np.minimum(one, other), np.maximum(one, other)
