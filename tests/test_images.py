"""Decoding photo files: all formats, and all kinds of damage."""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from shopee_mlflow.data import image_formats, images
from shopee_mlflow.data.images import pixels_from_array, read_pixels
from shopee_mlflow.errors import ImageError

ORIENTATION = 0x0112
ORIENTATIONS = range(1, 9)
# How an upright photo has to be stored so that the mark turns it back: 6 and 8 undo each other.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
RED, BLUE = (255, 0, 0), (0, 0, 255)


def encode(picture: Image.Image, file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **options)
    return stream.getvalue()


def smooth(width: int = 192, height: int = 128) -> Image.Image:
    """Every corner of another colour and nothing sharp, so that lossy formats stay close."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = (255 * x, 255 * y, 255 * (1 - x) * (1 - y))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def halves(mode: str) -> Image.Image:
    """The left half transparent over black, the right half blue (or dark, in grey)."""
    rgba = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    rgba.paste((*BLUE, 255), (8, 0, 16, 16))
    return rgba.convert(mode)


def palette_halves() -> Image.Image:
    """The same as :func:`halves` by palette; the transparent index is given when saving."""
    picture = Image.new("P", (16, 16), 0)
    picture.putpalette([0, 0, 0, *BLUE])
    picture.paste(1, (8, 0, 16, 16))
    return picture


def resized(picture: Image.Image, size: int) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(float) - second).mean())


def with_orientation(value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def png_header(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that claims to be this large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100))[:-6]


@pytest.mark.parametrize("size", [1, 16, 33, 224])
@pytest.mark.parametrize(
    "file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000"]
)
def test_formats(file_format: str, size: int) -> None:
    pixels = read_pixels(encode(smooth(), file_format), size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert difference(pixels, resized(smooth(), size)) < 6


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_file_and_its_bytes_give_the_same(tmp_path: Path, file_format: str) -> None:
    content = encode(smooth(), file_format)
    file = tmp_path / "photo"
    file.write_bytes(content)
    np.testing.assert_array_equal(read_pixels(file, 40), read_pixels(content, 40))


def test_name_of_the_file_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "really_png.jpg"
    file.write_bytes(encode(smooth(), "PNG"))
    np.testing.assert_array_equal(read_pixels(file, 40), resized(smooth(), 40))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encode(smooth(), "JPEG")[:-200], "truncated"),
        (encode(smooth(), "PNG")[:-200], "truncated"),
        (b"", "the file is empty"),
        (bytes(5000), "only zero bytes"),
        (b"<html><body>404 Not Found</body></html>\n", "an HTML or XML page"),
        (b"\n\n<!DOCTYPE HTML><title>403</title>", "an HTML or XML page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "an SVG drawing"),
        (b'<?xml version="1.0"?>\n<svg/>', "an SVG drawing"),
        (b'{"error": "not found"}', "JSON text"),
        (b"no such key\n", "text, no JPEG, PNG, WEBP, GIF image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:6f\n", "run git lfs pull"),
        (b"/annex/objects/SHA256E-s9--6f.jpg\n", "run git annex get"),
        (b"PK\x03\x04" + bytes(20), "a ZIP archive"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64), "a video"),
        (b"\xff\x0a" + bytes(range(64)), "a JPEG XL photo"),
        (np.random.default_rng(0).bytes(1000), "no JPEG, PNG, WEBP, GIF image"),
        (b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(1000), "."),
    ],
)
def test_damaged_files_have_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(content)
    for source in (file, content):
        with pytest.raises(ImageError, match=reason):
            read_pixels(source, 32)


def test_files_that_cannot_be_read_have_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_pixels(tmp_path / "absent.jpg", 32)
    with pytest.raises(ImageError, match="Is a directory"):
        read_pixels(tmp_path, 32)


@pytest.mark.parametrize("file_format", ["EPS", "PDF"])
def test_other_formats_are_refused(file_format: str) -> None:
    with pytest.raises(ImageError, match="not a photo|no JPEG, PNG, WEBP, GIF image"):
        read_pixels(encode(smooth(), file_format), 32)


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"])
def test_heic_names_the_package_that_reads_it_and_is_not_remembered(brands: bytes) -> None:
    with pytest.raises(ImageError, match="HEIC photo: install the package pillow-heif") as caught:
        read_pixels(b"\0\0\0\x18ftyp" + brands + bytes(64), 32)
    assert caught.value.transient


@pytest.mark.fault
def test_failures_that_do_not_follow_from_the_bytes_are_transient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(encode(smooth(), "PNG")[:-200])
    with pytest.raises(ImageError, match="truncated") as damaged:
        read_pixels(file, 32)
    assert not damaged.value.transient
    for error in (
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError("out of memory error when reading image file"),
    ):
        with pytest.raises(ImageError) as passing, images.open_photo(encode(smooth(), "PNG")):
            raise error
        assert passing.value.transient
    with pytest.raises(ImageError, match="No such file") as missing:
        read_pixels(tmp_path / "absent.png", 32)
    assert missing.value.transient


@pytest.mark.fault
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_pixels(tmp_path / "pipe.jpg", 32)


def test_cmyk_jpeg() -> None:
    content = encode(smooth().convert("CMYK"), "JPEG", quality=95)
    assert difference(read_pixels(content, 32), resized(smooth(), 32)) < 4


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_gradient_is_scaled_and_not_clipped(file_format: str) -> None:
    gradient = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    pixels = read_pixels(encode(Image.fromarray(gradient), file_format), 64)
    expected = np.linspace(0, 255, 64)[None, :, None]
    assert np.abs(pixels - expected).max() <= 1


def test_values_that_are_no_number_decode_in_silence() -> None:
    holes = np.full((8, 8), 200, np.float32)
    holes[:, 4:] = np.nan
    pixels = read_pixels(encode(Image.fromarray(holes), "TIFF"), 8)
    assert pixels[0, 0].tolist() == [200] * 3
    assert pixels[0, -1].tolist() == [0] * 3


@pytest.mark.parametrize(
    ("content", "opaque"),
    [
        (encode(halves("RGBA"), "PNG"), BLUE),
        (encode(halves("RGBA"), "WEBP", lossless=True), BLUE),
        (encode(halves("RGBA"), "GIF"), BLUE),
        (encode(halves("LA"), "PNG"), (29, 29, 29)),
        (encode(palette_halves(), "PNG", transparency=0), BLUE),
        (encode(palette_halves(), "PNG", transparency=b"\0\xff"), BLUE),
        (encode(palette_halves(), "GIF", transparency=0), BLUE),
        (encode(halves("RGB"), "PNG", transparency=(0, 0, 0)), BLUE),
        (encode(halves("L"), "PNG", transparency=0), (29, 29, 29)),
    ],
    ids=["rgba", "webp", "gif", "la", "index", "alphas", "gif-index", "rgb-colour", "l-colour"],
)
def test_transparent_becomes_white(content: bytes, opaque: tuple[int, int, int]) -> None:
    pixels = read_pixels(content, 16)
    assert (pixels[:, :6] == 255).all()
    assert (pixels[:, 10:] == opaque).all()


def test_half_transparent_is_mixed_with_white() -> None:
    pixels = read_pixels(encode(Image.new("RGBA", (4, 4), (*RED, 128)), "PNG"), 4)
    assert np.abs(pixels[0, 0] - np.array([255, 127, 127])).max() <= 1


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_counts(file_format: str) -> None:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    content = encode(first, file_format, save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.n_frames == 2
    assert difference(read_pixels(content, 16), np.array(RED)) < 2


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("MPO", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=["jpeg", "mpo", "png", "webp", "tiff", "tiff-lzw"],
)
def test_photos_are_turned_upright(
    file_format: str, options: dict[str, object], orientation: int
) -> None:
    turn = STORED[orientation]
    stored = smooth() if turn is None else smooth().transpose(turn)
    content = encode(stored, file_format, exif=with_orientation(orientation), **options)
    pixels = read_pixels(content, 32)
    assert difference(pixels, resized(smooth(), 32)) < 2
    with Image.open(io.BytesIO(content)) as picture:
        upright = ImageOps.exif_transpose(picture)
    assert difference(pixels, resized(upright, 32)) < 1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientation_is_upright(value: int) -> None:
    content = encode(smooth(), "PNG", exif=with_orientation(value))
    np.testing.assert_array_equal(read_pixels(content, 32), resized(smooth(), 32))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0no TIFF header at all",
        b"Exif\0\0MM\0*\0\0\0\x08",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        # An orientation of type text, with an offset behind the end of the block.
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\0\0\0\xf0\xff\0\0\0\0\0\0",
        # One that is a fraction with the denominator 0.
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x1a\0\0\0\0\0\0\0" + bytes(8),
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_matter(file_format: str, exif: bytes) -> None:
    content = encode(smooth(), file_format, exif=exif)
    np.testing.assert_array_equal(
        read_pixels(content, 32), read_pixels(encode(smooth(), file_format), 32)
    )


def test_a_tag_of_a_tiff_file_that_does_not_matter_may_be_damaged() -> None:
    content = encode(smooth(), "TIFF", description="a text that is longer than four bytes")
    length = content.index(struct.pack("<HH", 270, 2)) + 4
    # Pillow warns about it when it opens the file, and again when it decodes it.
    damaged = content[:length] + struct.pack("<I", 10**9) + content[length + 4 :]
    np.testing.assert_array_equal(read_pixels(damaged, 32), resized(smooth(), 32))


def test_smallest_and_longest_photos() -> None:
    assert (read_pixels(encode(Image.new("RGB", (1, 1), RED), "PNG"), 32) == RED).all()
    for sides in ((30_000, 10), (10, 30_000)):
        for file_format in ("JPEG", "PNG"):
            pixels = read_pixels(encode(Image.new("RGB", sides, RED), file_format), 32)
            assert pixels.shape == (32, 32, 3)
            assert difference(pixels, np.array(RED)) < 2


@pytest.mark.fault
@pytest.mark.parametrize("side", [11_000, 12_000, 30_000])
def test_too_many_pixels_are_refused_before_decoding(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From the third on, Pillow itself refuses; the first two are up to our limit.
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than 120,000,000 pixels"):
        read_pixels(png_header(side, side), 32)


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_of_scans(width: int, height: int, scans: int, baseline: bool = False) -> bytes:
    """A grey JPEG file whose scans are empty: a few bytes each, a pass over the image each."""
    out = b"\xff\xd8" + jpeg_segment(0xDB, b"\0" + bytes([1] * 64))
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])
    out += jpeg_segment(0xC0 if baseline else 0xC2, frame)
    for table in (0x00, 0x10):
        out += jpeg_segment(0xC4, bytes([table, 1, *[0] * 15, 0]))
    out += jpeg_segment(0xDA, bytes([1, 1, 0, 0, 63 if baseline else 0, 0])) + bytes(16)
    return out + jpeg_segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) * (scans - 1) + b"\xff\xd9"


@pytest.mark.fault
@pytest.mark.parametrize(
    ("width", "height", "scans"), [(10_900, 10_900, 2000), (10_900, 10_900, 50), (64, 64, 101)]
)
@pytest.mark.parametrize("baseline", [False, True])
def test_jpeg_files_of_endless_scans_are_refused_before_decoding(
    width: int, height: int, scans: int, baseline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=f"of {scans} scans: decoding would take too long"):
        read_pixels(jpeg_of_scans(width, height, scans, baseline), 32)


def test_scans_of_previews_and_of_what_follows_the_photo_do_not_count() -> None:
    plain = encode(smooth(), "JPEG", progressive=True)
    preview = jpeg_segment(0xE5, b"\xff\xda" * 150)
    content = plain[:2] + preview + plain[2:] + b"\xff\xda\0\2" * 150
    np.testing.assert_array_equal(read_pixels(content, 32), read_pixels(plain, 32))
    assert read_pixels(jpeg_of_scans(64, 64, 100), 32).shape == (32, 32, 3)


@pytest.mark.fault
def test_very_large_jpeg_files_are_decoded_at_a_reduced_scale() -> None:
    content = jpeg_of_scans(20_000, 10_000, 1, baseline=True)
    with images.open_photo(content) as image:
        assert images.upright_size(image) == (20_000, 10_000)
        width, height = image.size
        assert width * height <= 120_000_000
    with images.open_photo(content, 224) as image:
        assert image.size == (2500, 1250)
    for huge in (jpeg_of_scans(30_000, 20_000, 1, baseline=True), jpeg_of_scans(20_000, 10_000, 1)):
        with pytest.raises(ImageError, match="too large: more than"):
            read_pixels(huge, 32)


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file with more chunks after its header, and once more at its end."""
    plain = encode(smooth(), "PNG")
    more = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return plain[:33] + more + plain[33:-12] + more + plain[-12:]


