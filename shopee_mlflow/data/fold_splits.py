"""Folds for cross-validation: each photo is in one fold, and copies are in the same one.

Folds are stratified by label and depend only on the seed and the photos, as splits do.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..config import CrossValidateConfig, TuneConfig
from ..data_config import DataConfig
from ..errors import CatalogError, ConfigError
from . import splits

_MOST_NAMED = 5


def check_group_sizes(groups: pd.Series, config: DataConfig) -> None:
    """Check before decoding that each label group has a photo for each fold.

    :param groups: the label group of each photo.
    :raises ConfigError: naming label groups that are too small.
    """
    if not isinstance(config, CrossValidateConfig):
        return
    sizes = groups.value_counts()
    small = sizes[(sizes >= config.min_group) & (sizes < config.folds)]
    if len(small):
        # min_group counts photos, so it leaves out exactly the groups that are named here.
        lower = f"lower folds to {small.min()}, or " if small.min() > 1 else ""
        raise ConfigError(
            [
                f"folds={config.folds}: {_named(small, 'photos')}, so some folds would test none "
                f"of them; {lower}leave such groups out with min_group={config.folds}"
            ]
        )


def copy_sets(frame: pd.DataFrame) -> pd.Series:
    """The number of the set of copies of each photo, see :func:`.splits.tie_copies`."""
    return frame["copy_set"] if "copy_set" in frame else splits.tie_copies(frame)


def fold_names(folds: int) -> list[str]:
    """The names of the folds in the column ``split``: ``fold1``, ``fold2``, ..."""
    return [f"fold{number}" for number in range(1, folds + 1)]


def fold_split(frame: pd.DataFrame, fold: str, config: CrossValidateConfig) -> pd.Series:
    """The split of one fold: its photos are test, a tenth of the others are val, the rest is train.

    :param frame: as for :func:`assign_folds`, with the names of folds in the column ``split``.
    :returns: for each row ``train``, ``val`` or ``test``.
    :raises CatalogError: when the other folds have no photo for val that train can spare.
    """
    given = pd.Series(np.where(frame["split"] == fold, splits.TEST, splits.TRAIN), frame.index)
    sets = _sets(frame, config)
    try:
        return splits.fill_splits(frame.assign(split=given), "leak_free", config.split_seed, sets)
    except CatalogError as error:
        raise CatalogError(f"folds={config.folds}: without {fold}, {error}") from error


def validation_folds(frame: pd.DataFrame, config: TuneConfig) -> list[pd.Series]:
    """For each fold a split, in which val is that fold of all photos outside test.

    :param frame: as for :func:`assign_folds`, with a column ``split``.
    :raises CatalogError: as :func:`assign_folds` does.
    """
    test = frame["split"] == splits.TEST
    folds = assign_folds(frame[~test], config).reindex(frame.index, fill_value=splits.TEST)
    return [
        folds.map({splits.TEST: splits.TEST, name: splits.VAL}).fillna(splits.TRAIN)
        for name in fold_names(config.folds)
    ]


def assign_folds(frame: pd.DataFrame, config: CrossValidateConfig | TuneConfig) -> pd.Series:
    """Assign each photo to a fold, ``fold1``, ``fold2``, ...

    Sets of copies are assigned whole, the largest first, each to the fold that lacks most photos of
    its labels. With split=random, copies are ignored.

    :param frame: columns ``image`` (unique), ``label_group`` and those that tie copies, in any row
        order: the result for a photo does not depend on it.
    :raises CatalogError: when a label group has fewer sets of copies than there are folds, or when
        a fold would hold all photos of a label group.
    """
    frame = frame.sort_values("image")
    sets, folds = pd.factorize(_sets(frame, config))[0], config.folds
    labels, names = pd.factorize(frame["label_group"], sort=True)
    _check_sets(frame["label_group"], sets, folds)
    rng = np.random.default_rng(config.split_seed)
    lacking = np.tile(np.bincount(labels) / folds, (folds, 1))
    result = np.empty(len(frame), dtype=np.int64)
    for rows in splits.in_random_order(sets, rng):
        result[rows] = fold = _emptiest(lacking, labels[rows], rng)
        np.subtract.at(lacking[fold], labels[rows], 1)
    held = pd.Series(result).groupby(labels).nunique()
    if (held < 2).any():
        label = names[int(held.index[held < 2][0])]
        raise CatalogError(
            f"folds={folds}: copies tie all photos of label group {label} into one fold, so no "
            f"photo of it would be left to train on. {_REMEDY}"
        )
    names_of_folds = np.array(fold_names(folds))
    return pd.Series(names_of_folds[result], index=frame.index, dtype="str").sort_index()


_REMEDY = (
    "Remove copies, leave the group out with the option exclude, or use split=random if copies may "
    "be in different folds."
)


def _sets(frame: pd.DataFrame, config: DataConfig) -> pd.Series:
    if config.split == "random":
        return pd.Series(range(len(frame)), frame.index)
    return copy_sets(frame)


def _emptiest(lacking: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> int:
    """The fold that lacks most photos of these labels; then of all labels; then at random.

    :param lacking: (folds, labels) float, photos that each fold still lacks.
    """
    wanted, count = np.unique(labels, return_counts=True)
    left = lacking[:, wanted] - count
    keys = (rng.random(len(lacking)), lacking.sum(axis=1), left.sum(axis=1), left.min(axis=1))
    return int(np.lexsort(np.round(keys, 9))[-1])


def _check_sets(groups: pd.Series, sets: np.ndarray, folds: int) -> None:
    """:raises CatalogError: naming label groups with fewer sets of copies than folds."""
    found = pd.Series(sets, groups.index).groupby(groups).nunique()
    few = found[found < folds]
    if len(few):
        at_most = f"Lower folds to {few.min()}. " if few.min() > 1 else ""
        raise CatalogError(
            f"folds={folds}: {_named(few, 'different photos (copies count once)')}. Copies stay in "
            f"one fold, so some folds would test no photo of it. {at_most}{_REMEDY}"
        )


def _named(sizes: pd.Series, what: str) -> str:
    sizes = sizes.sort_values(kind="stable")
    named = ", ".join(f"{name} {size}" for name, size in sizes.head(_MOST_NAMED).items())
    if len(sizes) == 1:
        return f"label group {sizes.index[0]} has only {sizes.iloc[0]} {what}"
    more = ", ..." if len(sizes) > _MOST_NAMED else ""
    return f"{len(sizes):,} label groups have too few {what} ({named}{more})"
