"""Split photos into train, val (to choose the best epoch) and test (for the one final test).

A split is stratified by label and depends only on the seed and the photos. ``leak_free`` keeps all
copies of a photo (equal bytes, or phashes that differ in at most ``near_bits`` bits, also through a
chain of copies) in the same split, whatever their labels. ``random`` ignores copies, as the
original experiment did.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from ..data_config import DataConfig
from ..errors import CatalogError
from .near_copies import PHASH, connected, near_phashes, telling

TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
MODES = ("leak_free", "random")
# Usual spellings of the splits, in lower case.
_SPELLINGS = {
    TRAIN: ("train", "training", "trn"),
    VAL: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing", "tst"),
}
_SPLIT_OF = {spelling: split for split, names in _SPELLINGS.items() for spelling in names}
MANIFEST_COLUMNS = ("image", "label_group", "split", "content")

_log = logging.getLogger(__name__)


def tie_copies(frame: pd.DataFrame, near_bits: int = DataConfig.near_bits) -> pd.Series:
    """Number the sets of photos that are copies of each other, also through a chain of copies.

    Photos are copies if their bytes are equal, or if their phashes differ in at most ``near_bits``
    bits. Phashes that do not tell photos apart tie nothing, see :mod:`.near_copies`. A warning is
    logged if the search for near copies reaches its limit.

    :param frame: columns ``content`` and ``image_phash``; empty values are ignored.
    :param near_bits: 0 to 6; 0 ties equal phashes only.
    :returns: for each row the number of its set, 0, 1, ... in order of first appearance.
    """
    phash = telling_phashes(frame["image_phash"])
    ends = [_equal(frame["content"]), _equal(phash)]
    if near_bits:
        ends.append(_near(phash, near_bits))
    left, right = (np.concatenate(parts) for parts in zip(*ends, strict=True))
    return pd.Series(connected(len(frame), left, right), index=frame.index)


def telling_phashes(phashes: pd.Series) -> pd.Series:
    """The phashes, empty where they do not tell photos apart."""
    distinct = [phash for phash in phashes.unique() if PHASH.fullmatch(phash)]
    useless = {phash for phash, keep in zip(distinct, telling(distinct), strict=True) if not keep}
    return phashes.mask(phashes.isin(useless), "")


def copy_words(near_bits: int) -> str:
    """What a copy is, in words."""
    near = f"equal bytes, or phashes up to {near_bits} bits apart"
    return near if near_bits else "equal bytes or phashes"


def count_mixed(frame: pd.DataFrame, sets: pd.Series) -> int:
    """How many photos have a copy under another label group."""
    return int((frame["label_group"].groupby(sets).transform("nunique") > 1).sum())


def assign_splits(
    frame: pd.DataFrame,
    mode: str = "leak_free",
    seed: int = 0,
    sets: pd.Series | None = None,
    drawn: Collection[str] = (VAL, TEST),
) -> pd.Series:
    """Assign each photo to train (80 %), val (10 %) or test (10 %).

    With ``random`` the sizes are exact: ceil(0.8 n) to train, ceil(0.1 n) to val and the rest to
    test (662, 83 and 82 of 827). With ``leak_free`` a set of copies is never divided, so val and
    test may be a few photos short, and with large sets the proportions of labels may differ. A set
    with several labels goes to a split only if that split still needs at least that many photos of
    each of these labels. Each label is in train.

    :param frame: columns ``image`` (unique), ``label_group``, ``content``, ``image_phash``, in
        any row order: the result for a photo does not depend on it.
    :param sets: the sets of copies, as :func:`tie_copies` numbers them; None finds them.
    :param drawn: the splits to draw. The photos of one that is not drawn stay in train; the other
        one is the same as if both were drawn, unless photos are short.
    :returns: for each row ``train``, ``val`` or ``test``.
    :raises CatalogError: when a split to draw would be empty.
    """
    if mode not in MODES:
        raise CatalogError(f"split={mode}: must be one of {', '.join(MODES)}")
    frame = frame.sort_values("image")
    if mode == "leak_free":
        found = tie_copies(frame) if sets is None else sets.loc[frame.index]
        number = pd.factorize(found)[0]
    else:
        number = np.arange(len(frame))
    labels, names = pd.factorize(frame["label_group"], sort=True)
    need = _quotas(np.bincount(labels, minlength=len(names)), len(frame))
    rng = np.random.default_rng(seed)
    result = np.empty(len(frame), dtype=np.int64)
    groups = in_random_order(number, rng)
    for rows in groups:
        result[rows] = split = _draw(need, labels[rows], rng)
        np.subtract.at(need[split], labels[rows], 1)
    wanted = [split for split, name in enumerate(SPLITS) if name in drawn]
    result[~np.isin(result, wanted)] = 0
    _fill_up(result, groups, labels, need.sum(axis=1), wanted)
    missing = [SPLITS[split] for split in wanted if split not in result]
    if missing:
        count, sets_of, random = len(groups), "", ""
        if count < len(frame):
            sets_of = f" in {count:,} {'set' if count == 1 else 'sets'} of copies"
            random = ", or use split=random if copies may be in different splits"
        raise CatalogError(
            f"{len(frame):,} photos{sets_of} are too few for a split: nothing is left for "
            f"{' and '.join(missing)}. Each label group keeps a photo in train. Add photos{random}."
        )
    return pd.Series(np.array(SPLITS)[result], index=frame.index, dtype="str")


def split_named(text: str) -> str:
    """The split that a text names in one of its usual spellings; "" if it names none."""
    return _SPLIT_OF.get(text.strip().lower(), "")


def parse_splits(values: pd.Series, column: str, *, certain: bool) -> pd.Series | None:
    """The splits that the values of a column name; "" for empty values.

    :param column: its name, for the message.
    :param certain: whether the column is known to hold splits; otherwise, None is returned if it
        holds none.
    :raises CatalogError: listing values that name no split.
    """
    distinct = {value: split_named(value) for value in values.unique()}
    unknown = sorted(value for value, split in distinct.items() if value and not split)
    if unknown and (certain or any(distinct.values())):
        raise CatalogError(
            f"column {column!r} holds {len(unknown):,} "
            f"{'value' if len(unknown) == 1 else 'values'} other than train, val and test: "
            f"{', '.join(map(repr, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}. Correct "
            "them, or ignore the column with split_column=none."
        )
    if unknown or not (certain or any(distinct.values())):
        return None
    return values.map(distinct).astype("str")


def fill_splits(
    frame: pd.DataFrame,
    mode: str = "leak_free",
    seed: int = 0,
    sets: pd.Series | None = None,
) -> pd.Series:
    """The splits in the column ``split``; val or test is drawn from train if it has no photo.

    A split that is drawn gets 10 % of the photos in train, as :func:`assign_splits` draws it.

    :raises CatalogError: when train has no photo, or too few to draw from.
    """
    given = frame["split"]
    missing = [split for split in (VAL, TEST) if not (given == split).any()]
    train = frame[given == TRAIN]
    if train.empty:
        raise CatalogError(
            "The given split has no photo in train. Correct it, or ignore it with "
            "split_column=none."
        )
    if not missing:
        return given
    drawn = assign_splits(train, mode, seed, sets, missing)
    return given.mask(drawn.isin(missing).reindex(frame.index, fill_value=False), drawn)


def leaks_between(
    frame: pd.DataFrame, split: str, other: str, sets: pd.Series | None = None
) -> int:
    """How many photos of one split have a copy (see :func:`tie_copies`) in another one."""
    sets = tie_copies(frame) if sets is None else sets
    return int(sets[frame["split"] == split].isin(set(sets[frame["split"] == other])).sum())


def count_leaks(frame: pd.DataFrame, sets: pd.Series | None = None) -> int:
    """How many test photos have a copy (see :func:`tie_copies`) among the training photos."""
    return leaks_between(frame, TEST, TRAIN, sets)


def has_copy_in_train(frame: pd.DataFrame, sets: pd.Series | None = None) -> pd.Series:
    """Whether a copy of each photo is in train; needs the manifest's columns and image_phash."""
    sets = tie_copies(frame) if sets is None else sets
    return sets.isin(set(sets[frame["split"] == TRAIN]))


