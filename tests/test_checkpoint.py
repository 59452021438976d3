"""Checkpoints: complete or absent, never executed, and resumed exactly."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_batches import small_batches
from torch import nn
from warm_process import WarmProcess

from shopee_mlflow.config import TrainConfig
from shopee_mlflow.data.batches import Batches
from shopee_mlflow.errors import CheckpointError
from shopee_mlflow.modeling import checkpoint
from shopee_mlflow.modeling.architectures import build_model
from shopee_mlflow.modeling.checkpoint import BEST, LAST, Checkpoints
from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.epochs import BestEpoch, Epoch
from shopee_mlflow.training.trainer import Trainer

CPU = Machine(torch.device("cpu"), "fp32")
# Dropout and batch norms, so that random states and buffers matter; 3 batches an epoch.
CONFIG = TrainConfig(
    model="mobilenet_v3_small", epochs=3, lr=0.01, batch_size=4, image_size=32, label_smoothing=0.1
)
PHOTOS, CLASSES = 12, ["a", "b", "c"]


class InterruptedHereError(Exception):
    """Raised in the place of a signal."""


def batches(size: int, train: bool = False) -> Batches:
    return small_batches(PHOTOS, len(CLASSES), size, train, "original" if train else "none")


EXACT = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1", "lr")


def training(config: TrainConfig = CONFIG) -> Trainer:
    torch.manual_seed(5)
    model = build_model(config.model, CLASSES, 32).to(memory_format=torch.channels_last)
    return Trainer(model, batches(4, train=True), batches(8), config, CPU)


def numbers(epochs: list[Epoch]) -> list[tuple[float, ...]]:
    """What does not depend on the clock."""
    return [tuple(e[name] for name in EXACT) for e in epochs]


@pytest.fixture(scope="module")
def undisturbed() -> list[tuple[float, ...]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    history = numbers(list(training().epochs()))
    torch.set_num_threads(threads)
    assert len(history) == 3
    return history


@pytest.mark.parametrize("after", [1, 2, 3, 4, 7, 8])
def test_a_training_goes_on_exactly_after_any_batch(
    after: int, undisturbed: list[tuple[float, ...]], tmp_path: Path
) -> None:
    before, left, history = training(), [after], []
    checkpoints = Checkpoints(tmp_path / "run")

    def between() -> None:
        left[0] -= 1
        if left[0] == 0:
            checkpoints.save({"training": before.state()})
            raise InterruptedHereError

    with suppress(InterruptedHereError):
        for epoch in before.epochs(after_batch=between):
            history.append(epoch)
    assert left[0] == 0
    # Another process has another random state.
    torch.manual_seed(99)
    again = training()
    again.restore(checkpoints.load()[0]["training"])
    history += again.epochs()
    assert numbers(history) == undisturbed


def test_after_an_epoch_the_next_one_comes(undisturbed: list[tuple[float, ...]]) -> None:
    before = training()
    first = next(before.epochs())
    again = training()
    again.restore(before.state())
    assert numbers([first, *again.epochs()]) == undisturbed


def test_a_state_of_another_network_is_refused() -> None:
    other = training(dataclasses.replace(CONFIG, model="cnn"))
    with pytest.raises(CheckpointError, match="does not match this training"):
        training().restore(other.state())
    with pytest.raises(CheckpointError, match="does not match this training"):
        training().restore({"module": 1})


def test_the_best_epoch_is_kept_beside_the_last(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    best = BestEpoch(module)
    epoch = Epoch(1, {"val_loss": 0.5, "val_accuracy": 0.5})
    best.update(epoch)
    kept = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save({"n": 1}, best.state())
    with torch.no_grad():
        module.weight.zero_()
    checkpoints.save({"n": 2})
    last, stored = checkpoints.load()
    assert last["n"] == 2
    assert stored is not None
    again = BestEpoch(module)
    again.restore_state(stored)
    assert again.load_weights() == epoch
    assert torch.equal(module.weight, kept["weight"])
    assert {file.name for file in (tmp_path / "run").iterdir()} == {LAST, BEST}


@pytest.mark.fault
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("disk")])
def test_a_full_disk_leaves_the_checkpoint_before(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save({"n": 1})

    def fail(content: Any, stream: Any) -> None:
        stream.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"could not be written .* The previous one is unch"):
        checkpoints.save({"n": 2})
    assert checkpoints.load()[0]["n"] == 1
    assert [file.name for file in (tmp_path / "run").iterdir()] == [LAST]


REFUSED = """
import resource, sys, torch
from pathlib import Path
from shopee_mlflow.errors import CheckpointError
from shopee_mlflow.modeling.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save({"n": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    checkpoints.save({"n": 2, "weights": torch.ones(2**20)})
except CheckpointError as error:
    print(error)
"""


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are POSIX's")
def test_a_write_that_the_kernel_refuses_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    said, _ = WarmProcess("-c", REFUSED, str(tmp_path / "run")).communicate(timeout=60)
    assert "could not be written" in said
    assert Checkpoints(tmp_path / "run").load()[0]["n"] == 1
    assert [file.name for file in (tmp_path / "run").iterdir()] == [LAST]


class Evil:
    """Runs code when a pickle of it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


@pytest.mark.fault
@pytest.mark.parametrize(
    "damage", ["cut", "empty", "text", "changed", "evil", "evil in torch's format"]
)
def test_a_damaged_checkpoint_is_told_and_never_executed(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save({"n": torch.ones(1000)})
    file, proof = tmp_path / "run" / LAST, tmp_path / "executed"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif damage == "changed":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1  # within the tensor
        file.write_bytes(data)
    elif damage == "evil":
        file.write_bytes(pickle.dumps(Evil(proof), protocol=2))
    elif damage == "evil in torch's format":
        checkpoints.save({"evil": Evil(proof)})
    else:
        file.write_bytes(b"" if damage == "empty" else b"no checkpoint at all")
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        checkpoints.load()
    assert not proof.exists()


def test_no_checkpoint_and_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    assert not checkpoints.is_there()
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        checkpoints.load()
    checkpoints.save({"n": 1})
    assert checkpoints.is_there()
    monkeypatch.setattr(checkpoint, "_VERSION", 99)
    with pytest.raises(CheckpointError, match="another version of this project"):
        checkpoints.load()
    checkpoints.delete()
    assert not (tmp_path / "run").exists()
