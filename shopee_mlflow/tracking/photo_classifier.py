"""What a python_function and a served model answer with: photos in any form -> label groups."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data.images import pixels_from_array, read_pixels
from ..errors import ImageError
from ..modeling.inference import FastClassifier

_BATCH = 32
_LONGEST_PATH = 4096
# Columns of the answer; the second ones where more than the best is asked for.
_ANSWER, _BEST = ("label_group", "probability"), ("label_groups", "probabilities")


class PhotoClassifier:
    """Photos in any of their forms -> label groups with probabilities, one row a photo."""

    def __init__(
        self, model: torch.nn.Module, classes: Sequence[str], image_size: int, device: str = "cpu"
    ) -> None:
        self.network = FastClassifier(model, device)
        self.classes = list(classes)
        self.image_size = image_size

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify the photos of the column ``image``.

        :param model_input: column ``image`` with file paths, the file's bytes, its base64 text, or
            arrays (H, W, 3) uint8; forms may be mixed.
        :param params: ``top_k``: how many of the best label groups to give.
        :returns: label_group, probability and error, a row a photo; with ``top_k`` above 1 also
            ``label_groups`` and ``probabilities``, the best first. A photo that cannot be read
            has the reason in ``error`` and None elsewhere; the others have their answers.
        """
        k = min(max(int((params or {}).get("top_k", 1)), 1), len(self.classes))
        rows: list[dict[str, Any]] = []
        with ThreadPoolExecutor() as pool:
            for part in _in_batches(_column(model_input), _BATCH):
                pixels = list(pool.map(self._pixels_or_error, part))
                rows += self._classify(pixels, k)
        return _frame(rows, [*_ANSWER, *(_BEST if k > 1 else ()), "error"], model_input.index)

    def _pixels_or_error(self, photo: Any) -> np.ndarray | str:
        try:
            return read_photo(photo, self.image_size)
        except ImageError as error:
            return str(error)

    def _classify(self, pixels: Sequence[np.ndarray | str], k: int) -> list[dict[str, Any]]:
        good = [p for p in pixels if isinstance(p, np.ndarray)]
        answers = iter(self._answers(good, k) if good else [])
        return [next(answers) if isinstance(p, np.ndarray) else {"error": p} for p in pixels]

    def _answers(self, pixels: Sequence[np.ndarray], k: int) -> Iterator[dict[str, Any]]:
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        probabilities = torch.softmax(self.network(images).double(), dim=1)
        values, positions = (part.tolist() for part in probabilities.topk(k, dim=1))
        for value, position in zip(values, positions, strict=True):
            names = [self.classes[i] for i in position]
            yield {
                "label_group": names[0],
                "probability": value[0],
                "label_groups": names,
                "probabilities": value,
            }


def read_photo(photo: Any, size: int) -> np.ndarray:
    """One photo in any form that callers send -> (size, size, 3) uint8, by the project's one path.

    :param photo: a file path, the file's bytes, its base64 text, or an array (H, W, 3) uint8.
    :raises ImageError: when it is none of these, or does not decode.
    """
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return read_pixels(bytes(photo), size)
    if isinstance(photo, (np.ndarray, list)):
        try:
            array = np.asarray(photo)
        except ValueError:
            raise ImageError("an array must have rows of equal length") from None
        return pixels_from_array(array, size)
    if isinstance(photo, Path):
        return read_pixels(photo, size)
    if not isinstance(photo, str) or not photo:
        raise ImageError(f"an image is a path, bytes, base64 text or an array, not {photo!r:.60}")
    if _is_file(photo):
        return read_pixels(Path(photo), size)
    try:
        # Line breaks are what the command base64 puts into its output.
        content = base64.b64decode("".join(photo.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"no such file, and no base64 text: {photo:.60}") from None
    try:
        return read_pixels(content, size)
    except ImageError as error:
        raise ImageError(f"no such file, and as base64 text: {error} ({photo:.60})") from error


def _is_file(text: str) -> bool:
    """False for what is longer than any path: a whole encoded photo."""
    try:
        return len(text) < _LONGEST_PATH and Path(text).is_file()
    except OSError:
        # A part of it is longer than any file name.
        return False


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], index: Any) -> pd.DataFrame:
    """A column keeps its None, which a server must send as null: NaN is no JSON."""
    table = {
        name: pd.Series([row.get(name) for row in rows], index=index, dtype=object)
        for name in columns
    }
    frame = pd.DataFrame(table, index=index)
    if frame["probability"].notna().all():
        frame["probability"] = frame["probability"].astype(float)
    return frame


def _column(frame: Any) -> list[Any]:
    if isinstance(frame, pd.DataFrame) and "image" in frame:
        return frame["image"].tolist()
    found = list(frame.columns) if isinstance(frame, pd.DataFrame) else type(frame).__name__
    raise ValueError(f"predict takes a DataFrame with a column 'image'; got {found}")


def _in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