def manifest(frame: pd.DataFrame) -> pd.DataFrame:
    """The split as a table: file, label, split and digest of the file's bytes."""
    return frame.loc[:, list(MANIFEST_COLUMNS)].sort_values("image").reset_index(drop=True)


def digest(table: pd.DataFrame) -> str:
    """Fingerprint of a table's rows, 16 hexadecimal digits; equal only for equal tables.

    Rows are hashed as JSON, so that the boundaries of fields are unambiguous.
    """
    sha = hashlib.sha256()
    for row in table.itertuples(index=False):
        sha.update(json.dumps([str(value) for value in row]).encode() + b"\n")
    return sha.hexdigest()[:16]


def _equal(values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Edges that connect the rows of equal values; empty values are ignored."""
    value = pd.factorize(values)[0]
    rows = np.flatnonzero(values.astype(bool))
    # Rows with equal values form a chain: each is linked to the next one.
    rows = rows[np.argsort(value[rows], kind="stable")]
    tied = value[rows[1:]] == value[rows[:-1]]
    return rows[:-1][tied], rows[1:][tied]


def _near(phashes: pd.Series, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges between the first rows of phashes that differ in 1 to ``most`` bits."""
    first = pd.Series(np.arange(len(phashes)), index=phashes.to_numpy())
    first = first[~first.index.duplicated()].sort_index()
    first = first[[bool(PHASH.fullmatch(phash)) for phash in first.index]]
    pairs = near_phashes(list(first.index), most)
    if not pairs.complete:
        _log.warning(
            "Very many phashes are alike. The search for near copies stopped after %s pairs, so "
            "some near copies may be in different splits.",
            f"{len(pairs):,}",
        )
    rows = first.to_numpy()
    return rows[pairs.left], rows[pairs.right]


def _quotas(sizes: np.ndarray, total: int) -> np.ndarray:
    """Number of photos wanted per split and label, (3, labels), with exact sums."""
    val = math.ceil(0.1 * total)
    test = total - math.ceil(0.8 * total) - val
    test_quota = _apportion(sizes, max(test, 1))
    # A label may give val all that it has not given to test, except one photo for train.
    val_quota = _apportion(sizes, val, limit=sizes - test_quota - 1)
    return np.stack([sizes - val_quota - test_quota, val_quota, test_quota])


def _apportion(sizes: np.ndarray, seats: int, limit: np.ndarray | None = None) -> np.ndarray:
    """Distribute ``seats`` among labels by size: largest remainders, ties by label size."""
    limit = sizes - 1 if limit is None else limit
    ideal = sizes * (seats / sizes.sum())
    quota = np.minimum(np.floor(ideal).astype(int), limit)
    order = sorted(
        range(len(sizes)), key=lambda label: (quota[label] - ideal[label], -sizes[label])
    )
    while quota.sum() < seats and (quota < limit).any():
        for label in order:
            if quota.sum() < seats and quota[label] < limit[label]:
                quota[label] += 1
    return quota


def in_random_order(sets: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The rows of each set of copies: large sets first, while they fit; equal sizes shuffled."""
    rows = np.argsort(sets, kind="stable")
    groups = np.split(rows, np.flatnonzero(np.diff(sets[rows])) + 1)
    shuffled = [groups[position] for position in rng.permutation(len(groups))]
    return sorted(shuffled, key=len, reverse=True)


def _draw(need: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> int:
    """Draw a split for a set of copies, weighted by what each split still needs of its labels.

    A set that fits nowhere goes to train. Val and test never exceed their quotas, and each label
    has a quota of at least one in train, so every label is in train.
    """
    if len(labels) == 1:
        weight = need[:, labels[0]].clip(0).astype(float)
    else:
        wanted, count = np.unique(labels, return_counts=True)
        fits = (need[:, wanted] >= count).all(axis=1)
        weight = np.where(fits, need[:, wanted].sum(axis=1), 0).astype(float)
    total = weight.sum()
    if total == 0:
        return 0
    # Equal to rng.choice, without its checks, which take most of its time.
    shares = (weight / total).cumsum()
    return int((shares / shares[-1]).searchsorted(rng.random(), side="right"))


def _fill_up(
    result: np.ndarray,
    groups: list[np.ndarray],
    labels: np.ndarray,
    short: np.ndarray,
    splits: Sequence[int],
) -> None:
    """Move sets of copies from train to ``splits`` that are short of photos, small sets first.

    Otherwise, sets larger than each label's quota would all be in train. No label loses its last
    photo in train, and a split gets more photos than it lacks only if it is empty.
    """
    train = np.bincount(labels[result == 0])
    held = np.bincount(result, minlength=len(SPLITS))
    for rows in reversed(groups):
        wanted, count = np.unique(labels[rows], return_counts=True)
        split = max(splits, key=lambda split: (held[split] == 0, short[split]))
        fits = held[split] == 0 or len(rows) <= short[split]
        if result[rows[0]] == 0 and fits and (train[wanted] > count).all():
            result[rows] = split
            train[wanted] -= count
            held[split] += len(rows)
            short[split] -= len(rows)
