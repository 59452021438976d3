"""Trainings on one dataset share its pixels and activations, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from conftest import MakeCatalog

from shopee_mlflow.config import TrainConfig
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.modeling.device import choose_machine
from shopee_mlflow.modeling.freezing import ActivationSource
from shopee_mlflow.training.context import TrainingContext
from shopee_mlflow.training.trainer import Trainer

# A network of few seconds: cut after its second stage.
CONFIG = TrainConfig(
    model="mnasnet0_5", freeze="layers.8", image_size=32, batch_size=8, cache=False, device="cpu"
)


def context_for(config: TrainConfig) -> TrainingContext:
    return TrainingContext(load_dataset(config), choose_machine(config.device, config.precision))


@pytest.fixture
def config(make_catalog: MakeCatalog) -> TrainConfig:
    return dataclasses.replace(CONFIG, data=str(make_catalog()))


def sources(context: TrainingContext, *configs: TrainConfig) -> list[ActivationSource]:
    contexts = [context.with_resize(c.resize) for c in configs]
    inputs = [made.prepare(made.new_model(c), c) for made, c in zip(contexts, configs, strict=True)]
    found = [one.train.source for one in inputs]
    assert all(isinstance(source, ActivationSource) for source in found)
    return cast(list[ActivationSource], found)


def test_trainings_with_the_same_frozen_layers_share_activations(config: TrainConfig) -> None:
    other = dataclasses.replace(config, lr=0.5, batch_size=4, label_smoothing=0.1, epochs=3)
    first, second = sources(context_for(config), config, other)
    assert first is second


def test_contexts_of_other_splits_and_other_squares_do_not_mix(config: TrainConfig) -> None:
    context = context_for(config)
    moved = context.dataset.frame["split"].replace({"test": "train"})
    fold = context.with_dataset(context.dataset.with_splits(moved))
    padded = fold.with_resize("pad")
    assert padded.dataset.digest == fold.dataset.digest != context.dataset.digest
    assert context.with_resize("pad").dataset.digest == context.dataset.digest
    assert padded.with_resize("stretch") is fold
    with pytest.raises(ValueError, match="resize=stretch: the photos have pad; use with_resize"):
        padded.prepare(padded.new_model(config), config)


@pytest.mark.parametrize(
    "change", [{"freeze": "layers.9"}, {"augment": "none"}, {"seed": 1}, {"resize": "pad"}]
)
def test_whatever_shapes_activations_makes_others(
    config: TrainConfig, change: dict[str, object]
) -> None:
    first, second = sources(context_for(config), config, dataclasses.replace(config, **change))
    assert first is not second


def test_another_process_finds_the_activations(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, cache=True)
    context = context_for(config)
    inputs = context.prepare(context.new_model(config), config)
    first = [batch.inputs for batch in inputs.train.epoch(1)]

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    again = context_for(config)
    monkeypatch.setattr("shopee_mlflow.data.array_cache._ArrayFile.build", fail)
    inputs = again.prepare(again.new_model(config), config)
    for expected, batch in zip(first, inputs.train.epoch(1), strict=True):
        assert torch.equal(expected, batch.inputs)


def test_a_full_disk_keeps_activations_in_memory(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, cache=True)
    context = context_for(config)
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr("shopee_mlflow.modeling.freezing.has_room", lambda *_: False)
    [source] = sources(context, config)
    assert not source.mapped
    assert not list((tmp_path / "full").glob("activations-*"))


@pytest.mark.parametrize(
    ("numbers", "dtype"), [("float16", torch.float16), ("auto", torch.float32)]
)
def test_activations_are_kept_in_the_numbers_asked_for(
    config: TrainConfig, numbers: str, dtype: torch.dtype
) -> None:
    config = dataclasses.replace(config, cache=True, activation_dtype=numbers)
    [source] = sources(context_for(config), config)
    assert source._store.dtype == dtype
    assert source.take(np.array([0])).dtype == torch.float32


def test_half_precision_changes_activations_by_its_rounding_only(config: TrainConfig) -> None:
    config = dataclasses.replace(config, cache=True)
    half = dataclasses.replace(config, activation_dtype="float16")
    rows = np.arange(8)
    exact, near = (s.take(rows) for s in sources(context_for(config), config, half))
    assert not torch.equal(exact, near)
    torch.testing.assert_close(near, exact, rtol=2**-11, atol=2**-24)


@pytest.mark.slow
def test_training_on_half_precision_activations_is_as_good(config: TrainConfig) -> None:
    config = dataclasses.replace(config, cache=True, augment="none", epochs=4, lr=1e-4)
    losses = []
    for numbers in ("float32", "float16"):
        chosen = dataclasses.replace(config, activation_dtype=numbers)
        context = context_for(chosen)
        inputs = context.prepare(context.new_model(chosen), chosen)
        trainer = Trainer(inputs.parts.trainable, inputs.train, inputs.val, chosen, context.machine)
        losses.append([epoch["val_loss"] for epoch in trainer.epochs()])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_large_activations_are_halved_by_themselves(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("shopee_mlflow.modeling.freezing._HALF_FROM", 1)
    config = dataclasses.replace(config, cache=True)
    [source] = sources(context_for(config), config)
    assert source._store.dtype == torch.float16


def test_what_half_precision_cannot_hold_stays_whole(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("shopee_mlflow.modeling.freezing._HALF_MOST", 1e-3)
    config = dataclasses.replace(config, cache=True, activation_dtype="float16")
    [source] = sources(context_for(config), config)
    assert source._store.dtype == torch.float32
