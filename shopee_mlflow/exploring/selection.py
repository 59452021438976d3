"""The part of a catalogue that training keeps, and the leaks of its split.

The steps are those of :mod:`shopee_mlflow.data.dataset`, without decoding photos again.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..data.cleaning import (
    drop_bad_images,
    drop_conflicting_contents,
    drop_excluded,
    drop_small_groups,
    drop_untrained_groups,
    locate_files,
    select_rows,
)
from ..data.cleaning_record import Cleaning
from ..data.near_copies import NearPairs, connected, near_phashes
from ..data.plain_photos import LEAST_DETAIL
from ..data.splits import (
    MODES,
    TEST,
    TRAIN,
    VAL,
    assign_splits,
    fill_splits,
    telling_phashes,
    tie_copies,
)
from ..data_config import DataConfig
from ..errors import CatalogError
from .photo_survey import BAD, PhotoSurvey

# Seeds to try: fewer for large catalogues, where a split takes seconds.
_SEEDS, _SEEDS_OF_MANY, _MANY = 20, 3, 5_000
# Name of a split that the catalogue gives.
GIVEN = "given"
_COLUMNS = ("split", "seed", TRAIN, VAL, TEST, "copies", "near_copies")


@dataclass(frozen=True)
class Selection:
    """The photos that ``largest_groups``, ``min_group`` and ``bad_images`` keep, and their splits.

    :ivar chosen: one row per file, after the steps that need only the CSV.
    :ivar groups: number of label groups, of which largest_groups keeps ``kept``.
    :ivar cleaning: the counts of all steps.
    :ivar clusters: number of sets of equal or near phashes in ``chosen``; None without phashes.
    :ivar with_photos: whether the steps that need photos are among them.
    :ivar splits: as :func:`try_splits` returns it; empty where unknown.
    :ivar problem: why training is not possible; empty if it is.
    """

    chosen: pd.DataFrame
    groups: int
    kept: int
    cleaning: Cleaning
    clusters: int | None
    with_photos: bool
    splits: pd.DataFrame
    problem: str

    def facts(self) -> dict[str, int]:
        """Name -> number."""
        counts = self.cleaning.counts()
        facts = {
            "kept_groups": self.kept,
            "kept_rows": self._left_after("outside_largest_groups"),
            "kept_repeated_rows": counts["repeated_rows"],
            "kept_conflicting_rows": counts["conflicting_files"],
            "kept_files": len(self.chosen),
        }
        if self.clusters is not None:
            facts["kept_phashes"] = _distinct_phashes(self.chosen)
            facts["kept_near_clusters"] = self.clusters
        return facts

    def _left_after(self, name: str) -> int:
        return next(step.left for step in self.cleaning.steps if step.name == name)

    def group_table(self) -> pd.DataFrame:
        """The label groups kept, the largest first: label_group, files, phashes, title."""
        wanted = {"files": ("image", "size")}
        if self.clusters is not None:
            wanted["phashes"] = ("image_phash", "nunique")
        if "title" in self.chosen:
            wanted["a_title"] = ("title", "first")
        table = self.chosen.groupby("label_group").agg(**wanted).reset_index()
        return table.sort_values(["files", "label_group"], ascending=[False, True])

    def step_table(self) -> pd.DataFrame:
        """Every step of cleaning: step, removed, left, what was removed."""
        return pd.DataFrame(
            [
                {"step": s.name, "removed": s.removed, "left": s.left, "what": f"rows {s.words}"}
                for s in self.cleaning.steps
            ]
        )


def select_photos(
    rows: pd.DataFrame,
    config: DataConfig,
    photos: PhotoSurvey | None,
    before: Cleaning | None = None,
) -> Selection:
    """Apply the cleaning steps of training as far as they are known.

    If not every photo was opened, or too few photos are present to train on, only the steps that
    need only the CSV are applied.

    :param rows: with columns image and label_group, and clean phashes where there are any.
    :param before: the record of the steps that were applied to ``rows`` already.
    :raises CatalogError: when the steps for the CSV leave no row.
    """
    problem = ""
    for known in (photos, None) if photos is not None and photos.complete else (None,):
        cleaning = copy.deepcopy(before) if before else Cleaning(rows=len(rows))
        listed = drop_excluded(rows, config.exclude, cleaning)
        chosen = select_rows(listed, config.largest_groups, cleaning)
        splits = pd.DataFrame(columns=list(_COLUMNS))
        try:
            frame = _last_steps(chosen, config, known, cleaning)
            if "image_phash" in frame:
                splits = try_splits(frame, config.split_seed, config.split, config.near_bits)
            break
        except CatalogError as error:
            problem = problem or str(error)
    labelled = listed[(listed["image"] != "") & (listed["label_group"] != "")]
    groups = int(labelled["label_group"].nunique())
    return Selection(
        chosen=chosen,
        groups=groups,
        kept=min(config.largest_groups, groups) if config.largest_groups else groups,
        cleaning=cleaning,
        clusters=_count_clusters(chosen) if "image_phash" in chosen else None,
        with_photos=known is not None,
        splits=splits,
        problem=problem,
    )


def _last_steps(
    frame: pd.DataFrame, config: DataConfig, photos: PhotoSurvey | None, cleaning: Cleaning
) -> pd.DataFrame:
    """The cleaning steps after the selection of rows, in the order of training."""
    if photos is not None:
        frame = _with_contents(locate_files(frame, photos.folder, cleaning), photos)
        frame = drop_bad_images(frame, _reasons(frame, photos), config.bad_images, cleaning)
        frame = drop_conflicting_contents(frame, cleaning)
    frame = drop_small_groups(frame, config.min_group, cleaning)
    return drop_untrained_groups(frame, cleaning).reset_index(drop=True)


def try_splits(
    frame: pd.DataFrame,
    first_seed: int,
    fill_mode: str = "leak_free",
    near_bits: int = DataConfig.near_bits,
) -> pd.DataFrame:
    """Split photos with several seeds, and count the test photos with a copy in train.

    A split that the catalogue gives is called ``given``, and is the only one.

    :param frame: columns image, label_group, image_phash, content where it is known, and split
        where the catalogue gives it.
    :param fill_mode: how a split that is not given is drawn.
    :param near_bits: see the option.
    :returns: columns split, seed, train, val, test, copies (test photos with a copy in train, by
        ``near_bits``), near_copies (the same, or a phash up to 6 bits off).
    :raises CatalogError: when there are too few photos to split.
    """
    if "content" not in frame:
        frame = frame.assign(content="")
    frame = frame.assign(image_phash=telling_phashes(frame["image_phash"]))
    sets = tie_copies(frame, near_bits)
    code, count, pairs = _near(frame["image_phash"])
    rows = []
    given = "split" in frame
    for mode in (GIVEN,) if given else MODES:
        for seed in range(first_seed, first_seed + (1 if given else _seeds(len(frame)))):
            split = (
                fill_splits(frame, fill_mode, seed, sets)
                if given
                else assign_splits(frame, mode, seed, sets)
            )
            train, test = split == TRAIN, split == TEST
            copied = sets.isin(set(sets[train]))
            near = _has_near(train.to_numpy(), code, count, pairs)
            sizes = {name: int((split == name).sum()) for name in (TRAIN, VAL, TEST)}
            leaks = (int(copied[test].sum()), int((copied | near)[test].sum()))
            rows.append((mode, seed, *sizes.values(), *leaks))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _seeds(photos: int) -> int:
    return _SEEDS if photos <= _MANY else _SEEDS_OF_MANY


def _near(phashes: pd.Series) -> tuple[np.ndarray, int, NearPairs]:
    """The index of each row's phash, the number of indices, and pairs of near indices.

    Each row without a phash has its own index.
    """
    code, distinct = pd.factorize(phashes.where(phashes != "", None))
    pairs = near_phashes([str(phash) for phash in distinct])
    unknown = np.flatnonzero(code < 0)
    code[unknown] = len(distinct) + np.arange(len(unknown))
    return code, len(distinct) + len(unknown), pairs


def _has_near(train: np.ndarray, code: np.ndarray, count: int, pairs: NearPairs) -> np.ndarray:
    """Whether train has an equal phash, or a near one, for each row; bool."""
    in_train = np.zeros(count, dtype=bool)
    in_train[code[train]] = True
    near = in_train.copy()
    near[pairs.left[in_train[pairs.right]]] = True
    near[pairs.right[in_train[pairs.left]]] = True
    return near[code]


def _with_contents(frame: pd.DataFrame, photos: PhotoSurvey) -> pd.DataFrame:
    """Add the digests of the photos, and clear the phashes of plain ones."""
    table = photos.table.set_index("image")
    frame = frame.assign(content=frame["image"].map(table["content"]))
    if "image_phash" not in frame:
        return frame
    plain = frame["image"].map(table["detail"]) < LEAST_DETAIL
    return frame.assign(image_phash=frame["image_phash"].mask(plain, ""))


def _reasons(frame: pd.DataFrame, photos: PhotoSurvey) -> dict[int, str]:
    """Row -> the reason why its photo does not decode."""
    bad = photos.table[photos.table["state"] == BAD]
    reasons = dict(zip(bad["image"], bad["reason"], strict=True))
    named = zip(frame.index.tolist(), frame["image"], strict=True)
    return {row: reasons[name] for row, name in named if name in reasons}


def _count_clusters(frame: pd.DataFrame) -> int:
    """The number of phashes if near ones count as one."""
    _, count, pairs = _near(frame["image_phash"][frame["image_phash"] != ""])
    return len(np.unique(connected(count, pairs.left, pairs.right)))


def _distinct_phashes(frame: pd.DataFrame) -> int:
    return int(frame.loc[frame["image_phash"] != "", "image_phash"].nunique())
