"""What a python_function and a served model answer with: photos in any form -> label groups."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..data.images import pixels_from_array, read_pixels
from ..errors import ImageError
from ..modeling.inference import Prediction, Predictor

_LONGEST_PATH = 4096
# Columns of the answer; the second ones where more than the best is asked for.
_ANSWER, _BEST = ("label_group", "probability"), ("label_groups", "probabilities")


class PhotoClassifier:
    """Photos in any of their forms -> label groups with probabilities, one row a photo."""

    def __init__(
        self,
        model: torch.nn.Module,
        classes: Sequence[str],
        image_size: int,
        resize: str = "stretch",
        device: str = "cpu",
    ) -> None:
        self.predictor = Predictor(model, classes, device)
        self.image_size = image_size
        self.resize = resize

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
        k = min(max(int((params or {}).get("top_k", 1)), 1), len(self.predictor.classes))
        photos = _column(model_input)
        batches = self.predictor.predict(photos, self._decode, top_k=k)
        rows = [_row(one) for predictions in batches for one in predictions]
        return _frame(rows, [*_ANSWER, *(_BEST if k > 1 else ()), "error"], model_input.index)

    def _decode(self, photo: Any) -> np.ndarray:
        return read_photo(photo, self.image_size, self.resize)


def _row(prediction: Prediction) -> dict[str, Any]:
    if prediction.error is not None:
        return {"error": prediction.error}
    labels, probabilities = list(prediction.labels), list(prediction.probabilities)
    return {
        "label_group": labels[0],
        "probability": probabilities[0],
        "label_groups": labels,
        "probabilities": probabilities,
    }


def read_photo(photo: Any, size: int, resize: str = "stretch") -> np.ndarray:
    """One photo in any form that callers send -> (size, size, 3) uint8, by the project's one path.

    :param photo: a file path, the file's bytes, its base64 text, or an array (H, W, 3) uint8.
    :raises ImageError: when it is none of these, or does not decode.
    """
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return read_pixels(bytes(photo), size, resize)
    if isinstance(photo, (np.ndarray, list)):
        try:
            array = np.asarray(photo)
        except ValueError:
            raise ImageError("an array must have rows of equal length") from None
        return pixels_from_array(array, size, resize)
    if isinstance(photo, Path):
        return read_pixels(photo, size, resize)
    if not isinstance(photo, str) or not photo:
        raise ImageError(f"an image is a path, bytes, base64 text or an array, not {photo!r:.60}")
    if _is_file(photo):
        return read_pixels(Path(photo), size, resize)
    try:
        # Line breaks are what the command base64 puts into its output.
        content = base64.b64decode("".join(photo.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"no such file, and no base64 text: {photo:.60}") from None
    try:
        return read_pixels(content, size, resize)
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
