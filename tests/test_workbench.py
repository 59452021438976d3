"""Trainings on one dataset share its pixels and activations, and nothing that may not be shared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import MakeCatalog

from shopee_mlflow.config import TrainConfig
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.modeling.fit import choose_machine
from shopee_mlflow.modeling.workbench import Workbench

# A network of few seconds: cut after its second stage.
CONFIG = TrainConfig(
    model="mnasnet0_5", freeze="layers.8", image_size=32, batch_size=8, cache=False, device="cpu"
)


def bench_for(config: TrainConfig) -> Workbench:
    return Workbench(load_dataset(config), choose_machine(config.device, config.precision))


@pytest.fixture
def config(make_catalog: MakeCatalog) -> TrainConfig:
    return dataclasses.replace(CONFIG, data=str(make_catalog()))


def sources(bench: Workbench, *configs: TrainConfig) -> list[object]:
    return [bench.prepare(bench.new_model(c), c).train.source for c in configs]


def test_trainings_with_the_same_frozen_layers_share_activations(config: TrainConfig) -> None:
    other = dataclasses.replace(config, lr=0.5, batch_size=4, label_smoothing=0.1, epochs=3)
    first, second = sources(bench_for(config), config, other)
    assert first is second


@pytest.mark.parametrize("change", [{"freeze": "layers.9"}, {"augment": False}, {"seed": 1}])
def test_whatever_shapes_activations_makes_others(
    config: TrainConfig, change: dict[str, object]
) -> None:
    first, second = sources(bench_for(config), config, dataclasses.replace(config, **change))
    assert first is not second


def test_another_process_finds_the_activations(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, cache=True)
    bench = bench_for(config)
    part = bench.prepare(bench.new_model(config), config)
    first = [batch for batch, _ in part.train.epoch(1)]

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    again = bench_for(config)
    monkeypatch.setattr("shopee_mlflow.data.arrays._build", fail)
    part = again.prepare(again.new_model(config), config)
    for expected, (batch, _) in zip(first, part.train.epoch(1), strict=True):
        assert torch.equal(expected, batch)


def test_a_full_disk_keeps_activations_in_memory(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = dataclasses.replace(config, cache=True)
    bench = bench_for(config)
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr("shopee_mlflow.modeling.freezing.has_room", lambda *_: False)
    [source] = sources(bench, config)
    assert not source.mapped
    assert not list((tmp_path / "full").glob("activations-*"))
