"""The original experiment's faulty accuracy, reproduced, and the correct one.

``docs/original.md`` tells the story; these tests hold its figures.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shopee_mlflow import score, wilson_interval
from shopee_mlflow.config import TrainConfig, resolve
from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.scoring import predict_logits

PHOTOS = 82
CLASSES = 21
SIDE = 8
# Of the 82 answers these are wrong: one of the first 75, two of the last seven.
WRONG = [40, 76, 80]
LABELS = np.arange(PHOTOS) % CLASSES
ANSWERS = np.where(np.isin(np.arange(PHOTOS), WRONG), (LABELS + 1) % CLASSES, LABELS)
CPU = Machine(torch.device("cpu"), "fp32")
ROOT = Path(__file__).parents[1]
STORY = ROOT / "docs" / "original.md"
# The settings of all its runs.
SETTINGS = {
    "epochs": 50,
    "optimizer": "sgd",
    "lr": 0.001,
    "momentum": 0.9,
    "nesterov": False,
    "schedule": "constant",
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "freeze": "none",
    "resize": "stretch",
}


class ReadsTheAnswer(nn.Module):
    """A model whose answers are known: the class is the brightness of the photo."""

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> (N, 21) logits."""
        shown = images.float().mean(dim=(1, 2, 3)).round().long()
        return nn.functional.one_hot(shown, CLASSES).float()


def original_test_accuracy(model: nn.Module, batches: Batches) -> float:
    """The original's test loop: it returns inside the loop, and divides by all test photos."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for batch in batches.epoch():
            correct += int((model(batch.inputs).argmax(dim=1) == batch.labels).sum())
            return correct / batches.photos
    raise AssertionError("no batch")


def photos_that_show(answers: np.ndarray, batch_size: int) -> Batches:
    """Test photos to which :class:`ReadsTheAnswer` answers as given, labelled truthfully."""
    shape = (len(answers), SIDE, SIDE, 3)
    pixels = np.broadcast_to(answers[:, None, None, None], shape).astype(np.uint8)
    rows = np.arange(len(answers))
    return Batches(PixelSource(pixels), rows, LABELS, batch_size, CPU.device)


def right_accuracy(batches: Batches) -> float:
    """This project's way: logits of every photo first, then one score over all."""
    labels, logits = predict_logits(ReadsTheAnswer(), batches, CPU)
    return score(labels, logits)["accuracy"]


def test_batch_75_with_74_right_was_told_as_90_percent() -> None:
    batches = photos_that_show(ANSWERS, 75)
    told = original_test_accuracy(ReadsTheAnswer(), batches)
    assert told == 74 / 82
    assert f"{told:.2%}" == "90.24%"

    labels, logits = predict_logits(ReadsTheAnswer(), batches, CPU)
    scored = score(labels[:75], logits[:75])
    assert scored["accuracy"] == 74 / 75
    assert (scored["accuracy_low"], scored["accuracy_high"]) == wilson_interval(74, 75)


@pytest.mark.parametrize(("batch_size", "ceiling"), [(75, "91.5%"), (32, "39.0%"), (82, "100.0%")])
def test_a_model_without_mistakes_met_a_ceiling(batch_size: int, ceiling: str) -> None:
    told = original_test_accuracy(ReadsTheAnswer(), photos_that_show(LABELS, batch_size))
    assert told == batch_size / PHOTOS
    assert f"{told:.1%}" == ceiling
    assert right_accuracy(photos_that_show(LABELS, batch_size)) == 1.0


def test_the_batch_size_alone_raised_the_original_figure() -> None:
    """The same model, the same photos: only the batch size differs."""
    told = {
        size: original_test_accuracy(ReadsTheAnswer(), photos_that_show(ANSWERS, size))
        for size in (16, 32, 75)
    }
    assert told == {16: 16 / 82, 32: 32 / 82, 75: 74 / 82}


@pytest.mark.parametrize("batch_size", [1, 7, 32, 75, 81, 82, 200])
def test_the_right_accuracy_does_not_depend_on_the_batch_size(batch_size: int) -> None:
    assert right_accuracy(photos_that_show(ANSWERS, batch_size)) == (PHOTOS - len(WRONG)) / PHOTOS


def test_every_photo_is_scored_once_and_in_order() -> None:
    labels, logits = predict_logits(ReadsTheAnswer(), photos_that_show(ANSWERS, 32), CPU)
    assert labels.tolist() == LABELS.tolist()
    assert logits.argmax(axis=1).tolist() == ANSWERS.tolist()


def test_the_intervals_in_the_story_are_wilsons() -> None:
    """Wherever docs/original.md says '74 of 75: 98.7 % (92.8 to 99.8 %)', that is computed."""
    text = " ".join(STORY.read_text(encoding="utf-8").split())
    claim = re.compile(r"(\d+) of (\d+): ([\d.]+) % \(([\d.]+) to ([\d.]+) %\)")
    found = claim.findall(text)
    assert ("74", "75") in [(correct, total) for correct, total, *_ in found]
    assert len(found) >= 5
    for correct, total, *figures in found:
        right, of = int(correct), int(total)
        expected = [f"{100 * value:.1f}" for value in (right / of, *wilson_interval(right, of))]
        assert figures == expected, f"{correct} of {total}"


@pytest.mark.parametrize(
    ("name", "model", "augment", "weight_decay", "batch_size"),
    [
        ("cnn", "cnn", "none", 1e-4, 32),
        ("cnn_augmented", "cnn", "original", 1e-3, 32),
        ("effnet", "effnet", "none", 1e-4, 32),
        ("effnet_pretrained", "effnet_pretrained", "none", 1e-4, 32),
        ("effnet_pretrained_batch75", "effnet_pretrained", "none", 1e-4, 75),
    ],
)
def test_the_experiments_have_the_originals_settings_whatever_the_defaults_are(
    name: str, model: str, augment: str, weight_decay: float, batch_size: int
) -> None:
    config = resolve(TrainConfig, {"config": str(ROOT / "experiments" / f"{name}.yaml")})
    found = {option: getattr(config, option) for option in SETTINGS}
    assert found == SETTINGS
    varied = (config.model, config.augment, config.weight_decay, config.batch_size)
    assert varied == (model, augment, weight_decay, batch_size)
