"""A real mlflow run in its own process, and its response to signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import mlflow
import psutil
import pytest
from conftest import MakeCatalog
from mlflow.entities import Run
from new_store import new_store
from warm_process import WarmProcess

from shopee_mlflow import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = {"model": "cnn", "image_size": "32", "epochs": "2", "batch_size": "8", "lr": "1e-2"}


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A store of its own for each test, and this Python as ``python``, as in an active venv."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    store = new_store(tmp_path / "runs.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return {
        **os.environ,
        "PATH": path,
        "MLFLOW_TRACKING_URI": store,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def project(*options: str, **params: str) -> list[str]:
    pairs = [word for name, value in params.items() for word in ("-P", f"{name}={value}")]
    command = ["mlflow", "run", str(ROOT), "-e", "train"]
    return [*command, "--env-manager", "local", *options, *pairs]


def call(command: Sequence[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    """The exit code of ``python -m COMMAND``, and what it wrote."""
    process = WarmProcess(*command, env=env, cwd=cwd)
    said, _ = process.communicate(timeout=240)
    return process.wait(), said


def only_run(experiment: str = "shopee") -> Run:
    found = mlflow.MlflowClient().get_experiment_by_name(experiment)
    assert found is not None, f"no experiment {experiment}"
    (run,) = mlflow.MlflowClient().search_runs([found.experiment_id])
    return run


def test_mlflow_run_and_the_command_line_log_the_same(
    make_catalog: MakeCatalog, env: dict[str, str], tmp_path: Path
) -> None:
    params = {**QUICK, "data": str(make_catalog(name="my shop")), "tta": "False"}
    code, said = call(project("--experiment-name", "by-project", **params), env, tmp_path)
    assert code == 0, said
    direct = [f"--{name}={value}" for name, value in params.items()]
    cli.main(["train", *direct, "--experiment", "by-project"])
    found = mlflow.MlflowClient().get_experiment_by_name("by-project")
    assert found is not None
    by_project, by_hand = mlflow.MlflowClient().search_runs(
        [found.experiment_id], order_by=["start_time"]
    )
    one, other = by_project.data.params, by_hand.data.params
    assert one.pop("experiment") == "shopee"
    assert other.pop("experiment") == "by-project"
    assert one == other
    assert one["lr"] == "1e-2"
    assert one["tta"] == "False"
    timeless = ("train_loss", "val_accuracy", "test_accuracy")
    for name in timeless:
        assert by_project.data.metrics[name] == by_hand.data.metrics[name]
    assert by_project.info.status == by_hand.info.status == "FINISHED"
    assert by_project.info.run_name == by_hand.info.run_name
    assert by_hand.info.run_name.startswith("cnn epochs=")


CONDA = """#!/usr/bin/env bash
# Stands in for conda, which this machine need not have: it notes the environment that mlflow asks
# for, and its activation puts the Python of the tests first.
echo "$@" >> "{log}"
case "$*" in
    *"env list"*) echo '{{"envs": []}}' ;;
    *info*) echo '{{"conda_version": "24.0.0"}}' ;;
