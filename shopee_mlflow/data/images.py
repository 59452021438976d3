"""Decode photo files: 8-bit sRGB pixels, upright. Training and serving share these functions."""

from __future__ import annotations

import io
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ..errors import ImageError
from .image_checks import (
    JPEG_START,
    MAX_PIXELS,
    PNG_START,
    check_end,
    check_scans,
    check_size,
    has_deep_colour,
    unreadable_reason,
    without_metadata,
)
from .image_colours import LARGE_PIXELS, check_deep_colour, flatten, to_srgb
from .image_formats import check_icon, check_slow_decoder, is_icon, readable_formats

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".tga", ".pcx", ".ico", ".dib", ".dds", ".sgi", ".qoi"),
)

# Part of the cache key. Change it whenever the same file would be decoded to other pixels.
RECIPE = "draft2x-bilinear-white-srgb-v5"

_HEAD_BYTES = 4096
_MOST_SCANNED_BYTES = 256 * 1024 * 1024
_FILTERS = threading.Lock()
# Large images are decoded one at a time, to limit memory.
_LARGE = threading.RLock()
_FULL_SIZE = "full_size"

# Pillow's decoders raise these for damaged files, besides OSError.
DAMAGE = (
    ValueError,
    SyntaxError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
    struct.error,
)

# EXIF tag 0x0112 (Exif 2.3, 4.6.4): how the stored rows and columns are to be rotated.
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def read_pixels(source: Path | bytes, size: int, resize: str = "stretch") -> np.ndarray:
    """Decode one photo and resize it to a square.

    JPEG files are decoded at a reduced scale, to at least twice the requested size, and then
    resized by a bilinear filter with antialiasing. Colours are converted to sRGB by the photo's
    ICC profile. Greys of more than 8 bits are scaled to 0..255
    (:func:`~shopee_mlflow.data.image_colours.value_range`).

    :param source: a file, or the file's bytes.
    :param size: side in pixels.
    :param resize: ``stretch`` changes the photo's proportions to a square; ``pad`` keeps them and
        centres the whole photo on white; ``crop`` keeps them and takes the centre.
    :returns: (size, size, 3) uint8, sRGB, EXIF rotation applied, transparency over white.
    :raises ImageError: with the reason, when it cannot be decoded completely.
    """
    with open_photo(source, size) as image:
        width, height = image.info.get(_FULL_SIZE, image.size)
        sides = _resized_sides(width, height, size, resize)
        whole = _to_rgb(image, size)
        # Read after decoding: Pillow rotates TIFF files itself then, and removes the tag.
        turn = _TURNS.get(_orientation(image))
        if resize == "crop":
            # Turned first, so that an odd margin is on the same side as in an upright file.
            whole, turn = _centre(whole if turn is None else whole.transpose(turn)), None
        small = whole.resize(sides, Image.Resampling.BILINEAR)
        small = to_srgb(small, image.info.get("icc_profile"))
    return _on_square(small if turn is None else small.transpose(turn), size)


def _resized_sides(width: int, height: int, size: int, resize: str) -> tuple[int, int]:
    """Width and height after resizing; ``ProductClassifier.preprocess`` computes the same."""
    if resize in ("stretch", "crop"):
        return size, size
    if resize != "pad":
        raise ImageError(f"resize={resize}: must be stretch, pad or crop")
    longest = max(width, height)
    return max(1, round(width * size / longest)), max(1, round(height * size / longest))


def _centre(image: Image.Image) -> Image.Image:
    """The largest centred square; the larger part of an odd margin is on the right or below."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _on_square(image: Image.Image, size: int) -> np.ndarray:
    """(size, size, 3) uint8: the image, centred on white where it is smaller than the square."""
    if image.size == (size, size):
        return np.asarray(image, dtype=np.uint8)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square, dtype=np.uint8)


def read_thumbnail(source: Path | bytes, size: int) -> np.ndarray:
    """Decode one photo and scale it down to fit into a square, its sides in proportion.

    :param size: longest side in pixels; smaller photos keep their size.
    :returns: (H, W, 3) uint8, sRGB, EXIF rotation applied, transparency over white.
    :raises ImageError: with the reason, when it cannot be decoded completely.
    """
    with open_photo(source, size) as image:
        small = upright_rgb(image)
        small.thumbnail((size, size), Image.Resampling.BILINEAR)
        return np.asarray(small, dtype=np.uint8)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened photo to a new 8-bit sRGB image, EXIF rotation applied."""
    rgb = to_srgb(_to_rgb(image), image.info.get("icc_profile"))
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened photo as stored in the file, EXIF rotation applied."""
    width, height = image.info.get(_FULL_SIZE, image.size)
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def pixels_from_array(array: np.ndarray, size: int, resize: str = "stretch") -> np.ndarray:
    """Resize a decoded photo, (H, W, 3) or (H, W) uint8, by the same filter as a photo file.

    :raises ImageError: for another shape or type.
    """
    image = image_from_array(array)
    sides = _resized_sides(*image.size, size, resize)
    image = _centre(image) if resize == "crop" else image
    return _on_square(image.resize(sides, Image.Resampling.BILINEAR), size)


def image_from_array(array: np.ndarray) -> Image.Image:
    """A decoded photo, (H, W, 3) or (H, W) uint8, as an RGB image.

    :raises ImageError: for another shape or type.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise ImageError(f"an array must have the shape (H, W, 3) or (H, W), not {array.shape}")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise ImageError(f"an array must hold uint8 values 0..255, not {array.dtype}")
        array = array.astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def pixels_from_image(image: Image.Image, size: int, resize: str = "stretch") -> np.ndarray:
    """Resize an image of Pillow, of any mode, by the same filter as a photo file.

    :raises ImageError: with the reason, when it cannot be decoded.
    """
    try:
        rgb = upright_rgb(image)
    except (OSError, *DAMAGE) as error:
        raise ImageError(f"damaged image ({type(error).__name__}: {error})") from error
    return pixels_from_array(np.asarray(rgb), size, resize)


