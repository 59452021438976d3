"""Photos of label groups that cleaning leaves out: strangers, which a model should not name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..data_config import DataConfig
from .label_checks import lookalike_labels
from .photo_files import find_photo_files
from .pixel_cache import hash_files, load_pixels

# So many are enough to measure a share of 5 %, and take a few seconds to decode.
MOST_PHOTOS = 500


@dataclass(frozen=True)
class Strangers:
    """Decoded photos of label groups that a model does not have.

    :ivar frame: columns image and label_group, index 0, 1, ...
    :ivar pixels: (N, size, size, 3) uint8, RGB, in the same order.
    """

    frame: pd.DataFrame
    pixels: np.ndarray


def find_left_out(
    rows: pd.DataFrame, kept: pd.DataFrame, folder: Path, config: DataConfig
) -> pd.DataFrame:
    """The photos of label groups without any kept photo, at most :data:`MOST_PHOTOS` of them.

    Left out are files that are kept under another label, and labels that look like a kept one.

    :param rows: the rows of the catalogue; ``kept``: the photos of the dataset.
    :returns: columns image, label_group and file (Path), sorted by image, index 0, 1, ...
    """
    classes = set(kept["label_group"])
    alike = {
        label
        for labels in lookalike_labels(set(rows["label_group"]))
        for label in labels
        if classes.intersection(labels)
    }
    # A file stays out if any of its rows names a kept group.
    named = rows["label_group"].isin(classes | alike | {""})
    other = ~named & ~rows["image"].isin(set(rows["image"][named])) & (rows["image"] != "")
    found = rows.loc[other, ["image", "label_group"]].sort_values(["image", "label_group"])
    found = found.drop_duplicates("image")
    if len(found) > MOST_PHOTOS:
        found = found.sample(MOST_PHOTOS, random_state=config.split_seed).sort_values("image")
    files = find_photo_files(folder, list(found["image"])).found()
    found = found.assign(file=pd.Series(files, index=found.index, dtype=object))
    return found[found["file"].notna()].reset_index(drop=True)


def decode_left_out(
    left_out: pd.DataFrame, config: DataConfig, contents: Collection[str]
) -> Strangers:
    """Decode left-out photos through the pixel cache.

    :param left_out: as :func:`find_left_out` returns it.
    :param contents: digests of the kept photos; a stranger of equal bytes is left out, and so are
        its copies.
    """
    files = list(left_out["file"])
    digests = hash_files(files, config.workers)
    decoded = load_pixels(
        files,
        digests,
        config.image_size,
        resize=config.resize,
        cache=config.cache,
        workers=config.workers,
    )
    content = pd.Series(digests, dtype=str)
    good = ~content.isin(set(contents)) & ~content.duplicated() & ~content.index.isin(decoded.bad)
    rows = np.flatnonzero(good)
    frame = left_out.loc[rows, ["image", "label_group"]].reset_index(drop=True)
    return Strangers(frame, decoded.values[rows])
