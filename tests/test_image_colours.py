"""Colour modes and bit depths of photo files are converted to the right sRGB values."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from shopee_mlflow.data.images import read_pixels, read_thumbnail
from shopee_mlflow.errors import ImageError

PATCHES = ((200, 60, 60), (60, 160, 70), (60, 80, 190))
RAMP = np.tile(np.linspace(0, 1, 64, dtype=np.float64), (64, 1))
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE = 258, 262, 281


def encode(picture: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(s15, values))


def profile(space: bytes, gamma: float, primaries: tuple[tuple[float, ...], ...] = ()) -> bytes:
    """A matrix or grey ICC profile, version 2 (ICC.1:2001-04)."""
    white = (0.9642, 1.0, 0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79),
        b"cprt": b"text\0\0\0\0x\0",
        b"wtpt": xyz(white),
    }
    if primaries:
        tags |= {
            name: xyz(p) for name, p in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
        }
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    else:
        tags[b"kTRC"] = curve
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", start + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ "
    )
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(s15, white)) + bytes(48)
    return head + table + body


ADOBE_RGB = profile(
    b"RGB ", 2.2, ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
)
DISPLAY_P3 = profile(
    b"RGB ", 2.2, ((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
)
LINEAR_GREY = profile(b"GRAY", 1.0)


def patches() -> Image.Image:
    picture = Image.new("RGB", (96, 32))
    for at, color in enumerate(PATCHES):
        picture.paste(color, (32 * at, 0, 32 * at + 32, 32))
    return picture


def in_profile(icc: bytes) -> Image.Image:
    source = ImageCms.createProfile("sRGB")
    target = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    converted = ImageCms.profileToProfile(patches(), source, target, outputMode="RGB")
    assert converted is not None
    return converted


def assert_patches(content: bytes, tolerance: int = 3) -> None:
    for pixels in (read_pixels(content, 96), read_thumbnail(content, 96)):
        seen = pixels[pixels.shape[0] // 2, [16, 48, 80]].astype(int)
        assert np.abs(seen - np.array(PATCHES)).max() <= tolerance


@pytest.mark.fault
@pytest.mark.parametrize("icc", [ADOBE_RGB, DISPLAY_P3], ids=["adobe-rgb", "display-p3"])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_colours_are_converted_to_srgb(
    file_format: str, options: dict[str, object], icc: bytes
) -> None:
    content = encode(in_profile(icc), file_format, icc_profile=icc, **options)
    assert_patches(content, tolerance=5)


def test_colours_of_a_palette_and_of_transparent_photos_are_converted() -> None:
    stored = in_profile(ADOBE_RGB)
    assert_patches(encode(stored.quantize(3), "PNG", icc_profile=ADOBE_RGB), tolerance=4)
    stored.putalpha(255)
    assert_patches(encode(stored, "PNG", icc_profile=ADOBE_RGB))


def test_profile_of_grey_photos() -> None:
    # Linear light 0.2140 is sRGB 127.5 (IEC 61966-2-1).
    for grey in (Image.new("L", (8, 8), 55), Image.new("LA", (8, 8), (55, 255))):
        pixels = read_pixels(encode(grey, "PNG", icc_profile=LINEAR_GREY), 8)
        assert np.abs(pixels.astype(int) - 128).max() <= 2


@pytest.mark.fault
@pytest.mark.parametrize("icc", [b"nonsense", ADOBE_RGB[:200], LINEAR_GREY])
def test_broken_and_foreign_profiles_are_ignored(icc: bytes) -> None:
    assert_patches(encode(patches(), "PNG", icc_profile=icc), tolerance=0)


def test_an_srgb_profile_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_patches(encode(patches(), "PNG", icc_profile=srgb), tolerance=0)


def test_modes_of_tiff_files() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    as_lab = ImageCms.profileToProfile(patches(), srgb, lab, outputMode="LAB")
    assert as_lab is not None
    assert_patches(encode(as_lab, "TIFF"), tolerance=6)
    assert_patches(encode(patches().convert("YCbCr"), "TIFF"))
    assert_patches(encode(patches().convert("CMYK"), "TIFF"))
    assert_patches(encode(patches().convert("CMYK"), "JPEG", quality=100))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("values", "file_format"),
    [
        ((RAMP * 65535).astype(np.uint16), "PNG"),
        ((RAMP * 4095).astype(np.uint16), "TIFF"),
        ((RAMP * 4095).astype(np.uint16), "PNG"),
        ((RAMP * 1023).astype(np.uint16), "PNG"),
        ((RAMP * 16383).astype(np.uint16), "PNG"),
        ((RAMP * 255).astype(np.uint16), "PNG"),
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP * 255).astype(np.float32), "TIFF"),
        ((RAMP * 65535).astype(np.float32), "TIFF"),
        ((RAMP * 3 - 1).astype(np.float32), "TIFF"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        ((RAMP * (2**31 - 1)).astype(np.int32), "TIFF"),
        (((RAMP - 0.5) * 65535).astype(np.int32), "TIFF"),
    ],
)
def test_deep_greys_are_scaled_by_their_range(values: np.ndarray, file_format: str) -> None:
    pixels = read_pixels(encode(Image.fromarray(values), file_format), 64)
    assert np.abs(pixels - 255 * RAMP[..., None]).max() <= 1


def test_tags_of_a_tiff_file_name_its_range() -> None:
    half = Image.fromarray((RAMP * 1000).astype(np.uint16))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[MAX_SAMPLE] = 2000
    pixels = read_pixels(encode(half, "TIFF", tiffinfo=tags), 64)
    assert np.abs(pixels - 127.5 * RAMP[..., None]).max() <= 1


def test_white_is_zero_in_a_deep_tiff_file() -> None:
    content = encode(Image.fromarray((RAMP * 65535).astype(np.uint16)), "TIFF")
    at = content.index(struct.pack("<HHIH", PHOTOMETRIC, 3, 1, 1))
    negative = content[: at + 8] + b"\0" + content[at + 9 :]
    assert np.abs(read_pixels(negative, 64) - 255 * (1 - RAMP[..., None])).max() <= 1


def test_unsigned_32_bit_values() -> None:
    content = encode(Image.fromarray((RAMP * (2**31 - 1)).astype(np.int32)), "TIFF")
    # SampleFormat 1 is unsigned; every value is shifted to the upper half of its range.
    at = content.index(struct.pack("<HHIH", 339, 3, 1, 2))
    values = (RAMP * (2**32 - 1)).astype("<u4").tobytes()
    data = content.index((RAMP * (2**31 - 1)).astype("<i4").tobytes())
    content = content[: at + 8] + b"\x01" + content[at + 9 :]
    content = content[:data] + values + content[data + len(values) :]
    assert np.abs(read_pixels(content, 64) - 255 * RAMP[..., None]).max() <= 1


def png_16_bit(values: np.ndarray) -> bytes:
    """An RGB PNG file with 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.fault
