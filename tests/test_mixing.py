"""Mixup and cutmix: torchvision's formulas, soft labels, and equal batches for all processes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeCatalog
from small_batches import small_batches
from torch import Tensor, nn
from torchvision.transforms import v2

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.data.batches import Batch, Batches
from shopee_mlflow.data.mixing import CutMix, MixUp, soft_labels, training_mix
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.loss import CrossEntropy
from shopee_mlflow.training.trainer import Trainer

CPU = Machine(torch.device("cpu"), "fp32")
CONFIG = TrainConfig(model="cnn", epochs=2, batch_size=4, lr=0.01, image_size=32)
MIXES = [MixUp(1.0), CutMix(1.0)]


def batches(mix: MixUp | CutMix | None, size: int = 5, **settings: Any) -> Batches:
    return small_batches(11, 3, size, train=True, mix=mix, **settings)


def photos_of(mix: MixUp | CutMix, number: int = 1) -> tuple[list[Batch], list[Batch]]:
    """The batches of an epoch, plain and mixed."""
    return list(batches(None).epoch(number)), list(batches(mix).epoch(number))


def test_mixup_is_torchvisions() -> None:
    images = torch.rand(5, 3, 8, 8)
    weight = 0.3
    params = {"lam": weight, "labels": torch.arange(5), "batch_size": 5}
    expected = v2.MixUp(num_classes=5).transform(images, params)
    bytes_ = (images * 255).round().to(torch.uint8)
    mixed = MixUp(1.0).apply(bytes_, bytes_.roll(1, 0), np.full(5, weight))
    assert mixed.dtype == torch.float32
    assert (mixed - expected).abs().max() < 0.005
    assert MixUp(1.0).shares(np.full(5, weight), (8, 8)).tolist() == [weight] * 5


@pytest.mark.parametrize("values", [(0.5, 0.5, 0.5), (0.2, 0.0, 0.9), (0.9, 0.99, 0.01)])
def test_cutmix_is_torchvisions(
    values: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    share, top, left = values
    height, width = 20, 12
    theirs = v2.CutMix(num_classes=5)
    monkeypatch.setattr(theirs, "_dist", torch.distributions.Categorical(torch.ones(1)))
    monkeypatch.setattr(theirs._dist, "sample", lambda shape: torch.tensor([share]))
    drawn = iter([torch.tensor([int(left * width)]), torch.tensor([int(top * height)])])
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: next(drawn))
    images = torch.arange(5 * 3 * height * width).view(5, 3, height, width).to(torch.uint8)
    params = theirs.make_params([images])
    params |= {"labels": torch.arange(5), "batch_size": 5}
    drawn_values = np.array([values] * 5)
    mixed = CutMix(1.0).apply(images, images.roll(1, 0), drawn_values)
    assert torch.equal(mixed, theirs.transform(images, params))
    shares = CutMix(1.0).shares(drawn_values, (height, width))
    assert shares == pytest.approx(params["lam_adjusted"])


@pytest.mark.parametrize("mix", MIXES)
def test_partners_are_the_photos_before_and_labels_follow(mix: MixUp | CutMix) -> None:
    rng = np.random.default_rng((0, 1))
    rng.permutation(11)
    values = mix.draw(11, rng)
    start = 0
    for plain, mixed in zip(*photos_of(mix), strict=True):
        count = len(plain.labels)
        drawn = values[start : start + count]
        partners = plain.inputs.roll(1, 0)
        torch.testing.assert_close(mixed.inputs, mix.apply(plain.inputs, partners, drawn))
        own = torch.tensor(mix.shares(drawn, (32, 32)))[:, None]
        one_hot = nn.functional.one_hot(plain.labels, 3)
        expected = own * one_hot + (1 - own) * one_hot.roll(1, 0)
        torch.testing.assert_close(mixed.labels.double(), expected)
        torch.testing.assert_close(mixed.labels.sum(1), torch.ones(count))
        start += count


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shares", [2, 3])
def test_processes_share_the_batches_of_one(mix: MixUp | CutMix, shares: int) -> None:
    whole = list(batches(mix, augment="original").epoch(2))
    for rank in range(shares):
        parts = batches(mix, augment="original", share=(rank, shares)).epoch(2)
        for part, batch in zip(parts, whole, strict=True):
            torch.testing.assert_close(part.all_labels, batch.all_labels)
            if part.own:
                torch.testing.assert_close(part.inputs, batch.inputs[rank::shares])
                torch.testing.assert_close(part.labels, batch.labels[rank::shares])


@pytest.mark.parametrize("mix", MIXES)
def test_an_epoch_resumes_at_any_batch(mix: MixUp | CutMix) -> None:
    whole, rest = list(batches(mix).epoch(4)), list(batches(mix).epoch(4, skip=1))
    assert torch.equal(whole[1].inputs, rest[0].inputs)
    assert torch.equal(whole[1].labels, rest[0].labels)


def test_photos_of_one_label_keep_it_whole() -> None:
    soft = soft_labels(np.array([2, 1]), np.array([2, 0]), np.array([0.3, 0.6]), 3)
    torch.testing.assert_close(soft, torch.tensor([[0, 0, 1], [0.4, 0.6, 0]]))


def test_the_loss_of_soft_labels_is_the_weighted_mean_of_both() -> None:
    weights = torch.tensor([0.5, 1.0, 4.0])
    loss = CrossEntropy(0.1, weights)
    logits = torch.randn(4, 3)
    first, second = torch.tensor([0, 1, 2, 2]), torch.tensor([2, 1, 0, 1])
    share = np.array([0.3, 0.6, 0.9, 0.5])
    soft = soft_labels(first.numpy(), second.numpy(), share, 3)

    def sums(labels: Tensor) -> Tensor:
        parts = [loss.sum(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
        return torch.stack(parts).double()

    own = torch.tensor(share)
    expected = (own * sums(first) + (1 - own) * sums(second)).sum()
    torch.testing.assert_close(loss.sum(logits, soft).double(), expected)
    both = [loss.normaliser(labels[i : i + 1]) for labels in (first, second) for i in range(4)]
    normaliser = (share * both[:4] + (1 - share) * both[4:]).sum()
    assert loss.normaliser(soft) == pytest.approx(normaliser)
    assert CrossEntropy().normaliser(soft) == 4


class Linear(nn.Module):
    """Gradients of photos add up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 3)
        nn.init.zeros_(self.layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        scale = 255 if images.dtype == torch.uint8 else 1
        return self.layer(images.float().flatten(1) / scale)


@pytest.mark.parametrize("mix", MIXES)
def test_mixing_is_exact_in_parts_of_a_batch(mix: MixUp | CutMix) -> None:
    loss = CrossEntropy(0.1, torch.tensor([0.5, 1.0, 4.0]))

    def fitted(part: int) -> tuple[nn.Module, list[float]]:
        module = Linear()
        torch.nn.init.zeros_(module.layer.bias)
        trainer = Trainer(module, batches(mix), small_batches(11, 3, 8), CONFIG, CPU, loss=loss)
        trainer.part = part
        return module, [epoch["train_loss"] for epoch in trainer.epochs()]

    (whole, losses), (parts, again) = fitted(6), fitted(2)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-4, atol=1e-6)
    assert again == pytest.approx(losses, rel=1e-5)


