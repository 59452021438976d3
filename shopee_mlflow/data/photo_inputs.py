"""Photos as a caller in Python has them: a path, a folder, a table, a list, an image, an array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import CatalogError, ImageError
from ..options import expand_path
from .photo_forms import LONGEST_PATH, read_photo
from .photo_sources import Photo, find_photos


@dataclass(frozen=True)
class PhotoInputs:
    """Photos and how to name them.

    :ivar photos: each one a :class:`Photo`, or in any form that :func:`read_photo` takes.
    :ivar names: for each photo its path as given; None for bytes, arrays and unnamed images.
    :ivar index: the index of the answer.
    :ivar single: whether the caller gave one photo and not several.
    :ivar remark: files of a folder that are not photos, in words; empty if there are none.
    """

    photos: Sequence[Any]
    names: list[Any]
    index: pd.Index
    single: bool = False
    remark: str = ""

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """Photos with their positions."""
        return enumerate(self.photos)

    def decoder(
        self, size: int, resize: str, *, named: bool
    ) -> Callable[[tuple[int, Any]], np.ndarray]:
        """A function from a photo with its position to (size, size, 3) uint8.

        :param named: whether the ImageError that the function raises names the photo.
        """

        def decode(numbered: tuple[int, Any]) -> np.ndarray:
            position, photo = numbered
            try:
                if isinstance(photo, Photo):
                    return photo.read(size, resize)
                return read_photo(photo, size, resize)
            except ImageError as error:
                if not named:
                    raise
                name = self.names[position] or f"photo {position}"
                raise ImageError(f"{name}: {error}", transient=error.transient) from error

        return decode


def photos_in(photos: Any, images: str | Path | None = None) -> PhotoInputs:
    """Find the photos that a caller gives.

    :param photos: a path, folder, pattern or CSV, as the command ``predict`` takes it; an image of
        Pillow; an array, (H, W, 3) uint8, or several, (N, H, W, 3); bytes; a Series, a list or a
        DataFrame with a column ``image`` of any of these.
    :param images: the folder that paths in a list, a Series, a DataFrame or a CSV are relative to.
    :raises CatalogError: when a path does not exist, or a table has no column ``image``.
    """
    if isinstance(photos, (str, Path)):
        found = find_photos(str(photos), None if images is None else str(images))
        single = len(found.photos) == 1 and found.photos[0].file == expand_path(photos)
        names = [photo.name for photo in found.photos]
        remark = found.passed_over_in_words()
        return PhotoInputs(found.photos, names, pd.RangeIndex(len(names)), single, remark)
    if isinstance(photos, pd.DataFrame):
        if "image" not in photos:
            raise CatalogError(
                f"The table has no column image. Its columns: {', '.join(map(str, photos))}."
            )
        photos = photos["image"]
    if isinstance(photos, pd.Series):
        return _several(photos.tolist(), photos.index, images)
    if isinstance(photos, (list, tuple)) or _is_stack(photos):
        return _several(list(photos), pd.RangeIndex(len(photos)), images)
    return PhotoInputs([photos], [_name(photos)], pd.RangeIndex(1), single=True)


def _is_stack(photos: Any) -> bool:
    """Whether an array holds several photos, or their paths."""
    return isinstance(photos, np.ndarray) and (photos.ndim == 4 or photos.dtype.kind in "OUS")


def _several(photos: list[Any], index: pd.Index, images: str | Path | None) -> PhotoInputs:
    names = [_name(photo) for photo in photos]
    if images is not None:
        folder = expand_path(images)
        if not folder.is_dir():
            raise CatalogError(f"images={images}: no such folder of photos.")
        photos = [folder / p if isinstance(p, (str, Path)) else p for p in photos]
    return PhotoInputs(photos, names, index)


def _name(photo: Any) -> str | None:
    if isinstance(photo, (str, Path)):
        return str(photo) if len(str(photo)) < LONGEST_PATH else None
    return str(getattr(photo, "filename", "")) or None
