"""Frozen prefix: both parts together equal the model, and caching changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shopee_mlflow.data.batches import PixelSource
from shopee_mlflow.data.transforms import Draws, FiniteTransform, transform_named
from shopee_mlflow.errors import ModelError
from shopee_mlflow.modeling.architectures import build_model
from shopee_mlflow.modeling.freezing import ActivationSource, split_model, stages
from shopee_mlflow.modeling.models import ProductClassifier

CLASSES = ["a", "b", "c"]

ORIGINAL = transform_named("original")
assert isinstance(ORIGINAL, FiniteTransform)


@pytest.fixture
def model() -> ProductClassifier:
    torch.manual_seed(0)
    return build_model("mobilenet_v3_small", CLASSES, 64)


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("freeze", ["backbone", "features.4", "features.0", "features"])
def test_both_parts_together_are_the_model(
    model: ProductClassifier, images: torch.Tensor, freeze: str
) -> None:
    cut = split_model(model.eval(), freeze)
    assert cut.frozen is not None
    with torch.no_grad():
        torch.testing.assert_close(cut.trainable(cut.frozen(images)), model(images))


def test_nothing_frozen_is_the_model_itself(model: ProductClassifier) -> None:
    cut = split_model(model, "none")
    assert cut.frozen is None
    assert cut.trainable is model


@pytest.mark.parametrize(
    ("name", "stage"), [("resnet18", "layer2"), ("densenet121", "features.denseblock2")]
)
def test_other_architectures_are_cut_by_their_own_stages(name: str, stage: str) -> None:
    model = build_model(name, CLASSES, 32).eval()
    cut = split_model(model, stage)
    assert cut.frozen is not None
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(cut.trainable(cut.frozen(images)), model(images))


def test_frozen_layers_do_not_learn_and_keep_their_statistics(
    model: ProductClassifier, images: torch.Tensor
) -> None:
    cut = split_model(model, "features.4")
    assert cut.frozen is not None
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cut.frozen.train()
    cut.trainable.train()
    cut.trainable(cut.frozen(images)).sum().backward()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in model.named_parameters() if p.grad is None}
    assert "backbone.features.4.block.0.0.weight" in frozen
    assert "backbone.features.5.block.0.0.weight" not in frozen
    after = model.state_dict()
    same = "backbone.features.4.block.0.1.running_mean"
    other = "backbone.features.5.block.0.1.running_mean"
    assert torch.equal(before[same], after[same])
    assert not torch.equal(before[other], after[other])


def test_fused_layers_give_the_same(model: ProductClassifier, images: torch.Tensor) -> None:
    # Statistics of some photos first: those of a new network would hide a wrong fusion.
    model.train()(images)
    cut = split_model(model.eval(), "features.8")
    assert cut.frozen is not None
    fused = cut.frozen.fused()
    torch.testing.assert_close(fused(images), cut.frozen(images), rtol=1e-3, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("name", [None, "some-key"])
def test_kept_activations_are_those_of_the_augmented_photos(
    model: ProductClassifier, name: str | None
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    photos = PixelSource(pixels)
    cut = split_model(model.eval(), "features.4")
    assert cut.frozen is not None
    train_rows = np.array([0, 2, 5])
    source = ActivationSource(cut.frozen, photos, np.arange(6), train_rows, ORIGINAL, name=name)
    assert source.mapped == (name is not None)
    rows, variants = np.array([5, 0, 2, 0, 4, 1]), np.array([1, 2, 3, 0, 0, 0])
    draws = Draws(ORIGINAL, variants)
    torch.testing.assert_close(source.take(rows, draws), cut.frozen(photos.take(rows, draws)))
    assert source.take(rows, draws).is_contiguous(memory_format=torch.channels_last)


def test_kept_activations_are_found_again(model: ProductClassifier) -> None:
    photos = PixelSource(np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8))
    cut = split_model(model.eval(), "features.4")
    assert cut.frozen is not None
    seen: list[int] = []

    def source(prefix: torch.nn.Module) -> ActivationSource:
        def counted(images: torch.Tensor) -> torch.Tensor:
            seen.append(len(images))
            return prefix(images)

        rows, train_rows = np.arange(6), np.array([1])
        return ActivationSource(counted, photos, rows, train_rows, ORIGINAL, name="found-again")

    first, second = source(cut.frozen), source(cut.frozen)
    # One photo tells the shape each time; all nine variants are computed once.
    assert seen == [1, 9, 1]
    rows, draws = np.arange(6), Draws(ORIGINAL, np.array([0, 3, 0, 0, 0, 0]))
    assert torch.equal(first.take(rows, draws), second.take(rows, draws))


def test_a_process_that_others_wait_for_uses_their_threads(
    model: ProductClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = PixelSource(np.zeros((3, 64, 64, 3), np.uint8))
    cut = split_model(model.eval(), "features.4")
    assert cut.frozen is not None
    own = torch.get_num_threads()
    seen: list[int] = []

    def prefix(images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return cut.frozen(images)

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    ActivationSource(prefix, photos, np.arange(3), np.array([1]), name="threads")
    # The first photo only tells the shape.
    assert seen == [own, 2 * own]
    assert torch.get_num_threads() == own


def test_an_unknown_stage_lists_those_there_are(model: ProductClassifier) -> None:
    with pytest.raises(ModelError, match="freeze=features.99: .* Allowed are none, backbone, fea"):
        split_model(model, "features.99")


def test_stages_are_in_order() -> None:
    names = stages(build_model("effnet", CLASSES, 64))
    assert names[1:4] == ["features.0", "features.1", "features.2"]
    # A stage inside a block with a shortcut around it is no place to cut.
    assert "features.2.1.block" not in names
