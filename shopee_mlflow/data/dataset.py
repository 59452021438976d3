"""Load a dataset from its options: read, clean, decode and split the catalogue."""

from __future__ import annotations

import copy
import dataclasses
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from PIL import Image

from ..config import CrossValidateConfig, check_epoch, resolve
from ..data_config import SAMPLE, DataConfig
from ..errors import CatalogError
from . import splits
from .catalog_forms import Watch, load_catalog
from .cleaning import (
    drop_bad_images,
    drop_conflicting_contents,
    drop_excluded,
    drop_small_groups,
    drop_untrained_groups,
    fill_phashes,
    locate_files,
    select_rows,
)
from .cleaning_record import Cleaning
from .corrections import apply_corrections
from .fold_splits import assign_folds, check_group_sizes, copy_sets
from .left_out_photos import find_left_out
from .pixel_cache import Pixels, compute_phashes, hash_files, load_pixels
from .plain_photos import clear_plain


@dataclass(frozen=True)
class Dataset:
    """Clean photos with labels and splits.

    ``len(dataset)`` is the number of photos, and ``dataset[row]`` is the pair (photo, label) that
    torchvision's datasets return: an RGB image of Pillow, and the label's position in ``classes``.
    So ``torch.utils.data.Subset(dataset, dataset.rows("train"))`` is the train split.

    :ivar frame: one row per photo, index 0, 1, ...; columns image, label_group, image_phash (empty
        for plain photos that share theirs with others), content (digest of the file's bytes), file
        (Path), copy_set (int64, equal for copies), split, label (int64, position in ``classes``),
        and posting_id, title and label_name where the catalogue has them.
    :ivar decoded: (M, size, size, 3) uint8, RGB, all decoded photos, including those that were left
        out later; often memory-mapped.
    :ivar cache_rows: (N,) int64, the position in ``decoded`` of each row's photo.
    :ivar classes: label groups as text, sorted.
    :ivar cleaning: what each step left out.
    :ivar source: the table, or the folder with the class folders.
    :ivar digest: fingerprint of the manifest: photos, labels and splits.
    :ivar leaks: test photos with a copy in train, see the option ``near_bits``.
    :ivar config: the options with which it was loaded.
    :ivar left_out: photos of label groups that were left out, as
        :func:`~.left_out_photos.find_left_out` returns them; not decoded.
    """

    frame: pd.DataFrame
    decoded: np.ndarray
    cache_rows: np.ndarray
    classes: list[str]
    cleaning: Cleaning
    source: Path
    digest: str
    leaks: int
    config: DataConfig
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, row: SupportsIndex) -> tuple[Image.Image, int]:
        """Photo and label of a row, see the class.

        :raises IndexError: when there is no such row.
        """
        number = operator.index(row)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number}: the dataset has {len(self):,} photos")
        photo = Image.fromarray(self.decoded[self.cache_rows[number]])
        return photo, int(self.frame["label"].iloc[number])

    def __repr__(self) -> str:
        sizes = self.split_sizes()
        return (
            f"Dataset({'/'.join(self.source.parts[-2:])}: {len(self)} photos, "
            f"{len(self.classes)} label groups, {'/'.join(sizes)} "
            f"{'/'.join(map(str, sizes.values()))})"
        )

    def rows(self, split: str) -> np.ndarray:
        """Row numbers (int64) of ``train``, ``val`` or ``test``."""
        return np.flatnonzero(self.frame["split"] == split)

    def split_sizes(self) -> dict[str, int]:
        """Photos in train, val and test, or in each fold of a cross-validation."""
        counts = self.frame["split"].value_counts()
        known = [name for name in splits.SPLITS if name in counts]
        names = splits.SPLITS if known else sorted(counts.index, key=lambda n: (len(n), n))
        return {name: int(counts.get(name, 0)) for name in names}

    def photos(self, rows: np.ndarray) -> np.ndarray:
        """(n, size, size, 3) uint8, RGB: a copy of the photos in these rows."""
        return self.decoded[self.cache_rows[rows]]

    @property
    def pixels(self) -> np.ndarray:
        """(N, size, size, 3) uint8, RGB, one per row; a copy if a decoded photo was left out."""
        whole = len(self.cache_rows) == len(self.decoded)
        return self.decoded if whole else self.decoded[self.cache_rows]

    def manifest(self) -> pd.DataFrame:
        """File, label, split and content digest of every photo, sorted by file."""
        return splits.manifest(self.frame)

    def with_splits(self, split: pd.Series) -> Dataset:
        """The same photos with other splits; digest and leaks follow from them.

        :param split: for each row ``train``, ``val`` or ``test``, or the name of a fold.
        """
        frame = self.frame.assign(split=split)
        sets = copy_sets(frame)
        train = set(sets[frame["split"] == splits.TRAIN])
        return dataclasses.replace(
            self,
            frame=frame,
            digest=splits.digest(splits.manifest(frame)),
            leaks=int(sets[frame["split"] == splits.TEST].isin(train).sum()),
        )

    def with_resize(self, resize: str, watch: Watch | None = None) -> Dataset:
        """The same photos and splits, with the photos made square in another way.

        They are decoded again, or read from the cache folder.

        :param resize: ``stretch``, ``pad`` or ``crop``.
        :param watch: as in :func:`load_dataset`.
        :raises CatalogError: when photos have changed since the dataset was loaded, or cannot be
            read, or when the disk of the cache folder is too small.
        :raises ConfigError: when there is no such way.
        """
        config = dataclasses.replace(self.config, resize=resize)
        decoded = _decode(self.frame, config, watch or _unwatched)
        if decoded.bad:
            row, reason = next(iter(decoded.bad.items()))
            raise CatalogError(
                f"{len(decoded.bad):,} of {len(self):,} photos cannot be read again for "
                f"resize={resize}, such as {self.frame['file'].iloc[row]} ({reason}). Repeat the "
                "command when nothing changes them"
            )
        rows = np.arange(len(self.frame), dtype=np.int64)
        return dataclasses.replace(self, decoded=decoded.values, cache_rows=rows, config=config)

    def lines(self) -> list[str]:
        """A summary of cleaning and splits, as lines of text."""
        sizes = " / ".join(f"{count:,} {name}" for name, count in self.split_sizes().items())
        lines = [
            *self.cleaning.lines(),
            f"{len(self.frame):>7,} photos of {len(self.classes):,} label groups: {sizes}",
        ]
        if not len(self.rows(splits.TEST)):
            return lines
        return [
            *lines,
            f"{self.leaks:>7,} of {len(self.rows(splits.TEST)):,} test photos have a copy in train "
            f"({splits.copy_words(self.config.near_bits)})",
        ]


