"""What the figures drawn from the photos say, in sentences made from the same numbers."""

from __future__ import annotations

import pandas as pd

from ..data.near_copies import NEAR_BITS
from .grammar import counted, part_of, verb
from .photo_survey import BAD, LEFT_OUT, MISSING, OK, OUTSIDE, PhotoSurvey

_BRIGHT = 250
_LONG = 1.5
# Of red, green and blue, as torchvision's pretrained models are normalised; and what is near them.
_IMAGENET = (0.485, 0.456, 0.406)
_ALIKE = 0.05


def states_in_words(photos: PhotoSurvey) -> str:
    """How many of the catalogue's photos are there."""
    total = len(photos.table)
    seen = total - photos.count(MISSING) - photos.count(OUTSIDE)
    bad, good = photos.count(BAD), photos.count(OK)
    words = f"{seen:,} of {total:,} files {verb(seen, 'is', 'are')} there."
    if photos.count(LEFT_OUT):
        words += f" {bad + good:,} of them, chosen by chance, were looked at."
    if bad:
        return words + f" {bad:,} of {bad + good:,} {verb(bad, 'does', 'do')} not decode."
    return words + (" All of these decode." if good > 1 else "")


def phash_in_words(photos: PhotoSurvey) -> str:
    """Whether the catalogue's phashes are those of its photos."""
    bits = photos.good["phash_bits"].dropna().astype(int)
    equal, off = int((bits == 0).sum()), int((bits > NEAR_BITS).sum())
    words = f"{equal:,} of {len(bits):,} phashes {verb(equal, 'is that', 'are those')} of "
    words += verb(equal, "its photo.", "their photos.")
    if equal == len(bits):
        return words + " The column can be trusted."
    most, others = int(bits.max()), counted(len(bits) - equal, "other")
    how = verb(len(bits) - equal, "differs in", "differ in up to")
    words += f" {others} {how} {counted(most, 'bit')}."
    if off == 0:
        return words + " Such small differences come from another decoder or a re-encoded file."
    return words + (
        f" {off:,} {verb(off, 'differs', 'differ')} in more than {NEAR_BITS}: there the photo was "
        "changed, or the phash is of another photo."
    )


def sides_in_words(good: pd.DataFrame, image_size: int) -> str:
    """Photos that would be enlarged."""
    sides = good[["width", "height"]].min(axis=1).astype(int)
    small = int((sides < image_size).sum())
    low, high = int(sides.min()), int(sides.max())
    words = f"All shorter sides are {low:,} px. "
    if high > low:
        words = f"Shorter sides of {low:,} to {high:,} px, median {sides.median():,.0f}. "
    if small == 0:
        return words + f"None is below image_size={image_size}: no photo has to be enlarged."
    return words + (
        f"{part_of(small, len(good), 'photos')} {verb(small, 'is', 'are')} below "
        f"image_size={image_size} and would be enlarged."
    )


def aspect_in_words(good: pd.DataFrame) -> str:
    """How many photos are squeezed when they become squares."""
    square = int((good["width"] == good["height"]).sum())
    longer, shorter = good[["width", "height"]].max(axis=1), good[["width", "height"]].min(axis=1)
    ratio = longer / shorter
    words = f"{part_of(square, len(good), 'photos')} {verb(square, 'is a square', 'are squares')}."
    if square == len(good):
        return words + " Resizing squeezes none."
    long = int((ratio > _LONG).sum())
    words += " Training squeezes the others into squares; "
    if long == 0:
        return words + f"none is more than {_LONG} times as long as wide."
    return words + (
        f"{long:,} {verb(long, 'is', 'are')} more than {_LONG} times as long as wide, up to "
        f"{ratio.max():.1f} times."
    )


def bytes_in_words(good: pd.DataFrame) -> str:
    """The size of the files, together and each."""
    sizes = good["bytes"].astype(float)
    return (
        f"{counted(len(good), 'photo')}, {_size(sizes.sum())} together. The smallest file has "
        f"{_size(sizes.min())}, the largest {_size(sizes.max())}; half have less than "
        f"{_size(sizes.median())}."
    )


def _size(count: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.{0 if count >= 10 * unit else 1}f} {name}"
    return f"{count:.0f} bytes"


def levels_in_words(photos: PhotoSurvey) -> str:
    """Brightness, beside the mean of ImageNet with which pretrained networks were normalised."""
    means = [float(photos.good[name].mean()) / 255 for name in ("red", "green", "blue")]
    gap = sum(means) / 3 - sum(_IMAGENET) / 3
    bright = float(photos.levels[:, _BRIGHT:].sum() / 3)
    like = "as bright as" if abs(gap) < _ALIKE else "brighter than" if gap > 0 else "darker than"
    return (
        f"Means of red, green and blue {', '.join(f'{mean:.3f}' for mean in means)} of 1: on the "
        f"whole {like} ImageNet's {', '.join(map(str, _IMAGENET))}. {bright:.1%} of the values are "
        f"{_BRIGHT} or more: white, or nearly."
    )
