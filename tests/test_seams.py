"""Optimizers, losses, transforms and metrics: a second one of each works like the first."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeCatalog
from small_batches import small_batches
from torch import nn

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.data.transforms import transform_named
from shopee_mlflow.errors import CheckpointError, ConfigError, TrainingError
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.distributed import Group
from shopee_mlflow.modeling.epochs import EPOCH_METRICS, BestEpoch, Epoch, epochs_without_progress
from shopee_mlflow.modeling.loss import CrossEntropy, balanced_weights
from shopee_mlflow.modeling.metrics import macro_f1
from shopee_mlflow.tracking.run_log import NullRunLog
from shopee_mlflow.training.context import TrainingContext
from shopee_mlflow.training.results import log_training
from shopee_mlflow.training.session import TrainingSession
from shopee_mlflow.training.trainer import Trainer

CPU = Machine(torch.device("cpu"), "fp32")
CONFIG = TrainConfig(model="cnn", epochs=2, batch_size=8, lr=0.01, image_size=32, augment="none")
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


class Linear(nn.Module):
    """Logits as a linear map of all pixels: gradients of photos simply add up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 3)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.float().flatten(1) / 255)


def trained(config: TrainConfig, **settings: Any) -> tuple[Linear, list[Epoch]]:
    module = Linear()
    train = small_batches(11, 3, config.batch_size, train=True)
    trainer = Trainer(module, train, small_batches(11, 3, 8), config, CPU, **settings)
    return module, list(trainer.epochs())


# --- optimizer ---


def test_adamw_takes_torchs_steps() -> None:
    config = dataclasses.replace(CONFIG, optimizer="adamw", weight_decay=0.1)
    module, _ = trained(config)
    expected = Linear()
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.01, weight_decay=0.1)
    batches = small_batches(11, 3, 8, train=True)
    # Two epochs of two steps: the warm-up of one epoch, then half a cosine.
    factors = [1 / 3, 2 / 3, 1.0, 0.5]
    steps = [batch for number in (1, 2) for batch in batches.epoch(number)]
    for factor, batch in zip(factors, steps, strict=True):
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        optimizer.zero_grad()
        nn.functional.cross_entropy(expected(batch.inputs), batch.labels).backward()
        optimizer.step()
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-6)


# --- loss ---


def test_weighted_loss_is_torchs() -> None:
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 2, 1, 0, 0])
    loss = CrossEntropy(0.1, WEIGHTS)
    expected = nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1)(logits, labels)
    assert float(loss.sum(logits, labels)) / loss.normaliser(labels) == pytest.approx(
        float(expected), rel=1e-6
    )
    plain = CrossEntropy()
    assert plain.normaliser(labels) == 7
    expected = nn.functional.cross_entropy(logits, labels)
    assert float(plain.sum(logits, labels)) / 7 == pytest.approx(float(expected), rel=1e-6)


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 3).numpy(), expected, rtol=1e-6)
    with pytest.raises(TrainingError, match="1 label groups have no training photo"):
        balanced_weights(labels, 4)


def test_class_weights_are_exact_in_parts_of_a_batch() -> None:
    whole, epochs = trained(CONFIG, loss=CrossEntropy(0.1, WEIGHTS))
    module = Linear()
    batches, val = small_batches(11, 3, 8, train=True), small_batches(11, 3, 8)
    trainer = Trainer(module, batches, val, CONFIG, CPU, loss=CrossEntropy(0.1, WEIGHTS))
    trainer.part = 3
    again = list(trainer.epochs())
    torch.testing.assert_close(module.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)
    for one, other in zip(epochs, again, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


class Share(Group):
    """A process of several, the others of which are not there: gradients are its own."""

    def wrap(self, module: nn.Module, *_: Any) -> nn.Module:
        return module

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


def test_class_weights_are_exact_over_processes() -> None:
    """The mean of two processes' gradients is that of one process with the whole batch."""

    def gradients(rank: int, size: int) -> list[torch.Tensor]:
        module = Linear()
        group = Share(rank, size) if size > 1 else Group()
        whole = small_batches(11, 3, 11, train=True)
        train = dataclasses.replace(whole, share=(rank, size))
        config = dataclasses.replace(CONFIG, batch_size=11)
        loss = CrossEntropy(0.1, WEIGHTS)
        trainer = Trainer(module, train, train, config, CPU, loss=loss, group=group)
        trainer._gradients(next(train.epoch(1)))
        return [p.grad for p in module.parameters() if p.grad is not None]

    alone = gradients(0, 1)
    pairs = zip(gradients(0, 2), gradients(1, 2), strict=True)
    for expected, (first, second) in zip(alone, pairs, strict=True):
        torch.testing.assert_close((first + second) / 2, expected, rtol=1e-5, atol=1e-7)


# --- transform ---


def test_random_crops_are_parts_of_the_photo_and_follow_from_the_seed() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), dtype=np.uint8)
    batches = Batches(
        PixelSource(pixels),
        np.arange(9),
        np.arange(9),
        9,
        torch.device("cpu"),
        transform=transform_named("crop"),
        seed=3,
    )
    (first,), (again,), (other,) = (list(batches.epoch(number)) for number in (1, 1, 2))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
    assert first.inputs.shape == (9, 3, 24, 24)
    assert first.inputs.dtype == torch.uint8


