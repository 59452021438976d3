"""loss=arcface: its value, its head, and trainings with it."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import MakeCatalog
from small_search import plan_of
from torch import nn
from torch.nn import functional

from shopee_mlflow import Classifier, TrainConfig, build_model, train
from shopee_mlflow.config import resolve
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.modeling.initial_weights import weights_of_model
from shopee_mlflow.modeling.loss import ArcFace, CrossEntropy
from shopee_mlflow.modeling.models import CosineLinear
from shopee_mlflow.training.custom import CustomParts, check_parts
from shopee_mlflow.tuning.space import Choice

OPTIONS = {"model": "cnn", "image_size": "32", "epochs": "2", "batch_size": "8", "loss": "arcface"}


def options(folder: Path, **changed: str) -> TrainConfig:
    return resolve(TrainConfig, {**OPTIONS, "data": str(folder), **changed})


def test_the_angle_to_the_own_class_grows_by_the_margin() -> None:
    angles = torch.tensor([[0.5, 1.2], [2.0, 0.1]])
    labels = torch.tensor([1, 1])
    expected = functional.cross_entropy(
        torch.tensor(
            [
                [10 * math.cos(0.5), 10 * math.cos(1.2 + 0.3)],
                [10 * math.cos(2.0), 10 * math.cos(0.1 + 0.3)],
            ]
        ),
        labels,
        reduction="sum",
    )
    found = ArcFace(scale=10, margin=0.3).sum(10 * angles.cos(), labels)
    torch.testing.assert_close(found, expected)
    plain = ArcFace(0.1, torch.tensor([1.0, 3.0]), scale=10, margin=0.0)
    torch.testing.assert_close(
        plain.sum(10 * angles.cos(), labels),
        CrossEntropy(0.1, torch.tensor([1.0, 3.0])).sum(10 * angles.cos(), labels),
    )


def test_the_loss_falls_with_the_cosine_and_its_gradient_is_finite() -> None:
    """Also beyond a half turn, where the cosine of the larger angle would rise again."""
    cosines = torch.linspace(-1, 1, 201).requires_grad_()
    logits = 30 * torch.stack([cosines, torch.zeros(201)], 1)
    losses = torch.stack([ArcFace().sum(row[None], torch.tensor([0])) for row in logits])
    assert (losses.diff() <= 0).all()
    (gradient,) = torch.autograd.grad(losses.sum(), cosines)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["cnn", "mobilenet_v3_small", "squeezenet1_1"])
def test_logits_are_scaled_cosines_of_the_embedding(name: str) -> None:
    model = build_model(name, ["a", "b", "c"], 64, cosine_scale=20.0).eval()
    photos = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    (weight,) = model.head.parameters()
    cosines = functional.cosine_similarity(model.embed(photos)[:, None], weight[None], dim=2)
    torch.testing.assert_close(model(photos), 20 * cosines)


@pytest.mark.slow
def test_a_training_is_logged_and_its_model_embeds(make_catalog: MakeCatalog) -> None:
    result = train(options(make_catalog()))
    assert mlflow.get_run(result.run_id).data.params["loss"] == "arcface"
    loaded = Classifier.load(result.uri)
    photos = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    module = mlflow.pytorch.load_model(result.uri).eval()
    assert module.embed(photos).shape == (2, 512)
    assert (module(photos) * module.temperature).abs().max() <= 30
    assert len(loaded.classes) == 3


def test_the_head_alone_is_trained_behind_a_frozen_backbone(make_catalog: MakeCatalog) -> None:
    chosen = options(make_catalog(), freeze="backbone", augment="none", epochs="6", lr="0.1")
    result = train(chosen)
    history = mlflow.MlflowClient().get_metric_history(result.run_id, "train_loss")
    assert history[-1].value < history[0].value


@pytest.mark.parametrize(("trained", "started"), [(30.0, None), (None, 30.0)])
def test_the_head_of_another_loss_is_not_loaded(
    trained: float | None, started: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    old = build_model("cnn", ["a", "b"], 32, cosine_scale=trained)
    with caplog.at_level(logging.WARNING):
        new = build_model("cnn", ["a", "b"], 32, weights_of_model(old, "old"), cosine_scale=started)
    assert "the head was trained with another loss" in caplog.text
    torch.testing.assert_close(new.backbone.state_dict(), old.backbone.state_dict())
    assert not torch.equal(new.head.weight, old.head.weight)


def test_rows_of_known_label_groups_are_kept() -> None:
    old = build_model("cnn", ["a", "b"], 32, cosine_scale=30.0)
    new = build_model("cnn", ["b", "c"], 32, weights_of_model(old, "old"), cosine_scale=30.0)
    torch.testing.assert_close(new.head.weight[0], old.head.weight[1])


@pytest.mark.fault
def test_photos_of_two_label_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="mix=mixup gives it two"):
        TrainConfig(loss="arcface", mix="mixup")


@pytest.mark.fault
@pytest.mark.parametrize("head", [nn.Linear(3072, 3), CosineLinear(3072, 3, 64.0)], ids=repr)
def test_a_model_of_the_callers_with_another_head_is_refused(head: nn.Module) -> None:
    own = nn.Sequential(nn.Flatten(), head)
    with pytest.raises(ConfigError, match="needs a model whose head computes cosines times 30"):
        check_parts(CustomParts(model=own), TrainConfig(loss="arcface", image_size=32))


def test_the_loss_can_be_searched(tmp_path: Path) -> None:
    space = {"loss": ["cross_entropy", "arcface"]}
    assert plan_of(tmp_path, {"space": space}).space == {
        "loss": Choice(("cross_entropy", "arcface"))
    }
