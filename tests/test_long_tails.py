"""Long-tailed catalogues: a balanced sampler, and metrics in which each label counts alike."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import MakeCatalog
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from small_batches import small_batches

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import MONITORED, resolve
from shopee_mlflow.data.batches import Batches
from shopee_mlflow.modeling.epochs import EPOCH_METRICS, validation_metrics
from shopee_mlflow.modeling.metrics import FINAL_METRICS, scores_of_test

SIZES = [80, 15, 5]


def batches(balanced: bool, size: int = 10, share: tuple[int, int] = (0, 1)) -> Batches:
    """100 photos with labels of very different sizes."""
    plain = small_batches(100, 3, size, train=True, share=share, balanced=balanced)
    return dataclasses.replace(plain, labels=np.repeat(np.arange(3), SIZES))


def labels_of(batches: Batches, number: int = 1, skip: int = 0) -> list[int]:
    return [label for b in batches.epoch(number, skip) for label in b.labels.tolist()]


def test_a_balanced_epoch_draws_all_labels_alike() -> None:
    drawn = np.concatenate([labels_of(batches(True), number) for number in range(30)])
    counts = np.bincount(drawn)
    assert len(drawn) == 3000
    # The 99.9 % point of chi-square with 2 degrees of freedom.
    assert ((counts - 1000) ** 2 / 1000).sum() < 13.8
    assert np.bincount(labels_of(batches(False))).tolist() == SIZES


def test_a_balanced_epoch_follows_from_seed_and_number() -> None:
    whole = labels_of(batches(True))
    assert whole == labels_of(batches(True))
    assert whole != labels_of(batches(True), 2)
    assert whole[30:] == labels_of(batches(True), skip=3)


@pytest.mark.parametrize("shares", [2, 3])
def test_processes_share_a_balanced_epoch(shares: int) -> None:
    whole = [b.labels.tolist() for b in batches(True).epoch(3)]
    for rank in range(shares):
        parts = batches(True, share=(rank, shares)).epoch(3)
        assert [b.labels.tolist() for b in parts] == [labels[rank::shares] for labels in whole]


def test_evaluation_sees_each_photo_once() -> None:
    plain = dataclasses.replace(batches(True), train=False)
    assert np.bincount(labels_of(plain)).tolist() == SIZES


def test_metrics_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 9, 60), rng.normal(size=(60, 9)).astype(np.float32)
    values = validation_metrics(labels, logits)
    assert tuple(values) == MONITORED
    assert values.keys() <= set(EPOCH_METRICS)
    balanced = balanced_accuracy_score(labels, logits.argmax(1))
    top5 = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(9))
    assert values["val_balanced_accuracy"] == pytest.approx(balanced)
    assert values["val_top5_accuracy"] == pytest.approx(top5)
    scores = scores_of_test(labels, logits)
    assert scores["test_balanced_accuracy"] == pytest.approx(balanced)
    assert scores["test_top5_accuracy"] == pytest.approx(top5)
    assert scores.keys() <= set(FINAL_METRICS)


@pytest.mark.slow
@pytest.mark.parametrize("monitor", MONITORED)
def test_every_metric_chooses_the_best_epoch(make_catalog: MakeCatalog, monitor: str) -> None:
    options = {"data": str(make_catalog()), "model": "cnn", "image_size": "32", "epochs": "3"}
    options |= {"batch_size": "8", "monitor": monitor, "sampling": "balanced"}
    result = train(resolve(TrainConfig, options))
    assert result.scores[f"best_{monitor}"] == result.history[monitor].max()
    assert set(result.history.columns) == {"epoch", *EPOCH_METRICS}


@pytest.mark.slow
def test_a_balanced_training_repeats_exactly(make_catalog: MakeCatalog) -> None:
    options = {"data": str(make_catalog()), "model": "cnn", "image_size": "32", "epochs": "2"}
    options |= {"batch_size": "8", "sampling": "balanced", "class_weights": "balanced"}
    first, again = (train(resolve(TrainConfig, options)) for _ in range(2))
    assert list(first.history["train_loss"]) == list(again.history["train_loss"])
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
