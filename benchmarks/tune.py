"""What does a trial cost once the first has been run? A whole study against its first trial.

    python benchmarks/tune.py --trials 30
    python benchmarks/tune.py --trials 30 --data shop/ --weights backbone.pth

Runs the real command with ``experiments/tune.yaml`` (only the head is trained) in a process of its
own, with an empty cache and a new tracking store, and prints a Markdown row. Without ``--data`` and
``--weights`` it takes the built-in catalogue and random weights: the work is the same.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import pandas as pd
import torch

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        seconds, table = run_study(Path(place), options)
    first = table.loc[table["trial"] == 0, "seconds"].item()
    rest = table.loc[table["trial"] > 0, "seconds"]
    states = ", ".join(f"{n} {state}" for state, n in table["state"].value_counts().items())
    print(
        "| trials | first trial, s | median of the others, s | whole command, s | command / first "
        "trial | machine |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {states} | {first:.1f} | {rest.median():.2f} | {seconds:.1f} | {seconds / first:.2f} | "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} |"
    )


def run_study(place: Path, options: argparse.Namespace) -> tuple[float, pd.DataFrame]:
    """Seconds of the whole command, and the table of its trials."""
    given = {"data": options.data, "n_trials": options.trials, "jobs": options.jobs}
    given |= {"weights": options.weights} if options.weights else {"model": "effnet"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    store = f"sqlite:///{place}/mlflow.db"
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": store,
        "SHOPEE_MLFLOW_CACHE": str(place / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "shopee_mlflow", "tune"]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--config", str(ROOT / "experiments" / "tune.yaml"), *words],
        env=env,
        cwd=place,
        check=True,
    )
    seconds = time.perf_counter() - started
    mlflow.set_tracking_uri(store)
    [parent] = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.study != ''", output_format="list"
    )
    file = mlflow.artifacts.download_artifacts(
        run_id=parent.info.run_id, artifact_path="tune/trials.csv", dst_path=str(place)
    )
    return seconds, pd.read_csv(file)


if __name__ == "__main__":
    main()