def test_16_bit_colour() -> None:
    values = np.zeros((8, 8, 3))
    values[:] = np.array(PATCHES[0]) * 257
    assert np.abs(read_pixels(png_16_bit(values), 8).astype(int) - PATCHES[0]).max() <= 1
    for shift in (2, 4, 6):
        with pytest.raises(ImageError, match="values use 14 bits or fewer"):
            read_pixels(png_16_bit(values.astype(np.uint16) >> shift), 8)


def test_one_bit_images() -> None:
    picture = Image.new("1", (8, 8), 0)
    picture.paste(1, (4, 0, 8, 8))
    for content in (encode(picture, "PNG"), encode(picture, "TIFF", compression="group4")):
        pixels = read_pixels(content, 8)
        assert (pixels[:, 0] == 0).all()
        assert (pixels[:, 7] == 255).all()
    clear = read_pixels(encode(picture, "PNG", transparency=0), 8)
    assert (clear == 255).all()


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "1"])
def test_large_images_are_converted_in_strips_to_the_same(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 255, 200))
    picture = Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).convert(mode)
    content = encode(picture, "TIFF" if mode == "CMYK" else "PNG")
    whole = read_pixels(content, 32), read_thumbnail(content, 32)
    monkeypatch.setattr("shopee_mlflow.data.image_colours.LARGE_PIXELS", 100)
    monkeypatch.setattr("shopee_mlflow.data.image_colours._STRIP_PIXELS", 2000)
    strips = read_pixels(content, 32), read_thumbnail(content, 32)
    tolerance = 12 if mode in ("P", "1") else 2
    assert np.abs(strips[0].astype(int) - whole[0]).mean() <= tolerance
    np.testing.assert_array_equal(strips[1], whole[1])


HOT = np.zeros((64, 64), dtype=bool)
HOT[5, 9] = True


@pytest.mark.fault
@pytest.mark.parametrize(
    ("values", "defect", "file_format"),
    [
        ((RAMP * 4095).astype(np.uint16), 65535, "PNG"),
        ((RAMP * 1023).astype(np.uint16), 65535, "TIFF"),
        (RAMP.astype(np.float32), 1e30, "TIFF"),
        (RAMP.astype(np.float32), -1e30, "TIFF"),
        (RAMP.astype(np.float32), np.nan, "TIFF"),
        ((RAMP * 255).astype(np.float32), np.inf, "TIFF"),
        ((RAMP * 3 - 1).astype(np.float32), 700, "TIFF"),
        ((RAMP * 65535).astype(np.int32), 2**31 - 1, "TIFF"),
        ((RAMP * 2**20).astype(np.int32), -(2**31), "TIFF"),
    ],
)
def test_a_hot_or_dead_pixel_does_not_change_the_others(
    values: np.ndarray, defect: float, file_format: str
) -> None:
    damaged = np.where(HOT, np.asarray(defect, dtype=values.dtype), values)
    pixels = read_pixels(encode(Image.fromarray(damaged), file_format), 64)
    assert np.abs(pixels - 255 * RAMP[..., None])[~HOT].max() <= 1


def test_a_dark_16_bit_photo_stays_dark() -> None:
    dark = (RAMP * 30_000).astype(np.uint16)
    pixels = read_pixels(encode(Image.fromarray(dark), "PNG"), 64)
    assert np.abs(pixels - 255 * 30_000 / 65_535 * RAMP[..., None]).max() <= 1


@pytest.mark.fault
def test_signed_16_bit_values_have_their_full_brightness() -> None:
    unsigned = encode(Image.fromarray((RAMP * 32767).astype(np.uint16)), "TIFF")
    # The entry Compression (none, the default) is replaced by SampleFormat (signed).
    compression, signed = struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 339, 3, 1, 2)
    assert compression in unsigned
    pixels = read_pixels(unsigned.replace(compression, signed), 64)
    assert np.abs(pixels - 255 * RAMP[..., None]).max() <= 1
