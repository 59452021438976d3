"""A real tracking server that stops, restarts or responds late during a training."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from conftest import MakeCatalog
from mlflow_server import MlflowServer

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.console import TrainingProgress
from shopee_mlflow.errors import TrackingError

pytestmark = pytest.mark.slow
EPOCHS = 4


@pytest.fixture
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_places: None
) -> Iterator[MlflowServer]:
    del own_places
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    yield server
    server.stop()


def config(folder: Path) -> TrainConfig:
    options = {"data": str(folder), "model": "cnn", "image_size": 32, "epochs": EPOCHS}
    return resolve(TrainConfig, {**options, "batch_size": 8})


def after_epoch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], None]) -> None:
    """Do something when an epoch of this number has ended."""
    shown = TrainingProgress.epoch

    def epoch(self: TrainingProgress, at: int, *rest: Any) -> None:
        shown(self, at, *rest)
        if at == number:
            act()

    monkeypatch.setattr(TrainingProgress, "epoch", epoch)


def check_whole(run_id: str) -> None:
    """The run is as one that was never disturbed."""
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    for name in ("train_loss", "val_accuracy"):
        steps = [m.step for m in mlflow.MlflowClient().get_metric_history(run_id, name)]
        assert steps == list(range(1, EPOCHS + 1)), name
    assert "test_accuracy" in run.data.metrics


@pytest.mark.fault
def test_a_server_that_comes_back_has_everything(
    server: MlflowServer,
    make_catalog: MakeCatalog,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    after_epoch(monkeypatch, 1, server.stop)
    back: list[threading.Thread] = []

    def come_back() -> None:
        # It takes seconds, in which the training comes to its end and waits.
        back.append(threading.Thread(target=server.start))
        back[0].start()

    after_epoch(monkeypatch, EPOCHS, come_back)
    with caplog.at_level(logging.WARNING):
        result = train(config(make_catalog()))
    back[0].join()
    check_whole(result.run_id)
    told = [m for m in caplog.messages if "does not respond" in m]
    assert len(told) <= 1, caplog.messages
    loaded = mlflow.pytorch.load_model(f"models:/{result.model_id}", weights_only=False)
    assert loaded.classes == result.dataset.classes


@pytest.mark.fault
def test_a_server_that_does_not_come_back_leaves_all_on_the_disk(
    server: MlflowServer, make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shopee_mlflow.tracking.mlflow_run_log._WAIT_SECONDS", 1.0)
    with monkeypatch.context() as patch:
        after_epoch(patch, 2, server.stop)
        with pytest.raises(TrackingError) as caught:
            train(config(make_catalog()))
    message = str(caught.value)
    assert "The training has ended, and nothing is lost" in message
    (folder,) = Path("checkpoints").iterdir()
    assert str(folder.resolve()) in message
    assert f"--resume {folder.name}" in message
    assert list(pd.read_csv(folder / "history.csv")["epoch"]) == [1, 2, 3, 4]
    left = mlflow.pytorch.load_model(str(folder / "model"), weights_only=False).eval()
    photos = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = left(photos)

    server.start()
    assert mlflow.get_run(folder.name).info.status == "RUNNING"  # nobody could say otherwise
    result = train(TrainConfig(resume="last"))
    assert result.run_id == folder.name
    check_whole(result.run_id)
    with torch.no_grad():
        torch.testing.assert_close(result.model(photos), expected)
    assert not folder.exists()


class HeldBack:
    """A door before the server that keeps metrics waiting until it is opened."""

    def __init__(self, server: MlflowServer) -> None:
        self.server, self.open, self.held = server, threading.Event(), threading.Event()
        self.door = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.door.accept()
            except OSError:
                return
            behind = socket.create_connection(("127.0.0.1", self.server.port))
            threading.Thread(target=self._pass, args=(client, behind, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(behind, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, asking: bool) -> None:
        request = b""
        with source, target, suppress(OSError):
            while data := source.recv(1 << 16):
                request += data
                if asking and b"log-batch" in request and b"train_loss" in request:
                    request = b""
                    self.held.set()
                    self.open.wait(60)
                target.sendall(data)


@pytest.mark.fault
def test_a_server_that_answers_late_holds_no_epoch_up(
    server: MlflowServer, make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = HeldBack(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", door.uri)
    monkeypatch.setattr("shopee_mlflow.tracking.metric_queue._SEND_SECONDS", 0.01)
    waited: list[bool] = []
    # The request with the first epoch's metrics has not been answered when the second epoch ends.
    after_epoch(monkeypatch, 1, lambda: waited.append(door.held.wait(30)))
    after_epoch(monkeypatch, 2, lambda: waited.append(not door.open.is_set()))
    after_epoch(monkeypatch, EPOCHS, door.open.set)
    result = train(config(make_catalog()))
    assert waited == [True, True]
    check_whole(result.run_id)
    door.door.close()


@pytest.mark.fault
def test_a_server_that_was_never_there_is_an_error_before_training(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(TrackingError, match="failed"):
            train(config(make_catalog()))
    assert not Path("checkpoints").exists()