@contextmanager
def open_photo(source: Path | bytes, side: int = 0) -> Iterator[Image.Image]:
    """Open a photo for reading; any failure inside becomes an ImageError with the reason.

    :param side: decode JPEG files at a reduced scale, to no less than twice this many pixels a
        side; 0 reduces only those that are too large for the memory.
    :raises ImageError: its ``transient`` is True if the same bytes may decode later.
    """
    head = b""
    try:
        with _open_stream(source) as stream:
            head = stream.read(_HEAD_BYTES)
            stream.seek(0)
            with _open_image(stream, head) as image:
                check_size(image)
                check_slow_decoder(image)
                _scale_down(image, stream, side)
                # Large images are decoded one at a time.
                with _LARGE if _is_large(image) else nullcontext():
                    yield _decoded(image, stream, head)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: more than {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        reason, transient = unreadable_reason(head, readable_formats())
        raise ImageError(reason, transient=transient) from error
    except MemoryError as error:
        raise ImageError("not enough memory to decode it", transient=True) from error
    except OSError as error:
        # Decoders raise OSError without errno, for damaged files and for lack of memory.
        transient = error.errno is not None or "memory" in str(error)
        raise ImageError(error.strerror or str(error), transient=transient) from error
    except DAMAGE as error:
        raise ImageError(f"damaged file ({type(error).__name__}: {error})") from error


@contextmanager
def _open_stream(source: Path | bytes) -> Iterator[IO[bytes]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    mode = source.stat().st_mode
    # Opening a pipe would wait for a writer.
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError("not a regular file")
    with source.open("rb") as stream:
        yield stream


def _open_image(stream: IO[bytes], head: bytes) -> Image.Image:
    if is_icon(head):
        check_icon(stream.read(_MOST_SCANNED_BYTES))
        stream.seek(0)
    with _without_warnings():
        try:
            return Image.open(stream, formats=readable_formats())
        except Image.DecompressionBombError:
            if not head.startswith(JPEG_START):
                raise
            # Pillow's limit is meant for decoding at full size.
            stream.seek(0)
            return JpegImageFile(stream)
        except (ValueError, Image.UnidentifiedImageError):
            if not head.startswith(PNG_START):
                raise
            return _open_without_metadata(stream)


def _open_without_metadata(stream: IO[bytes]) -> Image.Image:
    """Open a PNG file whose text chunks are damaged or exceed Pillow's limit."""
    stream.seek(0)
    return Image.open(io.BytesIO(without_metadata(stream.read())), formats=("PNG",))


def _scale_down(image: Image.Image, stream: IO[bytes], side: int) -> None:
    """Let a JPEG file be decoded at a reduced scale; refuse a dangerous or incomplete one."""
    if not isinstance(image, JpegImageFile):
        return
    width, height = image.size
    position = stream.tell()
    stream.seek(0)
    content = stream.read(_MOST_SCANNED_BYTES)
    check_scans(content, width * height)
    check_end(content)
    stream.seek(position)
    scale = max(1, min(width, height) // (2 * side)) if side else 1
    while width * height > MAX_PIXELS * scale**2:
        scale *= 2
    image.info[_FULL_SIZE] = (width, height)
    image.draft(None, (max(1, width // scale), max(1, height // scale)))


def _is_large(image: Image.Image) -> bool:
    # Decoders of progressive JPEG files hold the whole image, whatever the scale.
    size = image.info.get(_FULL_SIZE) if image.info.get("progressive") else None
    width, height = size or image.size
    return bool(width * height > LARGE_PIXELS)


def _decoded(image: Image.Image, stream: IO[bytes], head: bytes) -> Image.Image:
    """The image. TIFF and PNG are decoded here, since decoding reads metadata or warns."""
    if image.format == "TIFF":
        with _without_warnings():
            image.load()
    elif image.format == "PNG":
        try:
            image.load()
        except ValueError:
            with _without_warnings():
                image = _open_without_metadata(stream)
            image.load()
    if has_deep_colour(image, head):
        check_deep_colour(image)
    return image


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence Pillow's warnings: real damage is an error, and damaged EXIF data is harmless.

    Warning filters apply to the whole process, hence the lock between decoding threads.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _to_rgb(image: Image.Image, side: int = 0) -> Image.Image:
    """Convert to 8 bits per channel, transparency over white; call :func:`to_srgb` next."""
    image.load()
    return flatten(image, side)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where there is none, or the EXIF block is damaged."""
    try:
        with _without_warnings():
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, *DAMAGE):
        return 1
