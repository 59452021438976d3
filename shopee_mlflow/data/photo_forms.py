"""Read a photo in any form: path, bytes, base64 text, data: URL, Pillow image or array."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pandas as pd
from PIL import Image

from ..errors import ImageError
from .images import (
    DAMAGE,
    image_from_array,
    open_photo,
    pixels_from_array,
    pixels_from_image,
    read_pixels,
)

LONGEST_PATH = 4096
_DATA_URL = "data:"
# In characters of base64 text; shorter text is a word or a path.
_SHORTEST_PHOTO = 40
# The other alphabet of base64 (RFC 4648, section 5).
_URL_SAFE = str.maketrans("-_", "+/")


def read_photo(photo: Any, size: int, resize: str = "stretch", *, paths: bool = True) -> np.ndarray:
    """Read one photo as (size, size, 3) uint8.

    :param photo: a file path, the file's bytes, its base64 text, a ``data:`` URL, an image
        of Pillow, an array (H, W, 3) uint8, or a list of one text or of one file's bytes.
    :param paths: whether to read paths. If not, text never causes access to a file, and the error
        does not reveal whether a file exists.
    :raises ImageError: when it is none of these, or does not decode.
    """
    photo = _only_text(photo)
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return read_pixels(bytes(photo), size, resize)
    if isinstance(photo, (np.ndarray, list)):
        try:
            array = np.asarray(photo)
        except ValueError:
            raise ImageError("an array must have rows of equal length") from None
        return pixels_from_array(array, size, resize)
    if isinstance(photo, Image.Image):
        return pixels_from_image(photo, size, resize)
    if isinstance(photo, Path) and paths:
        return read_pixels(photo, size, resize)
    if not isinstance(photo, str) or not photo:
        raise ImageError(
            f"an image is {'a path, ' * paths}bytes, base64 text, a data: URL, "
            f"an image of Pillow or an array, not {photo!r:.60}"
        )
    if paths and _is_file(photo):
        return read_pixels(Path(photo), size, resize)
    return _read_text(photo, size, resize, "no such file, and " if paths else "")


def is_missing(photo: Any) -> bool:
    """Whether a cell of a table holds no photo."""
    # Arrays, images and paths are no scalars; comparing an array gives an array.
    return bool(pd.api.types.is_scalar(photo)) and bool(pd.isna(photo) or photo == "")


def phash_of_photo(photo: Any, paths: bool = True) -> str:
    """The phash of a photo in any form that :func:`read_photo` takes; "" if it does not decode."""
    from .pixel_cache import phash_of

    photo = _only_text(photo)
    try:
        if isinstance(photo, (np.ndarray, list)):
            return phash_of(image_from_array(np.asarray(photo)))
        if isinstance(photo, Image.Image):
            return phash_of(photo)
        source: Any = bytes(photo) if isinstance(photo, (bytearray, memoryview)) else photo
        if isinstance(photo, str):
            source = Path(photo) if paths and _is_file(photo) else _bytes_of(photo)
        with open_photo(source) as image:
            return phash_of(image)
    except (ImageError, OSError, *DAMAGE):
        return ""


def _only_text(photo: Any) -> Any:
    """The text or bytes in a list or array of one; a server sends a column as [["..."], ...]."""
    inner = photo
    while isinstance(inner, (list, np.ndarray)):
        if getattr(inner, "ndim", 1) == 0 or len(inner) != 1:
            return photo
        inner = inner[0]
    return inner if isinstance(inner, (str, bytes)) else photo


def _read_text(photo: str, size: int, resize: str, reason: str) -> np.ndarray:
    try:
        content = _bytes_of(photo)
    except ValueError:
        raise ImageError(f"{reason}no base64 text or data: URL: {photo:.60}") from None
    try:
        return read_pixels(content, size, resize)
    except ImageError as error:
        raise ImageError(f"{reason}as base64 text: {error} ({photo:.60})") from error


def _bytes_of(text: str) -> bytes:
    """The bytes of base64 text, or of a data: URL (RFC 2397).

    :raises ValueError: for any other text.
    """
    text = text.strip()
    if text[: len(_DATA_URL)].lower() == _DATA_URL:
        about, comma, text = text.partition(",")
        if not comma:
            raise ValueError("a data: URL without a comma")
        content = unquote_to_bytes(text)
        if not re.search(r";\s*base64\s*$", about, re.IGNORECASE):
            return content
        text = content.decode("ascii")
    # The command base64 puts line breaks into its output; other programs leave out the padding.
    text = "".join(text.split())
    if len(text) >= _SHORTEST_PHOTO:
        text = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
        if "/" not in text and "+" not in text:
            text = text.translate(_URL_SAFE)
    return base64.b64decode(text, validate=True)


def _is_file(text: str) -> bool:
    """Whether text is the path of a file; False for longer text, such as an encoded photo."""
    try:
        return len(text) < LONGEST_PATH and Path(text).is_file()
    except OSError:
        # A component of the path is longer than any file name.
        return False