@pytest.mark.fault
@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(5 * 1024 * 1024)))],
        [(b"iTXt", b"XML\0\1\0\0\0" + zlib.compress(bytes(5 * 1024 * 1024)))],
        [(b"tEXt", b"key\0" + b"x" * 1_000_000)] * 70,
        [(b"iCCP", b"icc\0\0" + zlib.compress(bytes(5 * 1024 * 1024)))],
        [(b"iCCP", b"icc\0\7" + zlib.compress(b"profile"))],
    ],
    ids=["ztxt", "itxt", "many", "large-profile", "unknown-compression"],
)
def test_metadata_of_a_png_file_does_not_matter(chunks: list[tuple[bytes, bytes]]) -> None:
    np.testing.assert_array_equal(read_pixels(png_with(*chunks), 32), resized(smooth(), 32))


def test_heif_is_read_where_the_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[bool] = []
    package = SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setattr(image_formats, "find_spec", lambda name: name)
    image_formats.readable_formats.cache_clear()
    try:
        np.testing.assert_array_equal(
            read_pixels(encode(smooth(), "PNG"), 32), resized(smooth(), 32)
        )
    finally:
        image_formats.readable_formats.cache_clear()
    assert registered == [True]


def test_claimed_size_within_the_limit_is_a_damaged_file() -> None:
    with pytest.raises(ImageError, match="truncated"):
        read_pixels(png_header(300, 300), 32)


