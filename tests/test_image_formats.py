"""Photos of all still-image formats that Pillow decodes are read, and none takes minutes."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from shopee_mlflow.data.images import read_pixels
from shopee_mlflow.errors import ImageError

X, Y = np.meshgrid(np.linspace(0, 255, 48), np.linspace(0, 255, 48))
RGB = np.stack([X, Y, (X + Y) / 2], axis=-1).astype(np.uint8)
GREY = RGB[..., 0]


def encode(picture: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def in_colour() -> dict[str, bytes]:
    """The picture RGB in each format, as Pillow or, where it cannot, the test writes it."""
    picture = Image.fromarray(RGB)
    formats = ("PPM", "TGA", "PCX", "DIB", "DDS", "SGI", "QOI", "JPEG2000")
    files = {name: encode(picture, name) for name in formats}
    files["ICO"] = encode(picture, "ICO", sizes=[(48, 48)])
    files["ICNS"] = encode(picture.resize((64, 64)), "ICNS")
    files["TGA-RLE"] = encode(picture, "TGA", compression="tga_rle")
    text = " ".join(map(str, RGB.ravel()))
    files["PPM-text"] = f"P3\n48 48\n255\n{text}\n".encode()
    files["PPM-16"] = b"P6\n48 48\n65535\n" + (RGB.astype(">u2") * 257).tobytes()
    sun = struct.pack(">8I", 0x59A66A95, 48, 48, 24, RGB.size, 3, 0, 0)
    files["SUN"] = sun + RGB.tobytes()
    return files


COLOUR = in_colour()
ONE_BIT = Image.fromarray(GREY >= 128)
DARK = {
    "PGM": encode(Image.fromarray(GREY), "PPM"),
    "PGM-16": b"P5\n48 48\n65535\n" + (GREY.astype(">u2") * 257).tobytes(),
    "PGM-10": b"P5\n48 48\n1020\n" + (GREY.astype(np.uint16) * 4).astype(">u2").tobytes(),
    "PFM": b"Pf\n48 48\n-1.0\n" + (GREY[::-1] / 255).astype("<f4").tobytes(),
}


@pytest.mark.fault
@pytest.mark.parametrize("name", COLOUR)
def test_photos_in_less_common_formats_are_read(name: str) -> None:
    difference = np.abs(read_pixels(COLOUR[name], 48).astype(int) - RGB)
    assert difference.mean() < 1.5


@pytest.mark.parametrize("name", DARK)
def test_greys_of_netpbm_files(name: str) -> None:
    difference = np.abs(read_pixels(DARK[name], 48).astype(int) - GREY[..., None])
    assert difference.max() <= 1


@pytest.mark.parametrize("file_format", ["PPM", "MSP", "PCX"])
def test_black_and_white(file_format: str) -> None:
    pixels = read_pixels(encode(ONE_BIT, file_format), 48)
    np.testing.assert_array_equal(pixels[..., 0] == 255, GREY >= 128)


def claims(file_format: str, side: int) -> bytes:
    """A file of a few bytes that claims to be large, for a decoder written in Python."""
    size = struct.pack(">II", side, side)
    return {
        "QOI": b"qoif" + size + b"\3\0" + b"\xfd" * 1000,
        "PPM": f"P6\n{side} {side}\n1023\n".encode() + bytes(1000),
        "PPM-text": f"P3\n{side} {side}\n255\n".encode() + b"1 " * 1000,
        "XPM": (
            f'/* XPM */\nstatic char * x[] = {{\n"{side} {side} 1 1",\n"a c #FF0000",\n"aaa"'
        ).encode(),
    }[file_format]


@pytest.mark.fault
@pytest.mark.parametrize("file_format", ["QOI", "PPM", "PPM-text", "XPM"])
def test_large_photos_with_a_slow_decoder_are_refused_before_decoding(file_format: str) -> None:
    with pytest.raises(ImageError, match=r"4,?000 x 4,?000 px is too large .* slow to decode"):
        read_pixels(claims(file_format, 4000), 32)


@pytest.mark.fault
def test_an_icon_that_holds_a_large_image_is_refused_before_decoding() -> None:
    large = encode(Image.new("1", (10_000, 10_000)), "PNG")
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(large), 22)
    with pytest.raises(ImageError, match="an icon with more than 4096 pixels"):
        read_pixels(struct.pack("<HHH", 0, 1, 1) + entry + large, 32)
    icns = b"ic10" + struct.pack(">I", len(large) + 8) + large
    with pytest.raises(ImageError, match="an icon with more than 4096 pixels"):
        read_pixels(b"icns" + struct.pack(">I", len(icns) + 8) + icns, 32)


def test_dark_16_bit_colour_of_a_ppm_file_is_refused() -> None:
    content = b"P6\n48 48\n65535\n" + (RGB.astype(np.uint16) * 4).astype(">u2").tobytes()
    with pytest.raises(ImageError, match="values use 14 bits or fewer"):
        read_pixels(content, 48)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PF\n4 4\n-1.0\n" + bytes(192), "colour PFM image"),
        (b"P7\nWIDTH 4\n", "a PAM image"),
        (b"\xd7\xcd\xc6\x9a" + bytes(60), "Windows metafile"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
        (b"[\x00\xff\x01" + bytes(60), "no JPEG, PNG, WEBP, GIF image"),
    ],
)
def test_formats_that_are_not_read_are_named(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_pixels(content, 32)


@pytest.mark.fault
def test_a_tiff_file_of_float_colours_is_refused_with_the_reason() -> None:
    content = encode(Image.fromarray(RGB), "TIFF")
    # BitsPerSample of a photo with three channels points to three numbers.
    content = content.replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 32, 32, 32))
    with pytest.raises(ImageError, match="TIFF file .*colours as floats"):
        read_pixels(content, 32)
