"""Folds: each photo in one, copies together, labels spread evenly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shopee_mlflow.config import CrossValidateConfig
from shopee_mlflow.data.fold_splits import (
    assign_folds,
    check_group_sizes,
    copy_sets,
    fold_names,
    fold_split,
)
from shopee_mlflow.data.splits import assign_splits
from shopee_mlflow.errors import CatalogError, ConfigError


def photos(sizes: dict[str, int], copies: dict[int, str] | None = None) -> pd.DataFrame:
    """A frame of photos; ``copies``: row -> content that it shares with others."""
    labels = [label for label, size in sizes.items() for _ in range(size)]
    content = [(copies or {}).get(row, f"c{row}") for row in range(len(labels))]
    return pd.DataFrame(
        {
            "image": [f"{row:04}.jpg" for row in range(len(labels))],
            "label_group": labels,
            "content": content,
            "image_phash": "",
        }
    )


def config(folds: int = 5, **options: Any) -> CrossValidateConfig:
    return CrossValidateConfig(folds=folds, **options)


def test_folds_are_equally_large_and_stratified() -> None:
    frame = photos({"a": 23, "b": 11, "c": 5, "d": 12})
    folds = assign_folds(frame, config())
    assert list(folds.index) == list(frame.index)
    assert sorted(folds.value_counts()) == [10, 10, 10, 10, 11]
    counts = pd.crosstab(frame["label_group"], folds)
    assert list(counts.columns) == fold_names(5)
    assert int((counts.max(axis=1) - counts.min(axis=1)).max()) == 1


def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows() -> None:
    frame = photos({"a": 23, "b": 11, "c": 5})
    folds = assign_folds(frame, config())
    shuffled = frame.sample(frac=1, random_state=3)
    pd.testing.assert_series_equal(assign_folds(shuffled, config()), folds)
    assert not assign_folds(frame, config(split_seed=1)).equals(folds)


@pytest.mark.parametrize("fold", fold_names(3))
def test_copies_are_in_one_fold_and_never_in_two_splits(fold: str) -> None:
    rng = np.random.default_rng(0)
    copies = {int(row): f"set{row % 13}" for row in rng.permutation(80)[:50]}
    frame = photos({"a": 40, "b": 25, "c": 15}, copies)
    folds = assign_folds(frame, config(3))
    sets = copy_sets(frame)
    assert (folds.groupby(sets).nunique() == 1).all()
    split = fold_split(frame.assign(split=folds), fold, config(3))
    assert (split.groupby(sets).nunique() == 1).all()
    assert (split == "test").equals(folds == fold)
    assert set(split) == {"train", "val", "test"}
    assert set(frame["label_group"][split == "train"]) == {"a", "b", "c"}


def test_val_is_a_tenth_of_the_other_folds() -> None:
    frame = photos({"a": 60, "b": 40})
    frame["split"] = assign_folds(frame, config())
    sizes = fold_split(frame, "fold2", config()).value_counts()
    assert sizes.to_dict() == {"train": 72, "test": 20, "val": 8}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("sizes", "folds"),
    [((5, 5), 5), ((3, 3), 3), ((3, 4), 2), ((3, 3), 2), ((3, 3, 3), 2), ((6, 5, 4), 3)],
)
def test_a_tiny_catalogue_has_all_groups_in_train_and_a_val_in_each_fold(
    sizes: tuple[int, ...], folds: int, seed: int
) -> None:
    frame = photos({f"g{number}": size for number, size in enumerate(sizes)})
    options = config(folds, split_seed=seed)
    frame["split"] = assign_folds(frame, options)
    for fold in fold_names(folds):
        split = fold_split(frame, fold, options)
        assert set(frame["label_group"][split == "train"]) == set(frame["label_group"])
        assert (split == "val").sum() == math.ceil((split != "test").sum() / 10)


def test_val_of_a_fold_is_the_same_as_beside_a_test_split() -> None:
    frame = photos({"a": 60, "b": 40})
    frame["split"] = assign_folds(frame, config())
    others = frame[frame["split"] != "fold1"].drop(columns="split")
    drawn = assign_splits(others)
    split = fold_split(frame, "fold1", config()).loc[others.index]
    assert (split == "val").equals(drawn == "val")


@pytest.mark.fault
def test_a_fold_without_a_photo_for_val_is_an_error_that_names_it() -> None:
    frame = photos({"a": 2, "b": 2})
    frame["split"] = assign_folds(frame, config(2))
    with pytest.raises(
        CatalogError,
        match="folds=2: without fold1, 2 photos are too few for a split: "
        r"nothing is left for val\. Each label group keeps a photo in train\. Add photos\.$",
    ):
        fold_split(frame, "fold1", config(2))


def test_sets_that_are_known_are_used() -> None:
    frame = photos({"a": 12, "b": 12})
    frame["copy_set"] = [row // 2 for row in range(24)]
    folds = assign_folds(frame, config(4))
    assert (folds.groupby(frame["copy_set"]).nunique() == 1).all()


def test_copies_may_be_in_different_folds_with_split_random() -> None:
    frame = photos({"a": 10, "b": 10}, dict.fromkeys(range(10), "same"))
    counts = pd.crosstab(frame["label_group"], assign_folds(frame, config(split="random")))
    assert (counts == 2).all().all()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("copies", "folds", "message"),
    [
        (
            dict.fromkeys(range(4), "same"),
            5,
            r"folds=5: label group a has only 3 different photos \(copies count once\).*"
            "Lower folds to 3",
        ),
        (dict.fromkeys(range(6), "same"), 2, "folds=2: label group a has only 1 different"),
    ],
)
def test_folds_that_copies_make_impossible_are_an_error(
    copies: dict[int, str], folds: int, message: str
) -> None:
    with pytest.raises(CatalogError, match=message):
        assign_folds(photos({"a": 6, "b": 9}, copies), config(folds))


def test_a_set_that_ties_all_of_a_group_into_one_fold_is_an_error() -> None:
    # Sets join a photo of a and one of b; those of b fill the other fold first.
    frame = photos({"a": 2, "b": 2}, {0: "x", 1: "y", 2: "x", 3: "y"})
    assert assign_folds(frame, config(2)).nunique() == 2


@pytest.mark.fault
def test_more_folds_than_photos_of_a_group_is_an_error_before_decoding() -> None:
    groups = photos({"a": 4, "b": 9, "c": 2})["label_group"]
    with pytest.raises(
        ConfigError,
        match="folds=5: label group a has only 4 photos, .*lower folds to 4, or leave such groups "
        "out with min_group=5",
    ):
        check_group_sizes(groups, config())
    check_group_sizes(groups, config(4))
    check_group_sizes(groups, config(min_group=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds=1: must be a whole number at least 2"),
        ({"nproc": 2}, "nproc=2: a cross-validation runs in one process"),
        ({"register": True}, "register=true: needs refit=true"),
        ({"test_csv": "t.csv", "data": "shop"}, "test_csv=t.csv: cross-validation tests every"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CrossValidateConfig(**options)
