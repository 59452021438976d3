"""Out of memory: a batch is split, and the step equals that of the whole batch."""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
import pytest
import torch
from small_batches import small_batches
from torch import Tensor, nn
from warm_process import WarmProcess

from shopee_mlflow.config import TrainConfig
from shopee_mlflow.data.batches import Batches
from shopee_mlflow.errors import TrainingError
from shopee_mlflow.modeling.architectures import build_model
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.distributed import ALONE, Group
from shopee_mlflow.modeling.scoring import predict_logits
from shopee_mlflow.training.trainer import Trainer

CPU = Machine(torch.device("cpu"), "fp32")
PHOTOS, CLASSES, SIZE = 11, ["a", "b", "c"], 8


@pytest.fixture(autouse=True)
def nothing_to_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search for garbage among all that tests have imported takes a second."""
    for module in ("training.trainer", "modeling.scoring"):
        monkeypatch.setattr(f"shopee_mlflow.{module}.free_memory", lambda _: None)


class SmallMemory(nn.Module):
    """Runs out of memory with more photos than a number, as CUDA and the CPU say it in turn."""

    def __init__(self, module: nn.Module, photos: int) -> None:
        super().__init__()
        self.module, self.photos, self.failed = module, photos, 0

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.photos:
            self.failed += 1
            if self.failed % 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB\nmore")
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        return self.module(images)


def batches(size: int, train: bool = False) -> Batches:
    return small_batches(PHOTOS, len(CLASSES), size, train)


class Pair(Group):
    """Two processes, of which only this one is there."""

    def wrap(self, module: nn.Module, device: torch.device, sync_batchnorm: bool = False) -> Any:
        assert device.type == "cpu"
        assert not sync_batchnorm
        return module


def training(photos: int, precision: str = "fp32", group: Group = ALONE) -> Trainer:
    """Without batch norm, so that parts give what the whole gives."""
    torch.manual_seed(0)
    config = TrainConfig(model="cnn", epochs=3, lr=0.01, batch_size=SIZE, clip_norm=1.0)
    module = SmallMemory(build_model("cnn", CLASSES, 32), photos)
    machine = Machine(torch.device("cpu"), precision)
    return Trainer(module, batches(SIZE, train=True), batches(SIZE), config, machine, group=group)


@pytest.mark.fault
def test_a_batch_in_parts_is_the_same_step(caplog: pytest.LogCaptureFixture) -> None:
    whole = list(training(SIZE).epochs())
    small = training(photos=3)
    with caplog.at_level(logging.WARNING):
        parts = list(small.epochs())
    assert small.part == 2  # 8, 4, 2
    for one, other in zip(whole, parts, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    told = [m for m in caplog.messages if "Out of memory" in m]
    assert len(told) == 2
    assert "with 8 photos at a time: now using 4" in told[0]
    assert "a batch of 8." in told[1]
    assert "batch_size=2 fits without this" in told[1]


def test_a_smaller_last_batch_may_be_the_one_that_does_not_fit() -> None:
    small = training(photos=2)
    list(small.epochs())
    assert small.part == 2


def test_parts_are_kept_when_a_training_goes_on() -> None:
    before, after = training(photos=3), training(photos=3)
    next(before.epochs())
    after.restore(before.state())
    assert after.part == 2


@pytest.mark.fault
def test_in_a_group_a_batch_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(TrainingError, match="with 8 photos at a time .*start more of them"):
        next(training(photos=3, group=Pair(0, 2)).epochs())


def test_a_group_takes_whole_batches_of_what_one_took_in_parts() -> None:
    before, after = training(photos=3), training(photos=SIZE, group=Pair(0, 2))
    next(before.epochs())
    assert before.part == 2
    after.restore(before.state())
    assert after.part == SIZE + 1


@pytest.mark.fault
def test_not_even_one_photo_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(TrainingError, match="Not even a single photo fits .*Lower image_size"):
        next(training(photos=0).epochs())


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    small = training(photos=SIZE)
    monkeypatch.setattr(small.module, "forward", lambda images: images.view(7, 7, 7))
    with pytest.raises(RuntimeError, match="shape"):
        next(small.epochs())


@pytest.mark.fault
def test_answers_are_asked_for_in_halves() -> None:
    module = build_model("cnn", CLASSES, 32).eval()
    _, expected = predict_logits(module, batches(PHOTOS), CPU)
    _, logits = predict_logits(SmallMemory(module, 2), batches(PHOTOS), CPU)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="memory"):
        predict_logits(SmallMemory(module, 0), batches(PHOTOS), CPU)


# 64 photos of 128 px give 256 MiB after one convolution, and training holds several of that.
REAL = """
import logging, resource, numpy as np, psutil, torch
from torch import nn
from shopee_mlflow.config import TrainConfig
from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.training.trainer import Trainer
from shopee_mlflow.modeling.device import Machine
logging.disable()
torch.set_num_threads(1)
pixels = np.zeros((64, 128, 128, 3), np.uint8)
device = torch.device("cpu")
batches = Batches(PixelSource(pixels), np.arange(64), np.arange(64) % 2, 64, device)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(),
                                    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    def forward(self, images):
        return self.layers(images.float() / 255)
config = TrainConfig(batch_size=64, epochs=1)
training = Trainer(Net(), batches, batches, config, Machine(device, "fp32"))
limit = psutil.Process().memory_info().vms + 500 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
(epoch,) = training.epochs()
print(training.part)
"""


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_a_real_limit_of_the_memory() -> None:
    process = WarmProcess("-c", REAL)
    said, _ = process.communicate(timeout=120)
    assert process.wait() == 0, said
    assert 1 <= int(said) < 64
