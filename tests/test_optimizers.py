"""Learning rates by layer, Nesterov, averaged weights and accumulated gradients."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_batches import small_batches
from torch import Tensor, nn

from shopee_mlflow.config import TrainConfig, TuneConfig, resolve
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.modeling.architectures import build_model
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.epochs import BestEpoch, Epoch
from shopee_mlflow.modeling.freezing import split_model
from shopee_mlflow.modeling.models import ProductClassifier
from shopee_mlflow.modeling.optim import learning_rate, make_optimizer
from shopee_mlflow.modeling.scoring import predict_logits
from shopee_mlflow.training.trainer import Trainer
from shopee_mlflow.tuning.space import SearchPlan

CPU = Machine(torch.device("cpu"), "fp32")
CLASSES = ["a", "b", "c"]
CONFIG = TrainConfig(model="cnn", epochs=3, batch_size=4, lr=0.01, image_size=32)
EXACT = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr")


def network(name: str = "mobilenet_v3_small") -> ProductClassifier:
    torch.manual_seed(5)
    return build_model(name, CLASSES, 32)


def trainer(config: TrainConfig = CONFIG, photos: int = 12, **settings: Any) -> Trainer:
    module = settings.pop("module", None) or network(config.model)
    train = small_batches(photos, 3, config.batch_size * config.accumulate, train=True)
    return Trainer(module, train, small_batches(photos, 3, 8), config, CPU, **settings)


def numbers(epochs: list[Epoch]) -> list[tuple[float, ...]]:
    return [tuple(epoch[name] for name in EXACT) for epoch in epochs]


# --- learning rates ---


def test_auto_is_a_rate_for_each_optimizer() -> None:
    assert learning_rate(resolve(TrainConfig, {})) == 0.02
    assert learning_rate(resolve(TrainConfig, {"optimizer": "adamw"})) == 0.001
    assert learning_rate(resolve(TrainConfig, {"lr": "auto"})) == 0.02
    assert learning_rate(resolve(TrainConfig, {"lr": "auto", "optimizer": "adamw"})) == 0.001
    assert learning_rate(resolve(TrainConfig, {"lr": "1e-3"})) == 0.001
    with pytest.raises(ConfigError, match="lr=often: must be a number above 0 .*, or auto"):
        resolve(TrainConfig, {"lr": "often"})
    with pytest.raises(ConfigError, match="momentum=auto: must be a number at least 0 and below 1"):
        resolve(TrainConfig, {"momentum": "auto"})


def test_a_search_over_optimizers_gives_each_its_own_auto_rate() -> None:
    plan = SearchPlan(resolve(TuneConfig, {"lr": "auto"}), {}, {})
    for name, rate in (("sgd", 0.02), ("adamw", 0.001)):
        assert learning_rate(plan.trial_config({"optimizer": name})) == rate


def rates(model: ProductClassifier, **options: Any) -> dict[str, float]:
    """The learning rate of each trained parameter, by its name in the model."""
    config = dataclasses.replace(CONFIG, **options)
    parts = split_model(model, config.freeze)
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(parts.trainable, config, parts.backbone)
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("freeze", ["none", "features.4", "backbone"])
def test_the_backbone_learns_at_a_smaller_rate(freeze: str) -> None:
    model = network()
    found = rates(model, freeze=freeze, backbone_lr_factor=0.1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained
    assert any(name.startswith("backbone.") for name in found) == (freeze != "backbone")
    for name, rate in found.items():
        assert rate == pytest.approx(0.001 if name.startswith("backbone.") else 0.01)


def test_rates_fall_layer_by_layer() -> None:
    model = network()
    found = rates(model, backbone_lr_factor=0.01, layerwise_lr=True)
    backbone = [found[f"backbone.{name}"] for name, _ in model.backbone.named_parameters()]
    assert backbone[0] == pytest.approx(0.0001)
    assert all(first <= second for first, second in pairwise(backbone))
    assert len(set(backbone)) == 10
    assert 0.005 < backbone[-1] < 0.01
    assert {rate for name, rate in found.items() if name.startswith("head.")} == {0.01}
    # Equal rates are one group, as without these options.
    assert len(make_optimizer(model, CONFIG, model.backbone).param_groups) == 1


@pytest.mark.parametrize(
    ("options", "frozen", "said"),
    [
        ({"layerwise_lr": True}, False, "layerwise_lr=true: has no effect with backbone_lr_factor"),
        ({"nesterov": True, "optimizer": "adamw"}, False, "nesterov=true: has no effect with opti"),
        ({"backbone_lr_factor": 0.1}, True, "backbone_lr_factor=0.1: has no effect, as the backb"),
        ({"backbone_lr_factor": 0.1, "layerwise_lr": True, "nesterov": True}, False, ""),
    ],
)
def test_options_without_effect_are_told(
    options: dict[str, Any], frozen: bool, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(not frozen)
    make_optimizer(module, TrainConfig(**options), module[0])
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_the_schedule_applies_to_all_rates_and_the_heads_is_logged() -> None:
    module = network(CONFIG.model)
    config = dataclasses.replace(CONFIG, backbone_lr_factor=0.1, epochs=2)
    training = trainer(config, module=module, backbone=module.backbone)
    plain = trainer(dataclasses.replace(CONFIG, epochs=2))
    for epoch, expected in zip(training.epochs(), plain.epochs(), strict=True):
        assert epoch["lr"] == expected["lr"] > 0
        small, large = training.state()["optimizer"]["param_groups"]
        assert small["initial_lr"] == pytest.approx(0.001)
        assert small["lr"] == pytest.approx(large["lr"] / 10)


def test_biases_and_norms_need_not_decay() -> None:
    model = network()
    for decays in (True, False):
        config = dataclasses.replace(CONFIG, decay_norms=decays, weight_decay=0.1)
        for group in make_optimizer(model, config).param_groups:
            wide = {parameter.ndim > 1 for parameter in group["params"]}
            assert (group["weight_decay"] == 0.1) == (decays or wide == {True})


def test_nesterov_is_torchs() -> None:
    config = dataclasses.replace(CONFIG, nesterov=True, weight_decay=0.1)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["nesterov"]
    assert optimizer.defaults["momentum"] == 0.9
    with pytest.raises(ConfigError, match="nesterov=true: needs momentum above 0"):
        resolve(TrainConfig, {"nesterov": "true", "momentum": "0"})


# --- averaged weights ---


EMA = dataclasses.replace(CONFIG, model="mobilenet_v3_small", ema=0.8)


def test_averaged_weights_are_validated_and_kept_as_the_best() -> None:
    training = trainer(EMA)
    averages: dict[str, Tensor] = {}

    def follow() -> None:
        """The formula, step by step; validation calls this, too, and changes nothing."""
        if training.state()["schedule"]["_step_count"] == len(steps) + 1:
            return
        steps.append(1)
        for name, value in training.module.state_dict().items():
            now = value.double()
            averages[name] = 0.8 * averages[name] + 0.2 * now if name in averages else now.clone()

    steps: list[int] = []
    best = BestEpoch(training.module)
    for epoch in training.epochs(after_batch=follow):
        best.update(epoch, training.validated)
    assert len(steps) == 9
    validated = training.validated.state_dict()
    for name, expected in averages.items():
        if "num_batches" not in name:
            torch.testing.assert_close(validated[name].double(), expected, rtol=1e-4, atol=1e-5)
    labels, logits = predict_logits(training.validated, small_batches(12, 3, 8), CPU)
    loss = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert epoch["val_loss"] == pytest.approx(loss, rel=1e-5)

    kept = best.load_weights()
    labels, logits = predict_logits(training.module, small_batches(12, 3, 8), CPU)
    loss = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert kept["val_loss"] == pytest.approx(loss, rel=1e-5)


def test_the_average_of_a_part_of_a_network_is_of_that_part() -> None:
    model = network()
    parts = split_model(model, "features.4")
    frozen = parts.frozen
    assert frozen is not None

    class Activations:
        def take(self, rows: Any, draws: Any = None) -> Tensor:
            return frozen(small_batches(12, 3, 8).source.take(rows))

    train, val = (
        dataclasses.replace(small_batches(12, 3, 4, train=train), source=Activations())
        for train in (True, False)
    )
    training = Trainer(parts.trainable, train, val, EMA, CPU)
    list(training.epochs())
    averaged, last = training.validated.state_dict(), parts.trainable.state_dict()
    assert averaged.keys() == last.keys()
    for name, value in last.items():
        if value.is_floating_point():
            # Near the last weights, which would not hold if names were mixed up.
            assert (averaged[name] - value).abs().max() <= 0.6 * value.abs().max() + 0.1, name


def test_an_average_over_more_steps_than_there_are_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer(dataclasses.replace(CONFIG, ema=0.99))
    assert "ema=0.99 averages about 100 steps, but the training has 9" in caplog.text
    caplog.clear()
    trainer(dataclasses.replace(CONFIG, ema=0.8))
    assert not caplog.text


class InterruptedHereError(Exception):
    """Raised in the place of a signal."""


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("after", [2, 4, 7])
def test_averaged_and_accumulated_trainings_resume_exactly(after: int) -> None:
    config = dataclasses.replace(EMA, batch_size=2, accumulate=2, layerwise_lr=True, nesterov=True)
    whole = numbers(list(trainer(config).epochs()))
    before, history, left = trainer(config), [], [after]

    def between() -> None:
        left[0] -= 1
        if not left[0]:
            raise InterruptedHereError

    with suppress(InterruptedHereError):
        for epoch in before.epochs(after_batch=between):
            history.append(epoch)
    state = before.state()
    again = trainer(config)
    again.restore(state)
    assert numbers([*history, *again.epochs()]) == whole
