"""A photo file becomes pixels: RGB, right way up, uint8. The one path for training and serving."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import ImageError

# Only raster formats that shops use: no EPS or PDF, whose decoders run other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# Larger than any camera's photo; above it a small file could fill the memory.
MAX_PIXELS = 120_000_000

# Changes whenever the same file would give other pixels, so that stale caches are noticed.
RECIPE = "draft2x-bilinear-white-v2"

_WHITE = (255, 255, 255)
_FILTERS = threading.Lock()

# Pillow's decoders answer damaged files with these, besides OSError.
_DAMAGE = (
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

# EXIF tag 0x0112 (Exif 2.3, 4.6.4): how the stored rows and columns have to be turned.
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


def read_pixels(source: Path | bytes, size: int, resize: str = "stretch") -> np.ndarray:
    """Decode one photo and resize it to a square.

    JPEG files are decoded at a reduced scale, to no less than twice the size asked for; a
    bilinear filter with antialiasing does the rest.

    :param source: a file, or the file's bytes.
    :param size: side in pixels.
    :param resize: ``stretch`` changes the photo's proportions to a square; ``pad`` keeps them and
        centres the whole photo on white.
    :returns: (size, size, 3) uint8, RGB, EXIF rotation applied, transparency over white.
    :raises ImageError: with the reason, when it is no photo that can be decoded whole.
    """
    with open_photo(source) as image:
        sides = _resized_sides(*image.size, size, resize)
        image.draft(None, (2 * sides[0], 2 * sides[1]))
        small = _to_rgb(image).resize(sides, Image.Resampling.BILINEAR)
        # Asked for after decoding: Pillow turns TIFF files itself then, and takes the mark away.
        turn = _TURNS.get(_orientation(image))
    return _on_square(small if turn is None else small.transpose(turn), size)


def _resized_sides(width: int, height: int, size: int, resize: str) -> tuple[int, int]:
    """Width and height after resizing; ``ProductClassifier.preprocess`` computes the same."""
    if resize == "stretch":
        return size, size
    if resize != "pad":
        raise ImageError(f"resize={resize}: must be stretch or pad")
    longest = max(width, height)
    return max(1, round(width * size / longest)), max(1, round(height * size / longest))


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
    :returns: (H, W, 3) uint8, RGB, EXIF rotation applied, transparency over white.
    :raises ImageError: with the reason, when it is no photo that can be decoded whole.
    """
    with open_photo(source) as image:
        image.draft(None, (2 * size, 2 * size))
        small = upright_rgb(image)
        small.thumbnail((size, size), Image.Resampling.BILINEAR)
        return np.asarray(small, dtype=np.uint8)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened photo as a new 8-bit RGB image at its own size, EXIF rotation applied."""
    image.load()
    rgb = _to_rgb(image)
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def pixels_from_array(array: np.ndarray, size: int, resize: str = "stretch") -> np.ndarray:
    """Resize a decoded photo, (H, W, 3) or (H, W) uint8, by the same filter as a photo file.

    :raises ImageError: for another shape or type.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or not array.size:
        raise ImageError(f"an array must have the shape (H, W, 3) or (H, W), not {array.shape}")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise ImageError(f"an array must hold uint8 values 0..255, not {array.dtype}")
        array = array.astype(np.uint8)
    image = Image.fromarray(array).convert("RGB")
    sides = _resized_sides(*image.size, size, resize)
    return _on_square(image.resize(sides, Image.Resampling.BILINEAR), size)


@contextmanager
def open_photo(source: Path | bytes) -> Iterator[Image.Image]:
    """Open a photo for reading; whatever goes wrong inside is an ImageError with the reason."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with _without_warnings():
            image = Image.open(file, formats=FORMATS)
        with image:
            _check_size(image)
            if image.format == "TIFF":
                # Its tags, which Pillow warns about, are read again while it is decoded.
                with _without_warnings():
                    image.load()
            yield image
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"no {', '.join(FORMATS[:4])} image") from error
    except MemoryError as error:
        raise ImageError("not enough memory to decode it") from error
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except _DAMAGE as error:
        raise ImageError(f"damaged file ({type(error).__name__}: {error})") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What Pillow warns about is for us an error or, like damaged EXIF, of no matter.

    Warning filters belong to the whole process, hence the lock among decoding threads.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} px: more than {MAX_PIXELS:,} pixels")
    if width < 1 or height < 1:
        raise ImageError("it has no pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB: 16-bit values scaled, not clipped; what is transparent becomes white."""
    if image.mode.startswith(("I", "F")):
        return _from_deep(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _over_white(image.convert("RGBA"))
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    # 16-bit greys are the only deep photos that shops send; smaller ranges are 8-bit already.
    scale = 257.0 if image.mode.startswith("I") and values.max(initial=0) > 255 else 1.0
    grey = Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8))
    return grey.convert("RGB")


def _over_white(rgba: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", rgba.size, _WHITE)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) where there is none, or the EXIF block is damaged."""
    try:
        with _without_warnings():
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, *_DAMAGE):
        return 1
