"""Load a dataset from its options: read, clean, decode and split the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..config import AUTO, SAMPLE, DataConfig
from ..sample import sample_catalog
from . import splits
from .catalog_csv import find_catalog, read_catalog, unused_columns
from .cleaning import (
    Cleaning,
    column_remarks,
    drop_bad_images,
    drop_conflicting_contents,
    drop_small_groups,
    fill_phashes,
    locate_files,
    select_rows,
)
from .pixel_cache import Progress, compute_phashes, hash_files, load_pixels

Watch = Callable[[str], Progress | None]


@dataclass(frozen=True)
class Dataset:
    """Clean photos with labels and splits.

    :ivar frame: one row per photo, index 0, 1, ...; columns image, label_group, image_phash,
        content (digest of the file's bytes), file (Path), split, label (int64, position in
        ``classes``), and posting_id and title where the catalogue has them.
    :ivar decoded: (M, size, size, 3) uint8, RGB, all decoded photos, including those that were left
        out later; often memory-mapped.
    :ivar cache_rows: (N,) int64, the position in ``decoded`` of each row's photo.
    :ivar classes: label groups as text, sorted.
    :ivar cleaning: what each step left out.
    :ivar source: the CSV file.
    :ivar digest: fingerprint of the manifest: photos, labels and splits.
    :ivar leaks: test photos with an equal copy in train: the same bytes or phash.
    """

    frame: pd.DataFrame
    decoded: np.ndarray
    cache_rows: np.ndarray
    classes: list[str]
    cleaning: Cleaning
    source: Path
    digest: str
    leaks: int

    def rows(self, split: str) -> np.ndarray:
        """Row numbers (int64) of ``train``, ``val`` or ``test``."""
        return np.flatnonzero(self.frame["split"] == split)

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

    def lines(self) -> list[str]:
        """A summary of cleaning and splits, as lines of text."""
        sizes = " / ".join(f"{len(self.rows(name)):,} {name}" for name in splits.SPLITS)
        return [
            *self.cleaning.lines(),
            f"{len(self.frame):>7,} photos of {len(self.classes):,} label groups: {sizes}",
            f"{self.leaks:>7,} of {len(self.rows(splits.TEST)):,} test photos have an equal copy "
            "(the same file or phash) in train",
        ]


def load_dataset(config: DataConfig, watch: Watch | None = None) -> Dataset:
    """Read, clean, decode and split the catalogue that the options name.

    :param watch: title of a long step -> callback(done, total) for its progress.
    :raises CatalogError: when the catalogue cannot be used.
    """
    watch = watch or _unwatched
    csv, folder = locate_catalog(config, watch)
    rows = read_catalog(csv)
    cleaning = Cleaning(rows=len(rows), remarks=column_remarks(unused_columns(csv)))
    frame = select_rows(rows, config.largest_groups, cleaning)
    frame = locate_files(frame, folder, cleaning)
    files = list(frame["file"])
    frame = frame.assign(content=hash_files(files, config.workers))
    decoded = load_pixels(
        files,
        list(frame["content"]),
        config.image_size,
        resize=config.resize,
        cache=config.cache,
        workers=config.workers,
        progress=watch("decoding photos"),
    )
    frame = drop_bad_images(frame, decoded.bad, config.bad_images, cleaning)
    frame = drop_conflicting_contents(frame, cleaning)
    frame = drop_small_groups(frame, config.min_group, cleaning)
    frame = fill_phashes(
        frame,
        lambda paths: compute_phashes(paths, config.workers, watch("computing phashes")),
        cleaning,
    )
    frame["split"] = splits.assign_splits(frame, config.split, config.split_seed)
    return _assemble(frame, decoded.values, cleaning, csv)


def _unwatched(title: str) -> None:  # noqa: ARG001 - shows no progress
    return None


def locate_catalog(config: DataConfig, watch: Watch) -> tuple[Path, Path]:
    """The CSV and the folder of photos that the options name; the sample is drawn if needed."""
    if config.data == SAMPLE:
        folder = sample_catalog(config.sample_px, progress=watch("drawing the sample catalogue"))
        return find_catalog(str(folder))
    return find_catalog(config.data, None if config.images == AUTO else config.images)


def _assemble(frame: pd.DataFrame, decoded: np.ndarray, cleaning: Cleaning, csv: Path) -> Dataset:
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
        source=csv,
        digest=splits.digest(splits.manifest(frame)),
        leaks=splits.count_leaks(frame),
    )