@pytest.mark.parametrize("size", [16, 64, 100, 150, 300, 500])
def test_jpeg_is_decoded_small_and_stays_close(size: int) -> None:
    content = encode(smooth(1200, 900), "JPEG", quality=95, subsampling=0)
    pixels = read_pixels(content, size)
    with Image.open(io.BytesIO(content)) as picture:
        assert difference(pixels, resized(picture, size)) < 1
    with images.open_photo(content, size) as image:
        width, height = image.size
        assert images.upright_size(image) == (1200, 900)
    assert (width < 1200) == (size <= 150)
    assert width == 1200 or min(width, height) >= 2 * size


def test_many_threads_at_once_leave_the_warning_filters_alone() -> None:
    broken_exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"
    contents = [
        encode(smooth(), "JPEG", exif=with_orientation(6)),
        encode(smooth(), "JPEG", exif=broken_exif),
        encode(halves("RGBA"), "PNG"),
        encode(smooth(), "WEBP"),
        encode(smooth(), "TIFF", exif=with_orientation(8)),
        encode(smooth(), "JPEG")[:-200],
        b"no photo",
    ]

    def decode(content: bytes) -> np.ndarray | str:
        try:
            return read_pixels(content, 32)
        except ImageError as error:
            return str(error)

    alone = [decode(content) for content in contents]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, contents * 20))
    assert list(warnings.filters) == before
    for position, result in enumerate(together):
        np.testing.assert_array_equal(result, alone[position % len(contents)])


