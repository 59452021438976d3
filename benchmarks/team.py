"""Measure a team's tracking server under several clients at once.

    python benchmarks/team.py --server http://127.0.0.1:5000 --storage postgresql://user@host/name

Starts several trainings and a search with several workers at once against a running server, and
checks that the server has everything they logged. deploy/README.md explains how to start one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import yaml

_ROOT = Path(__file__).resolve().parents[1]
_NAME = "team benchmark"
_SMALL = {"model": "cnn", "image_size": 32, "batch_size": 16, "sample_px": 64}


def main() -> int:
    """Start all clients, wait for them, print their times and whether anything is missing."""
    options = _parser().parse_args()
    mlflow.set_tracking_uri(options.server)
    experiment = f"{_NAME} {time.time():.0f}"
    shared = {**_SMALL, "epochs": options.epochs, "experiment": experiment}
    env = {**os.environ, "MLFLOW_TRACKING_URI": options.server, "OMP_NUM_THREADS": "1"}
    _run(["train", *_words({**shared, "experiment": f"{experiment} warm-up"})], env).wait()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        space.write_text(yaml.safe_dump({"space": {"lr": {"low": 0.001, "high": 0.03}}}))
        search = {**shared, "config": space, "n_trials": options.trials, "jobs": options.workers}
        search |= {"storage": options.storage, "register": "false"}
        commands = [["train", *_words({**shared, "seed": n})] for n in range(options.trainings)]
        clients = [_run(command, env) for command in [*commands, ["tune", *_words(search)]]]
        codes = [client.wait() for client in clients]
    seconds = time.monotonic() - started
    problems = [f"a client ended with {code}" for code in codes if code]
    problems += _missing(experiment, options)
    print(
        f"| {options.trainings} trainings and {options.workers} workers with {options.trials} "
        f"trials, {options.epochs} epochs each | {seconds:.1f} s | {'; '.join(problems) or 'all'} |"
    )
    return 1 if problems else 0


def _missing(experiment: str, options: argparse.Namespace) -> list[str]:
    """What is missing on the server of the runs that were logged."""
    runs = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    children = [run for run in runs if "study" not in run.data.tags]
    wanted = options.trainings + options.trials
    problems = [f"{len(children)} runs in the place of {wanted}"] if len(children) != wanted else []
    client = mlflow.MlflowClient()
    for run in runs:
        if run.info.status != "FINISHED":
            problems.append(f"run {run.info.run_id} is {run.info.status}")
    for run in children:
        points = client.get_metric_history(run.info.run_id, "val_accuracy")
        steps = [point.step for point in points]
        # A pruned trial has fewer epochs.
        wanted = len(steps) if run.data.tags.get("state") == "pruned" else options.epochs
        if not steps or steps != list(range(1, wanted + 1)):
            problems.append(f"run {run.info.run_id} has {len(points)} epochs")
    return problems


def _words(options: dict[str, object]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]


def _run(words: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shopee_mlflow", *words]
    return subprocess.Popen(command, env=env, cwd=_ROOT, stdout=subprocess.DEVNULL)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/team.py", description=__doc__)
    add = parser.add_argument
    add("--server", required=True, help="address of the tracking server")
    add("--storage", required=True, help="address of the search's database")
    add("--trainings", type=int, default=4)
    add("--workers", type=int, default=4)
    add("--trials", type=int, default=8)
    add("--epochs", type=int, default=5)
    return parser


if __name__ == "__main__":
    sys.exit(main())
