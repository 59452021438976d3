"""The training loop: it learns, repeats exactly, counts every photo and stops at NaN."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from shopee_mlflow.config import TrainConfig
from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.data.transforms import transform_named
from shopee_mlflow.errors import ConfigError, TrainingError
from shopee_mlflow.modeling.architectures import build_model
from shopee_mlflow.modeling.device import Machine, choose_machine
from shopee_mlflow.modeling.distributed import Group
from shopee_mlflow.modeling.epochs import BestEpoch, Epoch
from shopee_mlflow.modeling.optim import learning_rate_curve
from shopee_mlflow.modeling.scoring import predict_logits
from shopee_mlflow.training.trainer import Trainer

CPU = Machine(torch.device("cpu"), "fp32")
EXACT = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr")
CONFIG = TrainConfig(model="cnn", epochs=3, lr=0.01, batch_size=4, augment="none", image_size=32)


def photos(count: int = 12, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Photos of one colour a class, with noise, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])[labels]
    noise = rng.integers(-25, 25, (count, 32, 32, 3))
    return (colours[:, None, None, :] + noise).clip(0, 255).astype(np.uint8), labels


def batches(size: int = 4, train: bool = False, augment: str = "none", seed: int = 0) -> Batches:
    pixels, labels = photos()
    return Batches(
        PixelSource(pixels),
        np.arange(len(labels)),
        labels,
        size,
        CPU.device,
        train,
        transform_named(augment),
        seed,
    )


def fit(
    module: nn.Module, train: Batches, val: Batches, config: TrainConfig, machine: Machine
) -> Iterator[Epoch]:
    return Trainer(module, train, val, config, machine).epochs()


def history(config: TrainConfig = CONFIG) -> list[Epoch]:
    torch.manual_seed(config.seed)
    model = build_model(config.model, ["r", "g", "b"], 32)
    train = batches(config.batch_size, train=True, augment=config.augment, seed=config.seed)
    return list(fit(model, train, batches(), config, CPU))


def values(epochs: list[Epoch]) -> list[tuple[float, ...]]:
    """All that does not depend on the clock."""
    return [tuple(e[name] for name in EXACT) for e in epochs]


class ToFloat(nn.Module):
    """Photos arrive as bytes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


def test_it_overfits_a_few_photos() -> None:
    last = history(dataclasses.replace(CONFIG, epochs=20, lr=0.03))[-1]
    assert last["train_accuracy"] == 1.0
    assert last["val_accuracy"] == 1.0
    assert last["train_loss"] < 0.1


def test_the_same_seed_repeats_exactly_and_another_does_not() -> None:
    config = dataclasses.replace(CONFIG, augment="original", label_smoothing=0.1, clip_norm=1.0)
    first = values(history(config))
    assert first == values(history(config))
    assert first != values(history(dataclasses.replace(config, seed=1)))


def test_dropout_repeats_too() -> None:
    config = dataclasses.replace(CONFIG, model="mobilenet_v3_small", epochs=1)
    assert values(history(config)) == values(history(config))


class Linear(nn.Module):
    """Logits as a linear map of all pixel values, 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3 * 32 * 32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255).flatten(1) @ self.weight.T


def test_golden_values() -> None:
    """Two steps of SGD with momentum and weight decay, worked out in numpy beside it."""
    config = dataclasses.replace(
        CONFIG, lr=0.001, schedule="constant", warmup_epochs=0, batch_size=12, epochs=2
    )
    epochs = list(fit(Linear(), batches(12, train=True), batches(), config, CPU))

    pixels, labels = photos()
    inputs = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1) / 255
    targets = np.eye(3)[labels]
    weight, velocity = np.zeros((3, inputs.shape[1])), 0.0
    losses = []
    for _ in range(3):
        logits = inputs @ weight.T
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        losses.append(-np.log((shares * targets).sum(axis=1)).mean())
        gradient = (shares - targets).T @ inputs / len(inputs) + config.weight_decay * weight
        velocity = config.momentum * velocity + gradient
        weight = weight - config.lr * velocity
    assert losses[0] == pytest.approx(np.log(3))
    seen = [epochs[0]["train_loss"], epochs[1]["train_loss"], epochs[1]["val_loss"]]
    assert seen == pytest.approx(losses, abs=1e-5)
    assert epochs[0]["val_loss"] == pytest.approx(losses[1], abs=1e-5)


def test_scores_count_each_photo_once_whatever_the_batch_size() -> None:
    torch.manual_seed(0)
    model = build_model("cnn", ["r", "g", "b"], 32)
    labels, logits = predict_logits(model, batches(12), CPU)
    for size in (1, 5, 7):
        again_labels, again = predict_logits(model, batches(size), CPU)
        assert (again_labels == labels).all()
        np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)


def test_validation_is_in_eval_mode_and_training_in_train_mode() -> None:
    modes: list[tuple[bool, bool]] = []

    class Watcher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return self.scale * torch.ones(len(images), 3)

    list(fit(Watcher(), batches(12, train=True), batches(12), CONFIG, CPU))
    assert modes == [(True, True), (False, False)] * 3


def test_a_loss_that_is_no_number_stops_with_advice() -> None:
    with pytest.raises(TrainingError, match="training diverged. Lower lr .* or set clip_norm=1"):
        history(dataclasses.replace(CONFIG, lr=100, schedule="constant", epochs=20))


def test_a_single_photo_that_batch_norm_cannot_learn_from_is_told() -> None:
    """What a group's process may have for its share of a small batch."""
    module = nn.Sequential(nn.Flatten(), ToFloat(), nn.Linear(3 * 32 * 32, 4), nn.BatchNorm1d(4))
    config = dataclasses.replace(CONFIG, batch_size=1)
    with pytest.raises(TrainingError, match="single photo .* Raise image_size or batch_size"):
        next(fit(module, batches(1, train=True), batches(), config, CPU))