def test_train_accuracy_counts_the_label_with_the_larger_share() -> None:
    class Knows(Linear):
        """Predicts the label with the larger share of each photo of the first epoch."""

        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            if self.training:
                return logits * 0 + next(known)
            return logits

    known = (batch.labels for batch in batches(MixUp(1.0)).epoch(1))
    config = dataclasses.replace(CONFIG, epochs=1)
    trainer = Trainer(Knows(), batches(MixUp(1.0)), small_batches(11, 3, 8), config, CPU)
    assert next(trainer.epochs())["train_accuracy"] == 1


# --- options ---


def test_options_name_the_mixing() -> None:
    assert training_mix(CONFIG) is None
    assert training_mix(resolve(TrainConfig, {"mix": "mixup"})) == MixUp(0.2)
    assert training_mix(resolve(TrainConfig, {"mix": "cutmix", "mix_alpha": "1"})) == CutMix(1.0)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_behind_frozen_layers_is_refused(mix: str) -> None:
    with pytest.raises(ConfigError, match=f"mix={mix}: mixes the pixels .* use freeze=none"):
        resolve(TrainConfig, {"mix": mix, "freeze": "backbone"})


@pytest.mark.parametrize("mix", ["mixup", pytest.param("cutmix", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_training_that_mixes(make_catalog: MakeCatalog, mix: str) -> None:
    options = {
        "data": str(make_catalog()),
        "model": "mobilenet_v3_small",
        "image_size": "32",
        "epochs": "2",
        "batch_size": "8",
        "mix": mix,
        "mix_alpha": "1",
        "class_weights": "balanced",
        "label_smoothing": "0.1",
    }
    first, again = (train(resolve(TrainConfig, options)) for _ in range(2))
    assert list(first.history["train_loss"]) == list(again.history["train_loss"])
    assert first.history["train_accuracy"].between(0, 1).all()
