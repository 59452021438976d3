"""Search spaces: parsing, baselines, and a study's identity."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_search import LR, plan_of

from shopee_mlflow.data_config import AUTO
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.tuning.space import DEFAULT_FILE, Choice, Range, plan_search

# --- what is read ---


def test_without_a_file_the_space_is_that_of_experiments_tune() -> None:
    found = plan_search({})
    assert {name: str(where) for name, where in found.space.items()} == {
        "lr": "0.0001 to 0.3, log",
        "weight_decay": "1e-06 to 0.01, log",
        "batch_size": "one of 16, 32, 75, 150",
    }
    config = found.config
    assert (config.model, config.freeze, config.epochs) == ("effnet_pretrained", "backbone", 30)
    assert (config.sampler, config.pruner, config.n_trials) == ("tpe", "median", 30)
    assert found.pruner_settings == {"n_startup_trials": 5, "n_warmup_steps": 5}
    assert config.config == str(DEFAULT_FILE)


def test_the_default_file_is_named_from_here_where_it_lies_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(DEFAULT_FILE.parents[1])
    assert plan_search({}).config.config == "experiments/tune.yaml"


def test_ranges_and_lists(tmp_path: Path) -> None:
    space = {
        "lr": LR,
        "label_smoothing": {"low": 0, "high": 0.2},
        "epochs": {"low": 2, "high": 10, "step": 4},
        "batch_size": {"low": 8, "high": 64, "log": True},
        "freeze": ["none", "backbone"],
        "class_weights": ["none", "balanced"],
    }
    assert plan_of(tmp_path, {"space": space}).space == {
        "lr": Range(1e-4, 0.1, log=True),
        "label_smoothing": Range(0.0, 0.2),
        "epochs": Range(2, 10, step=4, whole=True),
        "batch_size": Range(8, 64, log=True, whole=True),
        "freeze": Choice(("none", "backbone")),
        "class_weights": Choice(("none", "balanced")),
    }


def test_yamls_own_spelling_of_small_numbers_is_read(tmp_path: Path) -> None:
    """YAML takes 1e-3, without a point, for text."""
    text = "space:\n  lr: {low: 1e-4, high: 1e-1, log: true}\n  weight_decay: [1e-3, 0]\n"
    assert isinstance(yaml.safe_load(text)["space"]["lr"]["low"], str)
    found = plan_of(tmp_path, text)
    assert found.space["lr"] == Range(0.0001, 0.1, log=True)
    assert found.space["weight_decay"] == Choice((0.001, 0.0))


def test_the_recipe_can_be_searched(tmp_path: Path) -> None:
    space = {
        "lr": ["auto", 0.01],
        "optimizer": ["sgd", "adamw"],
        "backbone_lr_factor": {"low": 0.01, "high": 1, "log": True},
        "layerwise_lr": [True, False],
        "nesterov": [True, False],
        "decay_norms": [True, False],
        "ema": [0, 0.9],
        "accumulate": [1, 2],
        "augment": ["none", "light", "strong"],
        "variants": [2, 4],
        "mix": ["none", "mixup", "cutmix"],
        "mix_alpha": {"low": 0.1, "high": 1},
        "sampling": ["uniform", "balanced"],
    }
    plan = plan_of(tmp_path, {"space": space})
    assert plan.space["lr"] == Choice(("auto", 0.01))
    assert plan.space["layerwise_lr"] == Choice((True, False))
    trial = plan.trial_config({"lr": "auto", "optimizer": "adamw", "mix": "cutmix", "ema": 0.9})
    assert (trial.lr, trial.mix, trial.ema) == ("auto", "cutmix", 0.9)
    frozen = {"freeze": "backbone", "space": {"mix": ["none", "mixup"], "lr": LR}}
    with pytest.raises(ConfigError, match="mix=mixup: mixes the pixels of two photos"):
        plan_of(tmp_path, frozen)


def test_what_lies_in_a_range() -> None:
    numbers = Range(2, 10, step=4, whole=True)
    assert [v for v in range(13) if v in numbers] == [2, 6, 10]
    assert 0.1 in Range(0.1, 0.2)
    assert 0.2 in Range(0.1, 0.2)
    assert 0.21 not in Range(0.1, 0.2)
    assert "0.15" not in Range(0.1, 0.2)


def test_a_typed_option_is_no_longer_searched(tmp_path: Path) -> None:
    content = {"space": {"lr": LR, "momentum": [0.5, 0.9]}, "epochs": 7}
    found = plan_of(tmp_path, content, lr="0.05", epochs="3")
    assert list(found.space) == ["momentum"]
    assert (found.config.lr, found.config.epochs) == (0.05, 3)
    assert found.cli_options["lr"] == "0.05"
    assert list(found.baseline) == ["momentum"]
    assert found.trial_config({"momentum": 0.5}).lr == 0.05


def test_models_are_searched_in_the_order_given(tmp_path: Path) -> None:
    found = plan_of(tmp_path, {"space": {"lr": LR}}, models="cnn, effnet,resnet18")
    assert found.space["model"] == Choice(("cnn", "effnet", "resnet18"))
    assert [b["model"] for b in found.baselines()] == ["cnn", "effnet", "resnet18"]
    assert {b["lr"] for b in found.baselines()} == {0.001}
    assert found.study_name().startswith("models-")


def test_models_may_stand_in_the_file(tmp_path: Path) -> None:
    found = plan_of(tmp_path, {"models": "cnn,effnet", "space": {"lr": LR}})
    assert found.space["model"] == Choice(("cnn", "effnet"))


def test_the_documents_example_is_a_search(tmp_path: Path) -> None:
    page = (DEFAULT_FILE.parents[1] / "docs" / "tuning.md").read_text(encoding="utf-8")
    (example,) = re.findall("```yaml\n(.*?)```", page, re.DOTALL)
    found = plan_of(tmp_path, example)
    assert list(found.space) == ["lr", "weight_decay", "batch_size", "label_smoothing", "freeze"]
    assert found.sampler_settings == {"multivariate": True}


# --- the first trials ---


def test_the_baseline_is_the_original(tmp_path: Path) -> None:
    names = ("lr", "momentum", "weight_decay", "batch_size", "schedule", "warmup_epochs")
    space = {
        "lr": [0.001, 0.1],
        "momentum": [0.5, 0.9],
        "weight_decay": [1e-4, 1e-2],
        "batch_size": [16, 75],
        "schedule": ["cosine", "constant"],
        "warmup_epochs": [0, 1],
    }
    found = plan_of(tmp_path, {"space": space})
    (start,) = found.baselines()
    assert [start[n] for n in names] == [0.001, 0.9, 1e-4, 75, "constant", 0.0]


def test_the_default_rate_is_that_of_the_optimizer(tmp_path: Path) -> None:
    rates = {"low": 0.0001, "high": 0.1, "log": True}
    for optimizers, lr, start in [
        (["adamw"], rates, ("adamw", 0.001)),
        (["adamw", "sgd"], rates, ("sgd", 0.02)),
        (["adamw"], [0.05, "auto"], ("adamw", "auto")),
    ]:
        found = plan_of(tmp_path, {"space": {"optimizer": optimizers, "lr": lr}}).defaults()
        assert (found["optimizer"], found["lr"]) == start


def test_the_baseline_need_not_lie_in_the_space(tmp_path: Path) -> None:
    found = plan_of(tmp_path, {"space": {"lr": {"low": 0.01, "high": 0.1}}})
    assert found.baselines() == [{"lr": 0.001}]
    assert found.baselines()[0]["lr"] not in found.space["lr"]


def test_a_section_replaces_the_baseline(tmp_path: Path) -> None:
    content = {"space": {"lr": LR, "momentum": [0.0, 0.9]}, "baseline": {"lr": "2e-2"}}
    assert plan_of(tmp_path, content).baselines() == [{"lr": 0.02, "momentum": 0.9}]


def test_an_option_that_the_original_had_not_begins_with_our_default(tmp_path: Path) -> None:
    space = {
        "patience": [0, 3],
        "augment": ["none", "flip"],
        "freeze": ["backbone", "features.5"],
    }
    (start,) = plan_of(tmp_path, {"space": space}).baselines()
    assert start["patience"] == 0
    assert start["augment"] == "flip"
    assert start["freeze"] == "backbone"  # our default, none, is not in the space


# --- one trial's options ---


def test_a_trial_has_its_own_values_and_registers_nothing(tmp_path: Path) -> None:
    found = plan_of(tmp_path, {"space": {"lr": LR}, "register": True, "promote": True, "epochs": 4})
    config = found.trial_config({"lr": 0.03})
    assert type(config).__name__ == "TrainConfig"
    assert (config.lr, config.epochs) == (0.03, 4)
    assert (config.register, config.promote, config.config) == (False, False, "none")


def test_weights_are_for_pretrained_architectures(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    content = {"space": {"lr": LR}, "weights": str(weights)}
    several = plan_of(tmp_path, content, models="cnn,effnet_pretrained")
    assert several.trial_config({"model": "cnn"}).weights == AUTO
    assert several.trial_config({"model": "effnet_pretrained"}).weights == str(weights)
    # One architecture is taken at its word: whether it can have weights is for it to say.
    assert plan_of(tmp_path, content, model="cnn").trial_config({}).weights == str(weights)


# --- which calls go on with one study ---

CONTENT: dict[str, Any] = {"model": "cnn", "space": {"lr": LR, "momentum": [0.5, 0.9]}}


def name_of(tmp_path: Path, content: dict[str, Any] | None = None, **cli_options: Any) -> str:
    return plan_of(tmp_path, content or CONTENT, **cli_options).study_name()


def test_the_same_search_has_the_same_name(tmp_path: Path) -> None:
    assert name_of(tmp_path) == name_of(tmp_path)
    assert name_of(tmp_path).startswith("cnn-")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert name_of(moved) == name_of(tmp_path)
    assert name_of(tmp_path, study="mine") == "mine"


@pytest.mark.parametrize(
    "cli_options",
    [
        {"n_trials": 99},
        {"jobs": 3},
        {"timeout": 60},
        {"storage": "somewhere.journal"},
        {"device": "cpu"},
        {"register": "false"},
        {"run_name": "search"},
        {"experiment": "other"},
        {"workers": 2},
        {"cache": "false"},
    ],
    ids=lambda cli_options: next(iter(cli_options)),
)
def test_circumstances_do_not_change_the_search(
    tmp_path: Path, cli_options: dict[str, Any]
) -> None:
    assert name_of(tmp_path, **cli_options) == name_of(tmp_path)


@pytest.mark.parametrize(
    "cli_options",
    [
        {"freeze": "backbone"},
        {"epochs": 9},
        {"lr": 0.01},
        {"model": "effnet"},
        {"models": "cnn,effnet"},
        {"data": "shop"},
        {"images": "photos", "data": "shop"},
        {"split_seed": 4},
        {"image_size": 64},
        {"seed": 1},
        {"sampler": "random"},
        {"pruner": "none"},
        {"precision": "bf16"},
    ],
    ids=lambda cli_options: next(iter(cli_options)),
)
def test_another_search_has_another_name(tmp_path: Path, cli_options: dict[str, Any]) -> None:
    assert name_of(tmp_path, **cli_options) != name_of(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"space": {"lr": {**LR, "high": 0.2}, "momentum": [0.5, 0.9]}},
        {"space": {"lr": {**LR, "log": False}, "momentum": [0.5, 0.9]}},
        {"space": {"lr": LR, "momentum": [0.5, 0.8]}},
        {"space": {"lr": LR}},
        {"baseline": {"lr": 0.02}},
        {"sampler_settings": {"multivariate": True}},
        {"pruner_settings": {"n_startup_trials": 1}},
    ],
)
def test_another_space_has_another_name(tmp_path: Path, change: dict[str, Any]) -> None:
    assert name_of(tmp_path, {**CONTENT, **change}) != name_of(tmp_path)


def test_weights_count_by_what_they_are_not_by_where_they_lie(tmp_path: Path) -> None:
    for name, value in {"a": 1.0, "b": 1.0, "c": 2.0}.items():
        torch.save({"layer": torch.tensor(value)}, tmp_path / name)
    a, b, c = (name_of(tmp_path, weights=str(tmp_path / name)) for name in "abc")
    assert a == b
    assert len({a, c, name_of(tmp_path)}) == 3


def test_the_identity_says_what_differs(tmp_path: Path) -> None:
    facts = plan_of(tmp_path, CONTENT).identity()
    assert facts["space.lr"] == "0.0001 to 0.1, log"
    assert facts["space.momentum"] == "one of 0.5, 0.9"
    assert facts["baseline.lr"] == "0.001"
    assert "lr" not in facts
    assert not {"n_trials", "jobs", "timeout", "storage", "study", "data"} & facts.keys()
    assert all(isinstance(value, str) for value in facts.values())
