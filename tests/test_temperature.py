"""Temperature scaling: the fit, its limits, and the models that hold it."""

from __future__ import annotations

import dataclasses
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeCatalog
from torch import nn

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.modeling.metrics import softmax
from shopee_mlflow.modeling.models import ProductClassifier
from shopee_mlflow.modeling.temperature import (
    HIGHEST,
    LOWEST,
    Temperature,
    calibration_facts,
    fit_temperature,
)
from shopee_mlflow.training.custom import as_classifier


def drawn(photos: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn with the probabilities of their logits: a calibrated model."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (photos, 5))
    labels = np.array([rng.choice(5, p=p) for p in softmax(logits)])
    return labels, logits.astype(np.float32)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_temperature_of_scaled_logits_is_found(true: float) -> None:
    labels, logits = drawn(4000)
    found = fit_temperature(labels, logits * np.float32(true))
    assert found.value == pytest.approx(true, rel=0.06)
    assert "4,000 validation photos" in found.words


def test_an_overconfident_model_is_calibrated_on_other_photos() -> None:
    found = fit_temperature(*(x * k for x, k in zip(drawn(500), (1, 4), strict=True)))
    labels, logits = drawn(2000, seed=1)
    facts = calibration_facts(labels, logits * 4, logits * 4 / found.value, found)
    assert float(facts["error_before"]) > 0.1
    assert float(facts["error_after"]) < 0.04
    assert float(facts["chance_after"]) < 0.04


def test_a_model_without_mistakes_keeps_a_finite_temperature() -> None:
    labels = np.arange(60) % 3
    logits = np.eye(3, dtype=np.float32)[labels]
    value = fit_temperature(labels, logits).value
    # (N + 1) / (N + 2) of the probability on the true class, as Platt's targets say.
    assert softmax(logits[:1] / value)[0, 0] == pytest.approx(61 / 62, abs=1e-3)


@pytest.mark.parametrize(
    ("photos", "value", "words"),
    [(19, 0.0, "19 validation photos are too few"), (40, np.nan, "not finite")],
)
def test_what_cannot_be_fitted_changes_nothing(photos: int, value: float, words: str) -> None:
    found = fit_temperature(np.zeros(photos, int), np.full((photos, 3), value, np.float32))
    assert found.value == 1
    assert words in found.words


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_temperature_is_bounded(scale: float) -> None:
    labels, logits = drawn(100)
    assert LOWEST <= fit_temperature(labels, logits * np.float32(scale)).value <= HIGHEST


@pytest.mark.parametrize("tta", [False, True])
def test_a_model_divides_its_logits(tta: bool) -> None:
    torch.manual_seed(0)
    model = ProductClassifier(nn.Flatten(), nn.Linear(12, 3), ["a", "b", "c"], 2).eval()
    model.tta = tta
    photos = torch.rand(8, 3, 2, 2)
    before = model(photos)
    model.temperature = 0.25
    torch.testing.assert_close(model(photos), 4 * before)
    assert torch.equal(model(photos).argmax(1), before.argmax(1))


@pytest.mark.slow
def test_a_training_calibrates_what_it_logs(make_catalog: MakeCatalog) -> None:
    folder = make_catalog(each=80)
    options = {"data": str(folder), "model": "cnn", "image_size": "32", "epochs": "2"}
    options |= {"batch_size": "16", "tta": "true", "min_group": "3"}
    result = train(resolve(TrainConfig, options))
    facts = json.loads(mlflow.artifacts.load_text(f"runs:/{result.run_id}/test/calibration.json"))
    value = facts["temperature"]
    assert value != 1
    test = torch.from_numpy(result.dataset.photos(result.dataset.rows("test"))).permute(0, 3, 1, 2)
    logged = mlflow.pytorch.load_model(result.uri)
    with torch.inference_mode():
        np.testing.assert_allclose(logged(test).numpy(), result.test_logits, atol=1e-4)
        logged.temperature = 1.0
        np.testing.assert_allclose(logged(test).numpy() / value, result.test_logits, atol=1e-4)
    files = [str(path) for path in result.dataset.frame["file"].iloc[:5]]
    answers = mlflow.pyfunc.load_model(result.uri).predict(pd.DataFrame({"image": files}))
    with torch.inference_mode():
        shown = torch.from_numpy(result.dataset.photos(np.arange(5))).permute(0, 3, 1, 2)
        best = result.model.eval()(shown).softmax(1).amax(1)
    np.testing.assert_allclose(answers["probability"].astype(float), best, atol=1e-3)
    assert {"error_before", "chance_before", "error_after", "chance_after"} <= facts.keys()


def test_a_new_training_of_a_calibrated_model_starts_without_temperature() -> None:
    model = ProductClassifier(nn.Flatten(), nn.Linear(12288, 2), ["a", "b"], 64)
    model.temperature = 3.0
    config = dataclasses.replace(TrainConfig(), image_size=64)
    assert as_classifier(model, ["a", "b"], config).temperature == 1
    assert model.temperature == 3


def test_no_temperature_is_said() -> None:
    assert Temperature().value == 1
    assert "no temperature" in Temperature().words
