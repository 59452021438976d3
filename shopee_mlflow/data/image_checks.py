"""Checks of photo files before decoding: size, scans, metadata, and other kinds of files."""

from __future__ import annotations

import re
import struct
import zlib

from PIL import Image, ImageFile

from ..errors import ImageError

# More than any camera has. Without a limit, decoding a small file could fill the memory.
MAX_PIXELS = 120_000_000
# These decoders hold several copies of the image; the limits are above 50-megapixel cameras.
_LOWER_LIMITS = {"WEBP": 52_000_000, "JPEG2000": 52_000_000, "AVIF": 64_000_000, "HEIF": 64_000_000}
# JPEG files without progressive scans are decoded at a reduced scale, never at full size.
MAX_JPEG_PIXELS = 500_000_000

# Encoders write at most 20 scans; every scan is a pass over the whole image.
MAX_SCANS = 100
_MAX_SCANNED_PIXELS = 4_000_000_000

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_AVIF_BRANDS = (b"avif", b"avis")
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
# A JPEG marker that is neither a fill byte, an escaped 0xFF nor a restart marker.
_JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_ZEROS = bytes(64)

_STARTS = (
    (
        b"version https://git-lfs.github.com/spec",
        "a Git LFS pointer, not the photo: run git lfs pull",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the photo: run git annex get"),
    (b"../.git/annex/objects/", "a git-annex pointer, not the photo: run git annex get"),
    (b"%PDF", "a PDF document, not a photo"),
    (b"%!PS", "a PostScript document, not a photo"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript document, not a photo"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF), not a photo: convert it to PNG"),
    (b"SIMPLE  =", "scientific data (FITS), not a photo: convert it to PNG"),
    (b"P7\n", "a PAM image, which is not read: convert it to PNG"),
    (b"PF\n", "a colour PFM image (values as floats), which is not read: convert it to PNG"),
    (b"8BPS", "a Photoshop file: export it as JPEG or PNG"),
    (b"PK\x03\x04", "a ZIP archive, not a photo: unpack it"),
    (b"\x1f\x8b", "a gzip archive, not a photo: unpack it"),
    (b"\xff\x0a", "a JPEG XL photo, which Pillow does not read: convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL photo, which Pillow does not read: convert it to JPEG or PNG"),
    (b"\x1aE\xdf\xa3", "a video, not a photo"),
)


def unreadable_reason(head: bytes, formats: tuple[str, ...]) -> tuple[str, bool]:
    """Why no decoder accepts a file, from its first bytes.

    :param formats: names of the formats that are read.
    :returns: the reason in words, and whether it depends on what is installed rather than on the
        file alone.
    """
    if not head:
        return "the file is empty", False
    if not head.strip(b"\0"):
        return "the file holds only zero bytes, as after an interrupted copy", False
    for start, reason in _STARTS:
        if head.startswith(start):
            return reason, False
    if head.startswith((JPEG_START, PNG_START)):
        return "a damaged JPEG or PNG file", False
    if head.startswith(_TIFF_STARTS):
        return (
            "a TIFF file that is damaged, or of a kind that Pillow does not read (colours as "
            "floats, signed or 32-bit integers, or many channels): save it with 8 bits a channel",
            False,
        )
    if head[4:8] == b"ftyp":
        return _iso_media_reason(head)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1024].lower()
    if b"<svg" in text:
        return "an SVG drawing, not a photo: convert it to PNG", False
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<!--")):
        return (
            "an HTML or XML page, not a photo (often a server's error page): fetch it again",
            False,
        )
    if text.startswith((b"{", b"[")) and not _CONTROL.search(head):
        return "JSON text, not a photo (often a server's error message): fetch it again", False
    known = ", ".join(formats[:4])
    if _is_text(head):
        return f"text, no {known} image", False
    return f"no {known} image, nor any other format that is read", False


