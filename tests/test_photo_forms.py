"""Photos in any form: which cells of a table hold none, and the phash of each form."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import draw_photo
from PIL import Image

from shopee_mlflow.data.photo_forms import is_missing, phash_of_photo, read_photo


@pytest.mark.parametrize("cell", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, ""])
def test_cells_without_a_photo(cell: Any) -> None:
    assert is_missing(cell) is True


@pytest.mark.parametrize(
    "cell",
    [np.zeros((4, 4, 3), np.uint8), [[0, 1]], [], draw_photo(0, 0), Path("a.jpg"), "a.jpg", b"", 5],
)
def test_cells_that_hold_something(cell: Any) -> None:
    assert is_missing(cell) is False


def file_of(photo: Image.Image) -> bytes:
    stream = io.BytesIO()
    photo.save(stream, "JPEG")
    return stream.getvalue()


def test_the_phash_is_that_of_the_photo_in_any_form() -> None:
    content = file_of(draw_photo(0, 0, 64))
    photo = Image.open(io.BytesIO(content))
    pixels = np.asarray(photo)
    expected = phash_of_photo(content)
    assert len(expected) == 16
    for form in (photo, pixels, pixels.tolist(), pixels.astype(np.int64)):
        assert phash_of_photo(form) == expected


@pytest.mark.fault
@pytest.mark.parametrize(
    "array",
    [
        np.random.default_rng(0).random((32, 32, 3)),
        np.full((32, 32, 3), 300),
        np.full((32, 32), -1),
        np.zeros((32, 32, 5), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        [[1, 2], [3]],
        [["a"]],
    ],
)
def test_an_array_that_is_no_photo_has_no_phash(array: Any) -> None:
    assert phash_of_photo(array) == ""


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_a_truncated_photo_has_no_phash_in_any_form(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind)
    content = stream.getvalue()[: stream.tell() // 2]
    assert phash_of_photo(content) == ""
    try:
        photo = Image.open(io.BytesIO(content))
    except OSError:  # refused when it is opened, so it cannot be passed on
        return
    assert phash_of_photo(photo) == ""


@pytest.mark.parametrize(
    "written",
    [
        lambda text: text.translate(str.maketrans("+/", "-_")).rstrip("="),
        lambda text: f"\n {text[:9]}\n{text[9:]} ",
        lambda text: f" data:image/png; base64, {text}\n",
        lambda text: [text],
        lambda text: np.array([text]),
    ],
)
def test_base64_text_is_read_as_programs_write_it(written: Any) -> None:
    file = io.BytesIO()
    draw_photo(1, 6).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    assert "+" in text
    assert "/" in text
    assert (read_photo(written(text), 40) == np.asarray(draw_photo(1, 6))).all()
