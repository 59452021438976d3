"""Convert decoded images of any Pillow mode to 8-bit sRGB."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from ..errors import ImageError

# Larger images are converted in strips, so that no second full-size copy is made.
LARGE_PIXELS = 16_000_000
_STRIP_PIXELS = 4_000_000

_WHITE = (255, 255, 255)
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")

# The largest value of each bit depth of cameras and scanners.
_DEPTHS = (255, 1023, 4095, 16383, 65535)
_SIGNED_DEPTHS = (255, 1023, 4095, 16383, 32767, 65535)
# The share of pixels that may be outside the range of values, such as hot pixels of a sensor.
_DEFECTS = 0.001
# In larger images, the range of values is found from an even sample of this many pixels.
_SAMPLED_PIXELS = 4_000_000

# Tags of TIFF 6.0, sections 8 and 19.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_MAX_SAMPLE, _SMAX_SAMPLE = 281, 341
_WHITE_IS_ZERO = 0
_UNSIGNED, _SIGNED = 1, 2

# Colour spaces of ICC profiles (ICC.1:2022, 7.2.6), and the Pillow modes of their values.
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# Much larger than any profile of a display or a printer.
_MAX_PROFILE_BYTES = 8 * 1024 * 1024
# A profile that changes no colour by more than this is treated as sRGB.
_SAME_COLOR = 3


def flatten(image: Image.Image, side: int = 0) -> Image.Image:
    """Convert a loaded image to 8 bits per channel without transparency, in its own colour space.

    Transparent pixels become white. Values of 16-bit, 32-bit and float images are scaled to
    0..255, see :func:`value_range`.

    :param side: reduce a large image during the conversion, with the same aspect ratio, so that its
        shorter side has at least twice this many pixels; 0 keeps the size.
    :returns: an image of mode L or RGB, or CMYK if it has a CMYK profile; :func:`to_srgb` completes
        the conversion.
    """
    convert = _deep_to_grey(image) if _is_deep(image) else _shallow_to_flat
    if image.width * image.height <= LARGE_PIXELS or _is_flat(image):
        return convert(image)
    factor = max(1, min(image.size) // (2 * side)) if side else 1
    size = (math.ceil(image.width / factor), math.ceil(image.height / factor))
    whole = Image.new(convert(image.crop((0, 0, 1, 1))).mode, size)
    for top, strip in _strips(image, factor):
        part = convert(strip)
        whole.paste(part.reduce(factor) if factor > 1 else part, (0, top // factor))
    return whole


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert a flattened image to sRGB with its ICC profile.

    Without a profile, or with a broken one or one for another mode, the values are assumed to be
    sRGB.

    :returns: an image of mode RGB.
    """
    found = _profile_transform(profile) if profile else None
    if found is None:
        return image.convert("RGB")
    mode, transform = found
    if image.mode != mode:
        image = image.convert("RGB")
    if image.mode != mode:
        return image
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only a conversion in place returns None
    return converted


def value_range(image: Image.Image) -> tuple[float, float]:
    """The values of black and white in a 16-bit, 32-bit or float image.

    The lowest and the highest 0.1 % of the pixels (at least one) are ignored and later clipped, so
    that a hot pixel does not darken the photo. The first rule that applies is used:

    - A TIFF file has SMaxSampleValue, MaxSampleValue or BitsPerSample below 16, and no value is
      above it: 0 to that value.
    - Integers of 0 to 65535: 0 to the maximum of the smallest depth of 8, 10, 12, 14 and 16 bits
      that holds all values. Cameras and scanners store 10 to 14 bits in 16-bit files without a tag.
      Signed integers may also have 15 bits.
    - Floats of 0 to 255: 0..1 if that range holds all values, otherwise 0..255.
    - Any other image: the smallest (for integers at most 0) and the largest finite value.
    """
    low, high = _extremes(image)
    stated = _stated_maximum(image)
    if stated and low >= 0 and high <= stated:
        return 0.0, stated
    if image.mode == "F":
        limits: tuple[int, ...] = (1, 255)
    else:
        signed = _first_number(_tags(image).get(_SAMPLE_FORMAT)) == _SIGNED
        limits = _SIGNED_DEPTHS if signed else _DEPTHS
    if low >= 0:
        for limit in limits:
            if high <= limit:
                return 0.0, float(limit)
    return (low if image.mode == "F" else min(low, 0.0)), high


def check_deep_colour(image: Image.Image) -> None:
    """Refuse 16-bit colour images whose values use 14 bits or fewer.

    Pillow keeps only the upper 8 of 16 bits, so such an image would be dark or black.

    :param image: the decoded image.
    :raises ImageError: for such an image.
    """
    colours = image.getbands()[
        : 4 if image.mode == "CMYK" else 3 if len(image.getbands()) > 2 else 1
    ]
    extremes = image.getextrema()
    bands = extremes if isinstance(extremes[0], tuple) else (extremes,)
    if max(high for _, high in bands[: len(colours)]) < 64:
        raise ImageError(
            "a 16-bit colour image whose values use 14 bits or fewer: it would be dark or black. "
            "Save it with 8 bits a channel"
        )


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _is_flat(image: Image.Image) -> bool:
    return image.mode in ("RGB", "L") and "transparency" not in image.info


