"""Label groups split in two: those that choose a matcher, and those that score it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..data.near_copies import connected
from ..data.splits import tie_copies
from ..errors import CatalogError

VALIDATION, TEST, UNLABELLED = "validation", "test", ""
_LEAST_SETS = 6


def tied_groups(postings: pd.DataFrame, near_bits: int) -> np.ndarray:
    """Number the sets of postings that must stay on one side of a split.

    Tied are postings of a label group, copies and near copies of a photo by their phashes, and
    postings with equal titles; also through a chain of them.

    :param postings: columns label_group, title and image_phash; empty values tie nothing.
    :returns: (N,) int64.
    """
    count = len(postings)
    rows = np.arange(count)
    left, right = [], []
    copies = tie_copies(
        pd.DataFrame({"content": "", "image_phash": postings["image_phash"].to_numpy()}), near_bits
    )
    for values in (postings["label_group"], postings["title"], copies):
        values = pd.Series(values.to_numpy())
        first = pd.Series(rows).groupby(values.to_numpy()).transform("first").to_numpy()
        known = (values != "").to_numpy()
        left.append(rows[known])
        right.append(first[known])
    return connected(count, np.concatenate(left), np.concatenate(right))


def split_groups(
    postings: pd.DataFrame, sets: np.ndarray, validation_share: float, seed: int
) -> np.ndarray:
    """Assign labelled postings to validation or test, a whole set at a time.

    :param sets: see :func:`tied_groups`.
    :returns: (N,) text: validation, test, or empty for postings without a label.
    :raises CatalogError: when there are too few sets.
    """
    labelled = (postings["label_group"] != "").to_numpy()
    numbers = np.unique(sets[labelled])
    if len(numbers) < _LEAST_SETS:
        raise CatalogError(
            f"The label groups form {len(numbers):,} sets that share no copy or title; choosing "
            f"and scoring a matcher needs at least {_LEAST_SETS}. Add label groups, or leave out "
            "the column of labels to match without a score."
        )
    drawn = np.random.default_rng(seed).permutation(numbers)
    sizes = np.bincount(sets[labelled], minlength=sets.max() + 1)[drawn]
    before = np.cumsum(sizes) - sizes / 2
    chosen = drawn[before < validation_share * sizes.sum()]
    if not len(chosen) or len(chosen) == len(drawn):
        chosen = drawn[: max(1, min(len(drawn) - 1, round(validation_share * len(drawn))))]
    side = np.where(np.isin(sets, chosen), VALIDATION, TEST)
    return np.where(labelled, side, UNLABELLED)


def draw_folds(sets: np.ndarray, chosen: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """(N,) int64, the fold of each chosen posting, and -1 for the others.

    Postings of a set are in one fold. The folds have equally many sets, so that none is empty.

    :param chosen: (N,) bool, whole sets.
    """
    known, number = np.unique(sets[chosen], return_inverse=True)
    result = np.full(len(sets), -1)
    result[chosen] = np.random.default_rng(seed).permutation(len(known))[number] % folds
    return result
