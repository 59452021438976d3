"""Plain and nearly empty photos, whose phash does not tell them apart.

A phash records neither contrast nor fine detail: squares of two colours share one, and so do photos
of two small objects in the middle of a white background. The detail of a photo is the share of a
32 x 32 grayscale version that differs from its median by more than 8 of 255 levels. Measured:

- one colour, with noise of 20 levels, or with a gradient or vignette of 4: detail 0; of 8: 0.012.
- a circle, square, triangle, ring or bar in the middle. Up to 0.2 of the photo's side: detail 0.002
  to 0.062, and most pairs of phashes differ in 0 to 4 bits. Of 0.3 of the side: detail 0.055 or
  more, and phashes differ in 8 bits or more.
- 1,015 photos of groceries: 0.61 and more; 33 photos of Kaggle's catalogue: 0.088 and more.

So photos whose detail is below ``LEAST_DETAIL`` are plain. They are copies only
where their bytes are equal.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from PIL import Image

from .images import read_pixels

# Photos with less detail are plain.
LEAST_DETAIL = 0.05
_SIDE, _LEVELS = 32, 8


def detail_of(image: Image.Image) -> float:
    """The share of a photo that differs from its background, 0 to 1."""
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    levels = np.asarray(small, dtype=np.float64)
    return float((np.abs(levels - np.median(levels)) > _LEVELS).mean())


def clear_plain(
    frame: pd.DataFrame, decoded: np.ndarray, rows: pd.Index, resize: str
) -> pd.DataFrame:
    """An empty ``image_phash`` for plain photos, so that it ties them to no other photo.

    The margins of ``resize=pad`` would lower the detail and a crop would raise it, but the same
    photos must be copies whatever ``resize`` is. With these two, the files are read again.

    :param frame: columns ``image_phash`` and ``file``; its index holds the positions in
        ``decoded``.
    :param decoded: (M, H, W, 3) uint8, RGB.
    :param rows: the part of the index that is examined.
    :param resize: how the photos in ``decoded`` were made square.
    """

    files: pd.Series = frame["file"]

    def pixels(row: int) -> np.ndarray:
        if resize == "stretch":
            return decoded[row]
        return read_pixels(files[row], decoded.shape[1], "stretch")

    plain = [row for row in rows if detail_of(Image.fromarray(pixels(row))) < LEAST_DETAIL]
    return frame.assign(image_phash=frame["image_phash"].mask(frame.index.isin(plain), ""))