esac
"""
ACTIVATE = """conda() {{ if [ "$1" = activate ]; then export PATH="{bin}:$PATH"; fi; }}
"""


def test_without_an_env_manager_conda_builds_the_environment(
    make_catalog: MakeCatalog, env: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "conda.log"
    (tmp_path / "conda/bin").mkdir(parents=True)
    (tmp_path / "conda/etc/profile.d").mkdir(parents=True)
    (tmp_path / "conda/bin/conda").write_text(CONDA.format(log=log))
    (tmp_path / "conda/bin/conda").chmod(0o755)
    activate = ACTIVATE.format(bin=Path(sys.executable).parent)
    (tmp_path / "conda/etc/profile.d/conda.sh").write_text(activate)
    command = project(**QUICK, data=str(make_catalog()))
    at = command.index("--env-manager")
    del command[at : at + 2]
    code, said = call(command, {**env, "MLFLOW_CONDA_HOME": str(tmp_path / "conda")}, tmp_path)
    assert code == 0, said
    asked = log.read_text()
    assert "env create" in asked
    assert str(ROOT / "conda.yaml") in asked
    # Without --experiment-name, mlflow run chooses the experiment Default, and we say so.
    assert "call: mlflow run --experiment-name shopee" in said
    assert only_run("Default").info.status == "FINISHED"


def test_mistakes_under_mlflow_run_leave_the_reason(env: dict[str, str], tmp_path: Path) -> None:
    code, said = call(project("--experiment-name", "shopee", lernrate="3"), env, tmp_path)
    assert code != 0
    assert "lernrate: no such option. Did you mean lr?" in said
    assert "Traceback" not in said
    *_, message, ending = said.splitlines()
    assert "lernrate" in message
    run = only_run()
    assert f"=== Run (ID '{run.info.run_id}') failed ===" in ending
    assert (run.info.status, run.data.tags["kind"]) == ("FAILED", "not-started")
    assert "lernrate: no such option" in run.data.tags["mlflow.note.content"]
    assert "lernrate: no such option" in run.data.tags["failure"]


def test_each_experiment_is_a_run_of_its_own_under_mlflow_run(
    make_catalog: MakeCatalog, env: dict[str, str], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("model: cnn\n")
    params = {k: v for k, v in QUICK.items() if k != "model"}
    command = project("--experiment-name", "shopee", **params, data=str(make_catalog()))
    command[command.index("train")] = "experiments"
    command += ["-P", f"files={tmp_path}/one.yaml,{tmp_path}/two.yaml"]
    code, said = call(command, env, tmp_path)
    assert code == 0, said
    runs = mlflow.search_runs(experiment_names=["shopee"])
    assert list(runs["status"]) == ["FINISHED"] * 3
    children = runs[runs["tags.mlflow.parentRunId"].notna()]
    assert set(children["tags.mlflow.runName"]) == {"one", "two"}
    assert children["metrics.test_accuracy"].notna().all()
    parent = runs[runs["tags.mlflow.parentRunId"].isna()]
    assert parent["metrics.test_accuracy"].isna().all()


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def trainers(data: str) -> list[psutil.Process]:
    """The training processes of this test's own catalogue."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "shopee_mlflow" in words and data in words and "mlflow" not in words:
            found.append(process)
    return found


def is_training() -> bool:
    found = mlflow.MlflowClient().get_experiment_by_name("shopee")
    if found is None:
        return False
    runs = mlflow.MlflowClient().search_runs([found.experiment_id])
    return bool(runs) and "val_accuracy" in runs[0].data.metrics


LONG = {**QUICK, "epochs": "100000"}


@pytest.mark.fault
@pytest.mark.parametrize("case", ["ctrl-c", "mlflow run is killed"])
def test_a_stopped_project_says_so_and_leaves_no_trainer(
    make_catalog: MakeCatalog, env: dict[str, str], tmp_path: Path, case: str
) -> None:
    data = str(make_catalog())
    # The trainer knows mlflow run by its command, which a WarmProcess does not show.
    command = [sys.executable, "-m", *project("--experiment-name", "shopee", **LONG, data=data)]
    with subprocess.Popen(
        command,
        env=env,
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as launcher:
        try:
            wait_for(is_training)
            if case == "ctrl-c":
                os.killpg(launcher.pid, signal.SIGINT)  # a terminal signals the whole group
            else:
                launcher.kill()  # a SIGTERM, which it does not pass on, comes to the same
            launcher.wait(60)
            wait_for(lambda: not trainers(data))
        finally:
            launcher.kill()
            for process in trainers(data):
                process.kill()
    run = only_run()
    # On Ctrl-C, mlflow run itself has the last word and writes FAILED over our KILLED.
    assert run.info.status == ("FAILED" if case == "ctrl-c" else "KILLED")
    reason = run.data.tags["failure"]
    assert reason == ("SIGINT received" if case == "ctrl-c" else "mlflow run is gone")


def test_a_stopped_command_ends_killed(
    make_catalog: MakeCatalog, env: dict[str, str], tmp_path: Path
) -> None:
    options = [f"--{k}={v}" for k, v in {**LONG, "data": str(make_catalog())}.items()]
    trainer = WarmProcess("shopee_mlflow", "train", *options, env=env, cwd=tmp_path)
    try:
        wait_for(is_training)
        trainer.send_signal(signal.SIGINT)
        said, _ = trainer.communicate(timeout=60)
    finally:
        trainer.kill()
    assert trainer.returncode == 130
    assert "stopped: SIGINT received" in said
    run = only_run()
    assert run.info.status == "KILLED"
    assert run.data.tags["failure"] == "SIGINT received"