def _shallow_to_flat(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        over_white = _over_white(image.convert("RGBA"))
        return over_white.convert("L") if image.mode in ("1", "L", "LA", "La") else over_white
    if image.mode == "1":
        return image.convert("L")
    if _is_flat(image):
        return image
    if image.mode == "CMYK":
        profile = image.info.get("icc_profile")
        found = _profile_transform(profile) if profile else None
        if found and found[0] == "CMYK":
            return image
    return image.convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", rgba.size, _WHITE)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _deep_to_grey(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """A function that converts parts of the image to mode L, all with the same range of values."""
    low, high = value_range(image)
    scale = 255.0 / (high - low) if high > low else 0.0
    inverted = _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    clear = image.info.get("transparency")
    unsigned = _is_unsigned(image)

    def convert(part: Image.Image) -> Image.Image:
        values = _values(part, unsigned)
        # Outliers of floats may overflow; they are clipped.
        with np.errstate(over="ignore", invalid="ignore"):
            grey = np.nan_to_num((values - low) * scale, nan=0.0, posinf=255.0, neginf=0.0)
        grey = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
        if inverted:
            grey = 255 - grey
        if isinstance(clear, int):
            grey[values == clear] = 255
        return Image.fromarray(grey)

    return convert


def _extremes(image: Image.Image) -> tuple[float, float]:
    """The smallest and the largest finite value, without the outermost 0.1 % of the pixels."""
    step = math.ceil(image.width * image.height / _SAMPLED_PIXELS)
    unsigned = _is_unsigned(image)
    parts = [_values(strip, unsigned).ravel()[::step] for _, strip in _strips(image)]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 0.0
    outliers = min((values.size - 1) // 2, max(1, int(values.size * _DEFECTS)))
    values.partition((outliers, values.size - 1 - outliers))
    return float(values[outliers]), float(values[-1 - outliers])


def _values(image: Image.Image, unsigned: bool) -> np.ndarray:
    values = np.asarray(image)
    if unsigned:
        values = values.view(np.uint32)
    return values.astype(np.float32)


def _tags(image: Image.Image) -> dict[int, object]:
    return getattr(image, "tag_v2", {})


def _is_unsigned(image: Image.Image) -> bool:
    """Pillow reads unsigned 32-bit values of TIFF files as if they were signed."""
    tags = _tags(image)
    return (
        image.mode == "I"
        and _first_number(tags.get(_BITS_PER_SAMPLE)) == 32
        and _first_number(tags.get(_SAMPLE_FORMAT, _UNSIGNED)) == _UNSIGNED
    )


def _stated_maximum(image: Image.Image) -> float:
    """The largest possible value according to a TIFF file's tags; 0 without such a tag."""
    tags = _tags(image)
    for tag in (_SMAX_SAMPLE, _MAX_SAMPLE):
        if value := _first_number(tags.get(tag)):
            return value
    bits = int(_first_number(tags.get(_BITS_PER_SAMPLE)))
    return float((1 << bits) - 1) if 8 < bits < 16 else 0.0


def _first_number(value: object) -> float:
    if isinstance(value, tuple) and value:
        value = value[0]
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ArithmeticError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _strips(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the content of horizontal strips.

    :param multiple: the heights of all strips but the last are multiples of this.
    """
    if image.width * image.height <= _STRIP_PIXELS:
        yield 0, image
        return
    height = multiple * max(1, _STRIP_PIXELS // (image.width * multiple))
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


@lru_cache(maxsize=16)
def _profile_transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """The mode of a profile and its conversion to sRGB.

    None if the profile cannot be used or hardly changes colours. As in image editors, black point
    compensation keeps black as black.
    """
    if len(profile) > _MAX_PROFILE_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILE_MODES[source.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if mode != "CMYK" and _keeps_colours(mode, transform) else (mode, transform)
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError, LookupError):
        return None


def _keeps_colours(mode: str, transform: ImageCms.ImageCmsTransform) -> bool:
    levels = np.linspace(0, 255, 6 if mode == "RGB" else 256).astype(np.uint8)
    if mode == "RGB":
        levels = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    probe = Image.fromarray(levels.reshape(1, -1) if mode == "L" else levels)
    expected = np.asarray(probe.convert("RGB"), dtype=int)
    moved = np.asarray(ImageCms.applyTransform(probe, transform), dtype=int) - expected
    return bool(np.abs(moved).max() <= _SAME_COLOR)
