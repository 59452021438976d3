"""The run log as an interface: training knows it and needs no MLflow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeCatalog

from shopee_mlflow.tracking.mlflow_run_log import MlflowRunLog
from shopee_mlflow.tracking.run_log import NullRunLog, RunLog

TRAIN_WITHOUT_MLFLOW = """
import sys
from shopee_mlflow.tracking.run_log import NullRunLog
assert "mlflow" not in sys.modules

from shopee_mlflow.config import TrainConfig
from shopee_mlflow.console import TrainingProgress
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.modeling.device import choose_machine
from shopee_mlflow.training.context import TrainingContext
from shopee_mlflow.training.session import TrainingSession

config = TrainConfig(
    data=sys.argv[1], model="cnn", image_size=32, epochs=2, batch_size=8, device="cpu"
)
context = TrainingContext(load_dataset(config), choose_machine("cpu", config.precision))
session = TrainingSession(config, context, NullRunLog())
session.fit(TrainingProgress(session.trainer.photos, config.epochs))
print("trained", len(session.history), "epochs, run", session.run.run_id)
"""


def methods(log: type) -> set[str]:
    return {name for name in vars(log) if not name.startswith("_") and callable(vars(log)[name])}


@pytest.mark.parametrize("log", [NullRunLog, MlflowRunLog])
def test_every_log_has_the_methods_of_the_protocol(log: type) -> None:
    assert methods(RunLog) <= methods(log)
    assert len(methods(RunLog)) > 10


@pytest.mark.slow
def test_training_with_a_null_log_writes_nothing(make_catalog: MakeCatalog) -> None:
    shop = make_catalog()
    before = set(Path().rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_WITHOUT_MLFLOW, str(shop)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["trained 2 epochs, run none"], done.stderr
    assert set(Path().rglob("*")) == before
