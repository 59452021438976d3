"""Inference: a stream of photos, decoded ahead of the network in bounded memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from shopee_mlflow.errors import ImageError
from shopee_mlflow.modeling.inference import BATCH, Predictor, decode_ahead

CLASSES = ["dark", "light", "other"]


class Brightness(torch.nn.Module):
    """Logits that follow from a photo's mean: dark below 128, light above."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        light = images.float().mean(dim=(1, 2, 3)) / 128 - 1
        return torch.stack([-light, light, torch.full_like(light, -9)], dim=1)


def grey(value: int) -> np.ndarray:
    if value < 0:
        raise ImageError(f"no photo {value}")
    return np.full((4, 4, 3), value, np.uint8)


def test_predictions_come_in_order_with_errors_in_their_places() -> None:
    values = [0, 255, -1, *[200] * BATCH, -2]
    batches = list(Predictor(Brightness(), CLASSES).predict(values, grey, top_k=2))
    assert [len(batch) for batch in batches] == [BATCH, len(values) - BATCH]
    first, second, bad, *rest, last = [one for batch in batches for one in batch]
    assert first.labels == ["dark", "light"]
    assert second.labels == ["light", "dark"]
    expected = torch.softmax(torch.tensor([1.0, -1.0, -9.0]), 0)[:2]
    assert list(first.probabilities) == pytest.approx(expected.tolist(), abs=1e-6)
    assert (bad.error, last.error) == ("no photo -1", "no photo -2")
    assert list(bad.labels) == []
    assert {tuple(one.labels) for one in rest} == {("light", "dark")}


def test_no_photos_and_only_bad_photos() -> None:
    predictor = Predictor(Brightness(), CLASSES)
    assert list(predictor.predict([], grey)) == []
    ((bad,),) = predictor.predict([-1], grey)
    assert bad.error == "no photo -1"
    assert predictor.logits([], grey).shape == (0, 3)
    with pytest.raises(ImageError, match="no photo -1"):
        predictor.logits([3, -1], grey)


def test_equal_probabilities_keep_the_order_of_the_classes() -> None:
    class Same(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), 40)

    classes = [str(i) for i in range(40)]
    ((only,),) = Predictor(Same(), classes).predict([1], grey, top_k=99)
    assert only.labels == classes


def test_no_more_than_three_batches_are_in_memory() -> None:
    """Photos that were taken from the source, the batch in use included."""
    lock = threading.Lock()
    taken = 0

    def photos() -> Iterator[int]:
        nonlocal taken
        for value in range(10 * BATCH):
            with lock:
                taken += 1
            yield value % 256

    used = most = 0
    for batch in decode_ahead(photos(), grey, workers=4):
        most = max(most, taken - used)
        used += len(batch)
    assert used == 10 * BATCH
    assert BATCH < most <= 3 * BATCH


def test_an_error_of_the_decoder_other_than_a_bad_photo_ends_the_stream() -> None:
    def decode(value: int) -> np.ndarray:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        list(decode_ahead([1, 2], decode))