def test_former_values_answer_with_the_present_ones() -> None:
    with pytest.raises(ConfigError, match="augment=true: is now augment=original"):
        resolve(TrainConfig, {"augment": "true"})
    with pytest.raises(ConfigError, match="augment=false: is now augment=none"):
        TrainConfig(augment=False)  # type: ignore[arg-type]


# --- metric ---


def test_the_best_epoch_is_the_best_by_the_monitored_metric() -> None:
    values = [(0.9, 0.5), (0.8, 0.7), (0.7, 0.6)]
    epochs = [
        Epoch(number, {"val_accuracy": accuracy, "val_macro_f1": f1, "val_loss": 1.0})
        for number, (accuracy, f1) in enumerate(values, start=1)
    ]
    best = BestEpoch(nn.Linear(1, 1), "val_macro_f1")
    assert [best.update(epoch) for epoch in epochs] == [True, True, False]
    assert best.scores() == {
        "best_val_accuracy": 0.8,
        "best_val_macro_f1": 0.7,
        "best_epoch": 2.0,
    }
    assert epochs_without_progress(epochs, "val_macro_f1") == 1
    assert epochs_without_progress(epochs) == 2


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_macro_f1_is_scikit_learns(classes: int) -> None:
    from sklearn.metrics import f1_score

    labels, predicted = np.random.default_rng(classes).integers(0, classes, (2, 30))
    expected = f1_score(labels, predicted, average="macro", zero_division=0.0)
    assert macro_f1(labels, predicted) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
def test_a_training_with_all_second_members(make_catalog: MakeCatalog) -> None:
    options = {
        "data": str(make_catalog()),
        "model": "cnn",
        "image_size": "32",
        "epochs": "2",
        "batch_size": "8",
        "optimizer": "adamw",
        "lr": "0.001",
        "class_weights": "balanced",
        "augment": "crop",
        "monitor": "val_macro_f1",
    }
    result = train(resolve(TrainConfig, options))
    assert {"val_macro_f1", "val_accuracy"} <= set(result.history.columns)
    best = result.history.loc[result.history["epoch"] == result.scores["best_epoch"]]
    assert result.scores["best_val_macro_f1"] == best["val_macro_f1"].item()
    assert result.scores["best_val_macro_f1"] == result.history["val_macro_f1"].max()


# --- run log ---


class Silent:
    """Progress that shows nothing."""

    def batch(self, *_: object) -> None:
        """Do nothing."""

    def epoch(self, *_: object) -> None:
        """Do nothing."""


@pytest.mark.slow
def test_a_session_trains_without_a_store(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    config = dataclasses.replace(CONFIG, data=str(make_catalog()), epochs=3)
    context = TrainingContext(load_dataset(config), CPU)
    session = TrainingSession(config, context, NullRunLog())
    session.fit(Silent(), prune=lambda epoch: epoch.number == 2)
    assert session.pruned
    assert [epoch.number for epoch in session.history] == [1, 2]
    assert set(session.history_table().columns) == {"epoch", *EPOCH_METRICS}
    test = session.test()
    assert test.logits.shape == (len(test.labels), 3)
    assert log_training(session, test, 1.0) == ""


# --- option roles, and what was once accepted ---


def test_an_epoch_of_another_version_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="history does not match this version"):
        Epoch.from_state({"number": 1, "train_loss": 0.5, "val_loss": 0.5})


@pytest.mark.parametrize("value", [nn.Linear(3, 3), None, ["cnn"], {"a": 1}])
def test_a_text_option_takes_text(value: Any) -> None:
    with pytest.raises(ConfigError, match="must be text"):
        TrainConfig(model=value)
