"""Random augmentation policies: a draw for each photo, fixed ones behind frozen layers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import MakeCatalog
from torch import Tensor
from torchvision.transforms import v2

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.data.transforms import (
    PLAIN,
    FixedDraws,
    Policy,
    training_transform,
    transform_named,
)
from shopee_mlflow.modeling.architectures import build_model
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.freezing import ActivationSource, split_model
from shopee_mlflow.training.context import TrainingContext

POLICIES = ["crop", "light", "strong"]
CPU = torch.device("cpu")


def policy(name: str) -> Policy:
    found = transform_named(name)
    assert isinstance(found, Policy)
    return found


def fixed(count: int = 3, seed: int = 0) -> FixedDraws:
    config = TrainConfig(augment="light", freeze="backbone", variants=count, seed=seed)
    found = training_transform(config)
    assert isinstance(found, FixedDraws)
    return found


def one_photo(count: int, side: int = 32) -> Tensor:
    """The same photo of smooth colours, several times."""
    small = torch.randint(0, 256, (1, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(small.float(), size=(side, side), mode="bilinear")
    return smooth.round().to(torch.uint8).repeat(count, 1, 1, 1)


@pytest.mark.parametrize("name", POLICIES)
def test_each_photo_has_a_draw_of_its_own(name: str) -> None:
    seeds = policy(name).draw(6, np.random.default_rng(0))
    images = one_photo(6)
    before = images.clone()
    results = policy(name).apply(images, seeds)
    assert torch.equal(images, before)
    assert results.shape == images.shape
    assert results.dtype == torch.uint8
    assert results.is_contiguous(memory_format=torch.channels_last)
    assert len({tuple(result.flatten().tolist()) for result in results}) == 6
    # The result for a photo depends on its seed alone, whatever batch it is in.
    alone = policy(name).apply(images[:2], seeds[[4, 1]])
    assert torch.equal(alone, results[[4, 1]])


@pytest.mark.parametrize("name", POLICIES)
def test_draws_leave_torchs_generator_alone(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    policy(name).apply(one_photo(2), np.array([5, 6]))
    assert torch.equal(torch.rand(2), expected)


def test_a_policy_is_torchvisions() -> None:
    seeds = np.array([11, 12, 13])
    steps = [v2.RandomResizedCrop(32, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()]
    colours = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    for name, more in (("crop", []), ("light", [colours])):
        transform = v2.Compose([*steps, *more])
        for image, seed in zip(policy(name).apply(one_photo(3), seeds), seeds, strict=True):
            torch.manual_seed(int(seed))
            assert torch.equal(image, transform(one_photo(1)[0]))


@pytest.mark.parametrize("name", POLICIES)
def test_an_epoch_follows_from_seed_and_number(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)

    def epoch(number: int, seed: int = 3, skip: int = 0) -> Tensor:
        rows = np.arange(9)
        batches = Batches(
            PixelSource(pixels), rows, rows, 4, CPU, True, transform_named(name), seed
        )
        return torch.cat([batch.inputs for batch in batches.epoch(number, skip)])

    assert torch.equal(epoch(1), epoch(1))
    assert torch.equal(epoch(1)[4:], epoch(1, skip=1))
    assert not torch.equal(epoch(1), epoch(2))
    assert not torch.equal(epoch(1), epoch(1, seed=4))


# --- fixed draws behind frozen layers ---


def test_fixed_draws_follow_from_seed_row_and_number() -> None:
    rows, numbers = np.array([0, 0, 7, 7, 7]), np.array([1, 2, 1, PLAIN, 1])
    values = fixed().at(rows, numbers).values
    assert values[3] == PLAIN
    assert len(set(values)) == 4
    assert values[2] == values[4]
    np.testing.assert_array_equal(fixed().at(rows[::-1], numbers[::-1]).values, values[::-1])
    assert not set(values[:3]) & set(fixed(seed=1).at(rows, numbers).values)
    results = fixed().at(rows, numbers).apply(one_photo(5))
    assert torch.equal(results[3], one_photo(1)[0])


def test_epochs_choose_among_all_draws_and_never_the_plain_photo() -> None:
    drawn = fixed(3).draw(3000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=4)
    assert counts[PLAIN] == 0
    assert counts[1:].min() > 900
    assert fixed(3).variants == 4


def test_pixels_are_augmented_anew_and_finite_variants_stay() -> None:
    assert training_transform(TrainConfig(augment="light")) is transform_named("light")
    behind = TrainConfig(augment="original", freeze="backbone")
    assert training_transform(behind) is transform_named("original")
    assert training_transform(TrainConfig(augment="none", freeze="backbone")) is None


@pytest.mark.parametrize("name", [None, "fixed-draws"])
def test_cached_activations_are_those_of_the_drawn_photos(name: str | None) -> None:
    torch.manual_seed(0)
    model = build_model("mobilenet_v3_small", ["a", "b"], 64).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    photos, frozen = PixelSource(pixels), split_model(model, "features.4").frozen
    assert frozen is not None
    draws, train_rows = fixed(2), np.array([1, 4, 5])
    source = ActivationSource(frozen, photos, np.arange(6), train_rows, draws, name=name)
    batches = Batches(source, train_rows, np.zeros(6, np.int64), 3, CPU, True, draws)
    (batch,) = batches.epoch(2)
    rng = np.random.default_rng((0, 2))
    rows = rng.permutation(train_rows)
    chosen = draws.draw(3, rng)
    expected = frozen(photos.take(rows, draws.at(rows, chosen)))
    torch.testing.assert_close(batch.inputs, expected)
    torch.testing.assert_close(source.take(np.arange(6)), frozen(photos.take(np.arange(6))))


def test_each_number_of_draws_and_each_seed_has_activations_of_its_own(
    make_catalog: MakeCatalog,
) -> None:
    config = TrainConfig(
        data=str(make_catalog()), model="cnn", image_size=32, freeze="backbone", augment="light"
    )
    context = TrainingContext(load_dataset(config), Machine(CPU, "fp32"))
    model = context.new_model(config)

    def source(**options: int) -> object:
        return context.prepare(model, dataclasses.replace(config, **options)).train.source

    assert source() is source()
    assert source() is not source(variants=5)
    assert source() is not source(seed=1)


@pytest.mark.parametrize(
    ("name", "freeze"),
    [
        ("light", "none"),
        pytest.param("strong", "none", marks=pytest.mark.slow),
        pytest.param("light", "backbone", marks=pytest.mark.slow),
        pytest.param("strong", "backbone", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_training_with_a_policy(make_catalog: MakeCatalog, name: str, freeze: str) -> None:
    options = {"data": str(make_catalog()), "model": "cnn", "image_size": "32", "epochs": "2"}
    more = {"augment": name, "freeze": freeze, "variants": "2", "batch_size": "8"}
    first, again = (train(resolve(TrainConfig, {**options, **more})) for _ in range(2))
    assert list(first.history["train_loss"]) == list(again.history["train_loss"])
    assert first.history["train_loss"].iloc[1] != first.history["train_loss"].iloc[0]
