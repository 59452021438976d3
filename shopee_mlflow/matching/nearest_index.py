"""Nearest photos of many by an approximate index, where exact products would take too long.

The index is an inverted file of faiss: vectors are assigned to cells, and a query is compared with
the vectors of the nearest cells alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import CatalogError

# More photos than this are searched by the index; up to it, search is exact.
EXACT_MOST = 100_000
# Longer vectors are shortened to this length by an uncentred PCA.
DIMENSIONS = 512
# Cells that are searched for each query, of twice the square root of the number of vectors.
_PROBES = 64
# Vectors by which the centre of a cell is found; faiss takes 39 to 256.
_TRAINED_EACH = 40
_CHUNK = 20_000
Take = Callable[[np.ndarray], np.ndarray]


def nearest_by_index(count: int, take: Take, nearest: int) -> tuple[np.ndarray, np.ndarray]:
    """About the ``nearest`` other vectors of largest scalar product: rows of both.

    :param take: rows -> (n, features) float32, of length 1. Called for some rows at a time, so
        that no array of all vectors is needed.
    :raises CatalogError: when faiss is not installed.
    """
    faiss = _faiss(count)
    drawn = np.random.default_rng(0).permutation(count)[: _TRAINED_EACH * int(2 * np.sqrt(count))]
    example = take(np.sort(drawn))
    features = min(example.shape[1], DIMENSIONS) // 4 * 4
    # Product quantization to half a byte for every 4 features.
    kind = f"IVF{int(2 * np.sqrt(count))},PQ{features // 4}x4fs"
    index = faiss.index_factory(features, kind, faiss.METRIC_INNER_PRODUCT)
    if features < example.shape[1]:
        index = faiss.IndexPreTransform(_main_directions(faiss, example, features), index)
    index.train(example)
    for rows in _parts(count):
        index.add(take(rows))
    faiss.extract_index_ivf(index).nprobe = _PROBES
    queries, matches = [], []
    for rows in _parts(count):
        match = index.search(take(rows), nearest + 1)[1].ravel()
        query = np.repeat(rows, nearest + 1)
        kept = (match >= 0) & (match != query)
        queries.append(query[kept])
        matches.append(match[kept])
    return np.concatenate(queries), np.concatenate(matches)


def _main_directions(faiss: Any, example: np.ndarray, length: int) -> Any:
    """The linear transform to ``length`` features that keeps most of the scalar products.

    It is a PCA without centring. Scalar products of centred vectors, as of faiss's own PCA, have
    another order. The features are rotated at random, since the quantizer expects that each has
    the same variance.
    """
    directions = np.linalg.eigh(example.T @ example)[1][:, -length:]
    random = np.random.default_rng(0).standard_normal((length, length))
    rows = (directions @ np.linalg.qr(random)[0]).T.astype(np.float32)
    transform = faiss.LinearTransform(example.shape[1], length, False)
    faiss.copy_array_to_vector(np.ascontiguousarray(rows).ravel(), transform.A)
    transform.is_trained = True
    return transform


def _parts(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _CHUNK):
        yield np.arange(start, min(start + _CHUNK, count))


def _faiss(count: int) -> Any:
    if find_spec("faiss") is None:
        raise CatalogError(
            f"{count:,} photos are more than the {EXACT_MOST:,} that are compared exactly. More "
            "need the package faiss-cpu: install it with pip install faiss-cpu, or with this "
            "project's extra: pip install -e '.[index]'."
        )
    import faiss

    return faiss