def load_dataset(
    config: DataConfig | str | Path = SAMPLE, watch: Watch | None = None, **options: Any
) -> Dataset:
    """Read, clean, decode and split a catalogue.

    ``load_dataset("shop", image_size=128)`` names the catalogue and its options;
    ``load_dataset(config)`` loads what a training with these options would load.

    :param config: the options, or the catalogue alone, see the option ``data``.
    :param watch: title of a long step -> callback(done, total) for its progress.
    :param options: options of :class:`~shopee_mlflow.config.DataConfig`; they override ``config``.
    :raises CatalogError: when the catalogue cannot be used.
    :raises ConfigError: for unknown options and values out of range.
    """
    config, watch = _with_options(config, options), watch or _unwatched
    catalog = load_catalog(config, watch)
    assert catalog.folder is not None
    cleaning = Cleaning(rows=len(catalog.rows), remarks=list(catalog.remarks))
    rows = apply_corrections(catalog.rows, config.corrections, cleaning)
    rows = drop_excluded(rows, config.exclude, cleaning)
    frame = select_rows(rows, config.largest_groups, cleaning)
    frame = locate_files(frame, catalog.folder, cleaning)
    # Errors that are certain are raised before decoding, which may take long.
    drop_small_groups(frame, config.min_group, copy.deepcopy(cleaning))
    check_epoch(config, len(frame))
    check_group_sizes(frame["label_group"], config)
    frame = frame.assign(content=hash_files(list(frame["file"]), config.workers))
    decoded = _decode(frame, config, watch)
    frame = drop_bad_images(frame, decoded.bad, config.bad_images, cleaning)
    frame = drop_conflicting_contents(frame, cleaning)
    frame = drop_small_groups(frame, config.min_group, cleaning)
    frame = drop_untrained_groups(frame, cleaning)
    frame = fill_phashes(
        frame,
        lambda paths: compute_phashes(paths, config.workers, watch("computing phashes")),
        cleaning,
    )
    frame = _tie_copies(frame, decoded.values, config, cleaning)
    frame["split"] = _splits(frame, config, cleaning)
    dataset = _assemble(frame, decoded.values, cleaning, catalog.source, config)
    left_out = find_left_out(rows, dataset.frame, catalog.folder, config)
    return dataclasses.replace(dataset, left_out=left_out)


