"""Accumulated gradients: several batches are one step; impossible steps are refused early."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from conftest import MakeCatalog
from small_batches import small_batches
from torch import Tensor, nn

from shopee_mlflow import train
from shopee_mlflow.config import TrainConfig, resolve
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.errors import CatalogError, ConfigError
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.distributed import Group
from shopee_mlflow.modeling.loss import CrossEntropy
from shopee_mlflow.training.trainer import Trainer

CPU = Machine(torch.device("cpu"), "fp32")
CONFIG = TrainConfig(model="cnn", epochs=2, batch_size=4, lr=0.01, image_size=32)
EXACT = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr")
LOSS = CrossEntropy(0.1, torch.tensor([0.5, 1.0, 4.0]))


def trainer(config: TrainConfig, module: nn.Module, photos: int) -> Trainer:
    train = small_batches(photos, 3, config.batch_size * config.accumulate, train=True)
    return Trainer(module, train, small_batches(photos, 3, 8), config, CPU, loss=LOSS)


class Counting(nn.Module):
    """A linear map, which counts photos a pass; without batch norm, so that parts add up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 3)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(len(images))
        return self.layer(images.float().flatten(1) / 255)


@pytest.mark.parametrize(
    ("photos", "passes"), [(12, [4, 4, 4]), (11, [4, 4, 3]), (14, [4, 4, 4, 2]), (13, [5, 4, 4])]
)
def test_accumulated_batches_are_one_step(photos: int, passes: list[int]) -> None:
    accumulated, whole = Counting(), Counting()
    config = dataclasses.replace(CONFIG, accumulate=3)
    parts = list(trainer(config, accumulated, photos).epochs())
    config = dataclasses.replace(CONFIG, batch_size=12)
    expected = list(trainer(config, whole, photos).epochs())
    assert accumulated.seen == passes * 2
    torch.testing.assert_close(accumulated.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)
    for one, other in zip(parts, expected, strict=True):
        for name in EXACT:
            assert one[name] == pytest.approx(other[name], rel=1e-5), name


class Share(Group):
    """A process of two; the other one is not there."""

    def wrap(self, module: nn.Module, *_: Any) -> nn.Module:
        return module


def test_accumulated_gradients_are_exact_over_processes() -> None:
    """The mean of two processes' gradients is that of one process with the whole step."""

    def gradients(group: Group) -> list[Tensor]:
        module = Counting()
        config = dataclasses.replace(CONFIG, accumulate=3)
        train = small_batches(11, 3, 12, train=True, share=(group.rank, group.size))
        training = Trainer(module, train, train, config, CPU, loss=LOSS, group=group)
        training._gradients(next(train.epoch(1)))
        assert len(module.seen) > 1
        return [p.grad for p in module.parameters() if p.grad is not None]

    pairs = zip(gradients(Share(0, 2)), gradients(Share(1, 2)), strict=True)
    for expected, (first, second) in zip(gradients(Group()), pairs, strict=True):
        torch.testing.assert_close((first + second) / 2, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.fault
@pytest.mark.slow
def test_a_step_longer_than_an_epoch_is_refused_before_decoding(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": str(make_catalog()), "model": "cnn", "image_size": "32"}
    options |= {"batch_size": "10", "epochs": "1"}
    # 24 photos are three batches, of which two are for training.
    config = resolve(TrainConfig, {**options, "accumulate": "3"})
    with pytest.raises(ConfigError, match="accumulate=3: an epoch of .. photos has 2 batches of"):
        train(config)
    monkeypatch.setattr("shopee_mlflow.data.dataset.load_pixels", None)
    config = resolve(TrainConfig, {**options, "accumulate": "4"})
    with pytest.raises(ConfigError, match="accumulate=4: an epoch of 24 photos has 3 batches of"):
        train(config)


def test_a_single_label_is_refused_before_decoding(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopee_mlflow.data.dataset.load_pixels", None)
    config = resolve(TrainConfig, {"data": str(make_catalog(groups=1)), "mix": "mixup"})
    with pytest.raises(CatalogError, match="needs two label groups .* 1 is left"):
        load_dataset(config)