def test_warning_filters_survive_threads_that_would_interleave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One thread opens a file, and stays there until another one comes in or cannot."""
    content = encode(smooth(), "PNG")
    first_in, second_in, first_out = (threading.Event() for _ in range(3))
    real = Image.open

    def slow_open(*arguments: object, **options: object) -> Image.Image:
        if not first_in.is_set():
            first_in.set()
            second_in.wait(0.2)
        else:
            second_in.set()
            first_out.wait(0.2)
        return real(*arguments, **options)

    monkeypatch.setattr(Image, "open", slow_open)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read_pixels, content, 8)
        first.add_done_callback(lambda _: first_out.set())
        assert first_in.wait(10)
        second = pool.submit(read_pixels, content, 8)
        np.testing.assert_array_equal(first.result(), second.result())
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    "error",
    [
        ValueError,
        SyntaxError,
        TypeError,
        EOFError,
        IndexError,
        KeyError,
        OverflowError,
        ZeroDivisionError,
        AssertionError,
        AttributeError,
        NotImplementedError,
        struct.error,
    ],
)
def test_whatever_decoders_raise_is_a_reason(error: type[Exception]) -> None:
    with (
        pytest.raises(ImageError, match=f"damaged file .*{error.__name__}: .*nonsense"),
        images.open_photo(encode(smooth(), "PNG")),
    ):
        raise error("nonsense")


def test_too_little_memory_is_a_reason() -> None:
    with (
        pytest.raises(ImageError, match="not enough memory"),
        images.open_photo(encode(smooth(), "PNG")),
    ):
        raise MemoryError


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_array_gives_the_same_as_a_lossless_file(mode: str) -> None:
    picture = smooth().convert(mode)
    array = np.asarray(picture)
    pixels = pixels_from_array(array, 48)
    assert pixels.shape == (48, 48, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, read_pixels(encode(picture, "PNG"), 48))


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint16, np.uint64])
def test_array_of_other_whole_numbers(dtype: type) -> None:
    array = np.asarray(smooth())
    np.testing.assert_array_equal(
        pixels_from_array(array.astype(dtype), 32), pixels_from_array(array, 32)
    )


@pytest.mark.parametrize("shape", [(4,), (4, 4, 1), (4, 4, 4), (3, 4, 4), (1, 4, 4, 3), (0, 4, 3)])
def test_array_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"\(H, W, 3\) or \(H, W\), not \(" + str(shape[0])):
        pixels_from_array(np.zeros(shape, np.uint8), 8)


@pytest.mark.parametrize(
    "array",
    [np.full((4, 4, 3), 0.5), np.full((4, 4), 256), np.full((4, 4), -1), np.ones((4, 4), bool)],
    ids=["float", "large", "negative", "bool"],
)
def test_array_of_wrong_values(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=f"uint8 values 0..255, not {array.dtype}"):
        pixels_from_array(array, 8)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_any_damage_is_an_image_error_or_a_photo(file_format: str) -> None:
    """Byte flips, cuts and insertions; pytest turns any warning into a failure as well."""
    exif = {} if file_format == "GIF" else {"exif": with_orientation(6)}
    whole = encode(smooth(24, 16), file_format, **exif)
    rng = np.random.default_rng(ord(file_format[0]))
    outcomes = set()
    for _ in range(75):
        content = damage(whole, rng)
        try:
            pixels = read_pixels(content, 16)
        except ImageError:
            outcomes.add("error")
        else:
            outcomes.add("photo")
            assert pixels.shape == (16, 16, 3)
            assert pixels.dtype == np.uint8
    assert outcomes == {"error", "photo"}


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(content)))
    kind = rng.choice(["flip", "cut", "insert"], p=[0.6, 0.2, 0.2])
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ int(rng.integers(1, 256))]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    return content[:at] + rng.bytes(int(rng.integers(1, 9))) + content[at:]


def test_formats_whose_decoders_need_much_memory_have_a_lower_limit() -> None:
    # A lossless WebP file of 8000 x 8000 px: the header alone (RFC 9649, 3.4).
    bits = 0x2F | (7999 | 7999 << 14) << 8
    body = b"VP8L" + struct.pack("<I", 10) + bits.to_bytes(5, "little") + bytes(5)
    content = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    with pytest.raises(ImageError, match="too large: more than 52,000,000 pixels"):
        read_pixels(content, 32)
