"""Supported image formats, and limits for decoders that are slow or open nested files."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.util import find_spec
from typing import Any

from PIL import Image, ImageFile

from ..errors import ImageError

# Raster formats of single images. Not supported are documents whose decoders run other programs
# (EPS, PDF, WMF), documents with layers (PSD), scientific data, and textures and animations of
# games. TGA is last, since Pillow cannot recognize it by a signature.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "PCX", "ICO", "CUR", "ICNS", "DIB", "DDS", "SGI", "SUN", "QOI", "XBM", "XPM", "MSP"),
    "TGA",
)

# The most pixels for decoders that Pillow implements in Python. At its limit, each takes about ten
# seconds.
_SLOW_PIXELS = {
    "ppm": 500_000,
    "ppm_plain": 1_000_000,
    "dds_rgb": 2_000_000,
    "qoi": 8_000_000,
    "xpm": 8_000_000,
}
_OTHER_SLOW_PIXELS = 8_000_000
# Icons may hold PNG files. The largest that operating systems use have 1024 x 1024 pixels.
_ICON_STARTS = (b"\0\0\1\0", b"\0\0\2\0", b"icns")
_ICON_SIDE = 4096
_PNG_HEADER = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_JPEG2000_SIZE = b"\xff\x4f\xff\x51"


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that the installed Pillow reads, and HEIF if pillow-heif is installed."""
    Image.init()
    formats = tuple(name for name in FORMATS if name in Image.OPEN)
    if find_spec("pillow_heif") is None:
        return formats
    heif: Any = importlib.import_module("pillow_heif")
    heif.register_heif_opener()
    return (*formats, "HEIF")


def is_icon(head: bytes) -> bool:
    """Whether a file starts like an icon, which may hold PNG and JPEG 2000 files."""
    return head.startswith(_ICON_STARTS)


def check_icon(content: bytes) -> None:
    """Refuse an icon that holds a large image, which Pillow would decode when opening the file.

    :raises ImageError: above 4096 pixels a side.
    """
    for start, skip in ((_PNG_HEADER, 0), (_JPEG2000_SIZE, 4)):
        at = content.find(start)
        while at >= 0:
            sides = at + len(start) + skip
            for side in (content[sides : sides + 4], content[sides + 4 : sides + 8]):
                if int.from_bytes(side, "big") > _ICON_SIDE:
                    raise ImageError(f"an icon with more than {_ICON_SIDE} pixels a side")
            at = content.find(start, at + 1)


def check_slow_decoder(image: Image.Image) -> None:
    """Refuse an opened image that a decoder written in Python would take minutes to decode.

    :raises ImageError: when it has more pixels than the limit of its decoder.
    """
    for tile in getattr(image, "tile", []):
        decoder = Image.DECODERS.get(tile[0])
        if not (isinstance(decoder, type) and issubclass(decoder, ImageFile.PyDecoder)):
            continue
        limit = _SLOW_PIXELS.get(tile[0], _OTHER_SLOW_PIXELS)
        if image.width * image.height > limit:
            raise ImageError(
                f"{image.width} x {image.height} px is too large for this kind of {image.format} "
                f"file, which is slow to decode: the limit is {limit:,} pixels. Save it as PNG"
            )
