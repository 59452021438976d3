"""A team's server: MLflow on PostgreSQL, four trainings and a search of four workers at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import yaml
from conftest import MakeCatalog
from mlflow_server import MlflowServer
from postgres_server import PostgresServer, postgres_server
from warm_process import WarmProcess

from shopee_mlflow import cli

pytestmark = pytest.mark.slow
TRAININGS, WORKERS, TRIALS, EPOCHS = 4, 4, 4, 2
OPTIONS = {"model": "cnn", "image_size": 32, "epochs": EPOCHS, "batch_size": 8}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


def mlflow_address(postgres: PostgresServer) -> str:
    """A database for MLflow, by its driver: SQLAlchemy's own choice is another one."""
    return postgres.new_database().replace("postgresql:", "postgresql+psycopg2:")


@pytest.fixture
def server(postgres: PostgresServer, tmp_path: Path) -> Iterator[MlflowServer]:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server", mlflow_address(postgres))
    server.start()
    yield server
    server.stop()


def start(*words: str, env: dict[str, str]) -> WarmProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    return WarmProcess("shopee_mlflow", *words, env=env, warm_children=words[0] == "tune")


@pytest.mark.fault
def test_eight_clients_at_once_lose_nothing(
    server: MlflowServer, postgres: PostgresServer, make_catalog: MakeCatalog, tmp_path: Path
) -> None:
    folder = make_catalog(each=12)
    space = {**OPTIONS, "n_trials": TRIALS, "space": {"lr": {"low": 0.001, "high": 0.03}}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    env = {"MLFLOW_TRACKING_URI": server.uri}
    words = [f"--{name}={value}" for name, value in {**OPTIONS, "data": folder}.items()]
    clients = [start("train", *words, f"--seed={seed}", env=env) for seed in range(TRAININGS)]
    search = ["tune", "--config", str(tmp_path / "space.yaml"), "--data", str(folder)]
    search += ["--jobs", str(WORKERS), "--storage", postgres.new_database(), "--register", "false"]
    clients.append(start(*search, env=env))
    for client in clients:
        said, _ = client.communicate(timeout=300)
        assert client.returncode == 0, said

    store = mlflow.MlflowClient(server.uri)
    found = store.get_experiment_by_name("shopee")
    assert found is not None
    runs = store.search_runs([found.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    trials = [run for run in runs if "trial" in run.data.tags]
    trainings = [
        run for run in runs if "trial" not in run.data.tags and "study" not in run.data.tags
    ]
    assert (len(trials), len(trainings)) == (TRIALS, TRAININGS)
    for run in trainings:
        steps = [m.step for m in store.get_metric_history(run.info.run_id, "val_accuracy")]
        assert steps == list(range(1, EPOCHS + 1))
        names = {item.path for item in store.list_artifacts(run.info.run_id)}
        assert {"report.html", "data", "training", "test"} <= names


@pytest.mark.fault
def test_a_wrong_password_is_told_before_training(
    make_catalog: MakeCatalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = MlflowServer(tmp_path)
    server.switch_accounts_on(admin_password="a long password")
    server.start()
    try:
        words = [f"--{name}={value}" for name, value in {**OPTIONS, "data": make_catalog()}.items()]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed")
        with pytest.raises(SystemExit) as caught:
            cli.main(["train", *words])
        said = "".join(capsys.readouterr())
        assert caught.value.code == 2, said
        assert "failed" in said
        assert "401" in said
        assert "guessed" not in said
        assert "rows in the catalogue" not in said
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long password")
        assert mlflow.MlflowClient(server.uri).search_experiments()
    finally:
        server.stop()