def _decode(frame: pd.DataFrame, config: DataConfig, watch: Watch) -> Pixels:
    return load_pixels(
        list(frame["file"]),
        list(frame["content"]),
        config.image_size,
        resize=config.resize,
        cache=config.cache,
        workers=config.workers,
        progress=watch("decoding photos"),
    )


def _with_options(config: DataConfig | str | Path, options: dict[str, Any]) -> DataConfig:
    if not isinstance(config, DataConfig):
        return resolve(DataConfig, {"data": config, **options})
    return dataclasses.replace(config, **options)


def _tie_copies(
    frame: pd.DataFrame, decoded: np.ndarray, config: DataConfig, cleaning: Cleaning
) -> pd.DataFrame:
    """Add the column ``copy_set``, and clear the phashes of plain photos that it would tie.

    Only photos with equal or near phashes are examined, since reading all pixels takes long.
    """
    sets, phashes = splits.tie_copies(frame, config.near_bits), frame["image_phash"]
    shared = phashes.duplicated(keep=False) | sets.duplicated(keep=False)
    frame = clear_plain(frame, decoded, frame.index[shared], config.resize)
    if not frame["image_phash"].equals(phashes):
        sets = splits.tie_copies(frame, config.near_bits)
    cleaning.notes |= {
        name: count
        for name, count in (
            ("plain_photos", int((frame["image_phash"] == "").sum())),
            ("copies_of_other_groups", splits.count_mixed(frame, sets)),
        )
        if count
    }
    return frame.assign(copy_set=sets)


def _splits(frame: pd.DataFrame, config: DataConfig, cleaning: Cleaning) -> pd.Series:
    """The given splits, with what is missing drawn and leaks noted; else splits or folds drawn."""
    if isinstance(config, CrossValidateConfig):
        return assign_folds(frame, config)
    sets = frame["copy_set"]
    if "split" not in frame:
        return splits.assign_splits(frame, config.split, config.split_seed, sets)
    result = splits.fill_splits(frame, config.split, config.split_seed, sets)
    for name in splits.SPLITS:
        if not (frame["split"] == name).any():
            count = int((result == name).sum())
            cleaning.remarks.append(f"{name} is not given: {count:,} photos are drawn from train")
    whole = frame.assign(split=result)
    leaks = {
        "val_leaks": splits.leaks_between(whole, splits.VAL, splits.TRAIN, sets),
        "val_leaks_into_test": splits.leaks_between(whole, splits.TEST, splits.VAL, sets),
    }
    cleaning.notes |= leaks
    return result


def _unwatched(title: str) -> None:  # noqa: ARG001 - shows no progress
    return None


def _assemble(
    frame: pd.DataFrame, decoded: np.ndarray, cleaning: Cleaning, source: Path, config: DataConfig
) -> Dataset:
    cache_rows = frame.index.to_numpy(np.int64)
    classes = sorted(frame["label_group"].unique())
    frame = frame.reset_index(drop=True)
    frame["label"] = frame["label_group"].map({name: i for i, name in enumerate(classes)})
    return Dataset(
        frame=frame,
        decoded=decoded,
        cache_rows=cache_rows,
        classes=classes,
        cleaning=cleaning,
        source=source,
        digest=splits.digest(splits.manifest(frame)),
        leaks=splits.count_leaks(frame, frame["copy_set"]),
        config=config,
    )
