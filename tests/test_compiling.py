"""torch.compile: used on request or when it saves time, with the same results."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shopee_mlflow.config import TrainConfig
from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.modeling import compiling
from shopee_mlflow.modeling.compiling import compile_step, training_operations
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.training.trainer import Trainer

CPU = Machine(torch.device("cpu"), "fp32")
CONFIG = TrainConfig(model="cnn", epochs=2, lr=0.01, batch_size=4, augment="none", image_size=32)
EXAMPLE = torch.zeros(1, 3, 4, 4)
PHOTOS = 10


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.fixture
def has_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_lacking", lambda _: "")


def step_of(module: nn.Module, choice: str, epochs: int = 2) -> Callable[[Tensor], Tensor] | None:
    config = dataclasses.replace(CONFIG, compile=choice, epochs=epochs)
    return compile_step(module, EXAMPLE, PHOTOS, config, CPU)


def test_operations_are_counted(module: nn.Module) -> None:
    forward = 2 * 48 * 5 + 2 * 5 * 3
    assert training_operations(module, EXAMPLE) == 3 * forward
    assert module.training


@pytest.mark.usefixtures("has_compiler")
def test_auto_compiles_long_runs_only(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    an_epoch = 3 * 510 * PHOTOS
    monkeypatch.setattr(compiling, "_PAYS_FROM", {"cpu": 5 * an_epoch})
    assert step_of(module, "auto", epochs=5) is None
    assert step_of(module, "auto", epochs=6) is not None
    assert step_of(module, "false", epochs=6) is None
    assert step_of(module, "true", epochs=1) is not None


def test_without_a_compiler(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_PAYS_FROM", {"cpu": 0.0})
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert step_of(module, "auto") is None
    with pytest.raises(ConfigError, match=r"compile=true: .*C\+\+ compiler \(no-such-compiler\)"):
        step_of(module, "true")


@pytest.mark.usefixtures("has_compiler")
def test_a_failed_compilation(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cannot(_: nn.Module) -> Callable[[Tensor], Tensor]:
        def fail(_: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no such thing\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", cannot)
    monkeypatch.setattr(compiling, "_PAYS_FROM", {"cpu": 0.0})
    inputs = torch.rand(4, 3, 4, 4)
    step = step_of(module.eval(), "auto")
    assert step is not None
    with caplog.at_level(logging.WARNING):
        assert torch.equal(step(inputs), module(inputs))
        assert torch.equal(step(inputs), module(inputs))
    assert caplog.messages == ["torch.compile failed, training continues without it: no such thing"]
    must = step_of(module, "true")
    assert must is not None
    with pytest.raises(ConfigError, match="compile=true: torch.compile failed: no such thing"):
        must(inputs)


def batches(size: int, train: bool = False) -> Batches:
    pixels = np.random.default_rng(0).integers(0, 256, (PHOTOS, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(PHOTOS) % 3
    device = torch.device("cpu")
    return Batches(PixelSource(pixels), np.arange(PHOTOS), labels, size, device, train=train)


class Scaled(nn.Module):
    """Pixels as a network takes them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images.float() / 255)


def test_the_last_smaller_batch_goes_uncompiled(module: nn.Module) -> None:
    whole = Scaled(module)
    sizes = []

    def step(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        return whole(inputs)

    trainer = Trainer(whole, batches(4, train=True), batches(8), CONFIG, CPU, compiled=step)
    with_step = list(trainer.epochs())
    assert sizes == [4, 4] * 2
    assert [epoch.number for epoch in with_step] == [1, 2]


@pytest.mark.slow
def test_a_compiled_training_gives_the_same() -> None:
    if compiling._lacking("cpu"):
        pytest.skip(compiling._lacking("cpu"))
    histories = []
    for choice in ("false", "true"):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        whole = Scaled(layers)
        config = dataclasses.replace(CONFIG, compile=choice)
        step = compile_step(whole, EXAMPLE, PHOTOS, config, CPU)
        trainer = Trainer(whole, batches(4, train=True), batches(8), config, CPU, compiled=step)
        histories.append([(e["train_loss"], e["val_loss"]) for e in trainer.epochs()])
    assert histories[0] == [pytest.approx(pair, rel=1e-4) for pair in histories[1]]