def test_best_is_by_accuracy_then_loss_and_brings_its_weights_back() -> None:
    module = nn.Linear(1, 1)
    best = BestEpoch(module)
    epochs = [(0.5, 0.1), (0.8, 0.5), (0.8, 0.3), (0.8, 0.3), (0.7, 0.2)]
    for number, (accuracy, loss) in enumerate(epochs, start=1):
        module.weight.data.fill_(number)
        best.update(Epoch(number, {"val_loss": loss, "val_accuracy": accuracy}))
    assert best.load_weights().number == 3
    assert module.weight.item() == 3


def test_best_weights_of_layers_that_ask_for_their_version_come_back() -> None:
    model = build_model("mnasnet0_5", ["r", "g", "b"], 32)
    best = BestEpoch(model)
    best.update(Epoch(1, {"val_loss": 0.0, "val_accuracy": 0.5}))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    best.load_weights()
    for old, new in zip(before, model.parameters(), strict=True):
        assert torch.equal(old, new)


def test_cosine_with_warmup() -> None:
    config = TrainConfig(epochs=10, warmup_epochs=2)
    factor = learning_rate_curve(config, steps_per_epoch=5)
    curve = [factor(step) for step in range(50)]
    assert curve[0] == pytest.approx(1 / 11)
    assert all(a < b for a, b in pairwise(curve[:11]))
    assert curve[10] == 1.0
    assert curve[30] == pytest.approx(0.5)
    assert curve[-1] < 0.01


def test_constant_as_the_original() -> None:
    config = TrainConfig(epochs=3, warmup_epochs=0, schedule="constant")
    factor = learning_rate_curve(config, 4)
    assert [factor(step) for step in range(12)] == [1.0] * 12


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("gpu", "auto", "device=gpu: must be auto, cpu, cuda"),
        ("xla", "auto", "device=xla: must be auto, cpu, cuda"),
        ("cuda:99", "auto", "device=cuda:99: this machine has"),
        ("cpu", "fp16", "precision=fp16: the CPU trains in fp32 or bf16"),
    ],
)
def test_devices_that_are_not_there(device: str, precision: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_machine(device, precision)


def test_mixed_precision_trains_on_the_cpu() -> None:
    torch.manual_seed(0)
    model = build_model("cnn", ["r", "g", "b"], 32)
    machine = choose_machine("cpu", "bf16")
    config = dataclasses.replace(CONFIG, epochs=15, lr=0.03)
    last = list(fit(model, batches(4, train=True), batches(), config, machine))[-1]
    assert last["val_accuracy"] > 0.9
    assert next(model.parameters()).dtype == torch.float32


class OneOfTwo(Group):
    """The first of two processes, seen alone: the other one's share is left out."""

    def wrap(
        self,
        module: nn.Module,
        device: torch.device,
        sync_batchnorm: bool = False,
    ) -> nn.Module:
        return module

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def share_buffers(self, module: nn.Module) -> None:
        pass

    def gather(self, positions: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
        return list(columns)


def test_the_running_loss_of_several_processes_is_that_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each batch takes a second, so that the progress is reported after each.
    monkeypatch.setattr("time.perf_counter", itertools.count().__next__)
    model = build_model("cnn", ["r", "g", "b"], 32)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    train, val = (dataclasses.replace(batches(train=t), share=(0, 2)) for t in (True, False))
    config = dataclasses.replace(CONFIG, epochs=1, lr=1e-30)
    trainer = Trainer(model, train, val, config, CPU, group=OneOfTwo(0, 2))
    losses: list[float] = []
    list(trainer.epochs(lambda _done, loss, _accuracy: losses.append(loss)))
    # Equal logits: each photo's loss is log 3.
    assert losses == pytest.approx([math.log(3)] * 3)


def test_running_totals_of_another_device_are_restored_in_this_ones_precision() -> None:
    model = build_model(CONFIG.model, ["r", "g", "b"], 32)
    trainer = Trainer(model, batches(train=True), batches(), CONFIG, CPU)
    state = trainer.state()
    # MPS has no float64, so its checkpoints hold float32; and it cannot take float64 in.
    trainer.restore({**state, "totals": state["totals"].float()})
    assert trainer.state()["totals"].dtype == torch.float64
