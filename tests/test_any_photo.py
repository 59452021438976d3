"""Arbitrary files as photos: pixels of the right shape, or a clear error, and soon."""

from __future__ import annotations

import io
import random
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from shopee_mlflow.data.images import read_pixels, read_thumbnail
from shopee_mlflow.errors import ImageError

SIZE = 24
# A photo of this size takes a hundredth of it; a decoder that hangs takes forever.
_SECONDS = 20


def photo(file_format: str) -> bytes:
    x, y = np.meshgrid(np.linspace(0, 255, 60), np.linspace(0, 255, 44))
    picture = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8))
    stream = io.BytesIO()
    if file_format == "GIF":
        frames = [picture.rotate(angle) for angle in (90, 180)]
        picture.save(stream, file_format, save_all=True, append_images=frames)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.save(stream, file_format, exif=exif)
    return stream.getvalue()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, a piece taken out, doubled or filled, or the end cut off."""
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        at, length = chance.randrange(len(data)), chance.randrange(1, 40)
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                data[at : at + length] = b""
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at : at + length] = chance.choice([b"\0", b"\xff"]) * length
            case _:
                del data[max(at, 1) :]
        if not data:
            return b""
    return bytes(data)


@pytest.mark.fault
@pytest.mark.parametrize(
    "file_format",
    ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "ICO"],
)
def test_mutated_files(file_format: str) -> None:
    content = photo(file_format)
    chance = random.Random(zlib.crc32(file_format.encode()))
    assert read_pixels(content, SIZE).shape == (SIZE, SIZE, 3)
    read, refused, started = 0, 0, time.monotonic()
    for _ in range(400):
        damaged = mutated(content, chance)
        try:
            pixels, thumbnail = read_pixels(damaged, SIZE), read_thumbnail(damaged, SIZE)
        except ImageError:
            refused += 1
        else:
            assert (pixels.shape, pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)
            assert max(thumbnail.shape[:2]) <= SIZE
            assert thumbnail.dtype == np.uint8
            read += 1
    # Of each kind enough that the test has tried something; and none that takes forever.
    assert min(read, refused) > 5, (read, refused)
    assert time.monotonic() - started < _SECONDS * 10


@pytest.mark.fault
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_file_cut_off_anywhere(file_format: str) -> None:
    content = photo(file_format)
    for end in range(0, len(content), max(1, len(content) // 150)):
        try:
            pixels = read_pixels(content[:end], SIZE)
        except ImageError:
            continue
        # Only what comes after the first picture may be missing.
        np.testing.assert_array_equal(pixels, read_pixels(content, SIZE))


@pytest.mark.fault
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_file_whose_last_part_is_zeros_is_refused(progressive: bool) -> None:
    file = io.BytesIO()
    noise = np.random.default_rng(5).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((300, 200)).save(file, "JPEG", progressive=progressive)
    content = file.getvalue()
    for end in range(len(content) // 3, len(content) - 64, 500):
        with pytest.raises(ImageError, match="incomplete|[Tt]runcated"):
            read_pixels(content[:end] + bytes(len(content) - end), SIZE)
    # Some programs fill the last block of the disk, and phones append a film.
    for more in (bytes(4096), b"\xff\xda" + bytes(4096)):
        pixels = read_pixels(content + more, SIZE)
        np.testing.assert_array_equal(pixels, read_pixels(content, SIZE))


def test_one_kind_of_file_after_the_beginning_of_another() -> None:
    contents = [photo(file_format) for file_format in ("JPEG", "PNG", "WEBP", "GIF")]
    for first in contents:
        for second in contents:
            for cut in (4, 12, 30):
                try:
                    pixels = read_pixels(first[:cut] + second[cut:], SIZE)
                except ImageError:
                    continue
                assert pixels.shape == (SIZE, SIZE, 3)