def _iso_media_reason(head: bytes) -> tuple[str, bool]:
    """The reason for a file in the container that HEIC, AVIF and MP4 share (ISO 14496-12, 4.3)."""
    length = min(max(int.from_bytes(head[:4], "big"), 16), 256)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, length, 4))]
    if any(brand in _HEIC_BRANDS for brand in brands):
        return "a HEIC photo: install the package pillow-heif, or convert it to JPEG", True
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "an AVIF photo that is damaged, or this Pillow was built without AVIF", True
    if brands[0] in (b"mif1", b"msf1"):
        return "a HEIF photo: install the package pillow-heif, or convert it to JPEG", True
    return "a video, not a photo", False


def _is_text(head: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0e-\x1f\x7f-\xff]", head)


def check_size(image: Image.Image) -> None:
    """Refuse an opened image whose decoding would take too much memory.

    :raises ImageError: when it has more pixels than its format may have.
    """
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("it has no pixels")
    limit = _LOWER_LIMITS.get(image.format or "", MAX_PIXELS)
    if image.format == "JPEG" and not image.info.get("progressive"):
        limit = MAX_JPEG_PIXELS
    if width * height > limit:
        raise ImageError(f"{width} x {height} px is too large: more than {limit:,} pixels")


def check_scans(content: bytes, pixels: int) -> None:
    """Refuse a JPEG file with so many scans that decoding would take minutes.

    :raises ImageError: above 100 scans, or when scans times pixels exceed 4e9.
    """
    allowed = max(1, min(MAX_SCANS, _MAX_SCANNED_PIXELS // pixels))
    # The quick count includes previews inside metadata, and whatever follows the photo.
    if content.count(bytes([0xFF, _SOS])) <= allowed:
        return
    scans, _ = _scans(content)
    if scans > allowed:
        raise ImageError(f"a JPEG file of {scans} scans: decoding would take too long")


def check_end(content: bytes) -> None:
    """Refuse a JPEG file whose last part was never written, as an interrupted download leaves it.

    Decoders take zeros for image data, and the rest of the photo would be grey. Zeros behind the
    end of the image do no harm.

    :raises ImageError: when the file ends with zeros, and the image has no end.
    """
    if content.endswith(_ZEROS) and not _scans(content)[1]:
        raise ImageError("incomplete: the file ends with zeros in place of the image's end")


def _scans(content: bytes) -> tuple[int, bool]:
    """The number of scans of the first image, and whether the image has an end."""
    scans, at = 0, 2
    while found := _JPEG_MARKER.search(content, at):
        marker, at = found[1][0], found.end()
        if marker == _EOI:
            return scans, True
        scans += marker == _SOS
        if marker not in (_SOI, _TEM):
            at += int.from_bytes(content[at : at + 2], "big")
    return scans, False


def without_metadata(content: bytes) -> bytes:
    """Remove text chunks from a PNG file, and a colour profile that Pillow refuses."""
    kept, at = [PNG_START], len(PNG_START)
    while at + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        end = at + 12 + length
        if kind not in _TEXT_CHUNKS and not (kind == b"iCCP" and _is_broken(content[at + 8 : end])):
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def _is_broken(profile: bytes) -> bool:
    """Whether Pillow refuses an iCCP chunk: it cannot be decompressed, or gets too large."""
    start = profile.find(b"\0") + 1
    decompress = zlib.decompressobj()
    try:
        decompress.decompress(profile[start + 1 :], ImageFile.SAFEBLOCK)
    except zlib.error:
        return True
    return profile[start : start + 1] != b"\0" or bool(decompress.unconsumed_tail)


def has_deep_colour(image: Image.Image, head: bytes) -> bool:
    """Whether colours have 16 bits per channel, of which Pillow keeps the upper 8."""
    if image.mode.startswith(("I", "F")):
        return False
    if image.format == "PPM":
        # Other ranges than 0..65535 are scaled by Pillow.
        tiles = getattr(image, "tile", [])
        return bool(tiles) and tiles[0][0] == "ppm" and tiles[0][3][-1] == 65535
    if image.format == "PNG":
        return head[12:16] == b"IHDR" and head[24:25] == b"\x10"
    bits = getattr(image, "tag_v2", {}).get(258)
    return image.format == "TIFF" and isinstance(bits, tuple) and bool(bits) and bits[0] == 16
