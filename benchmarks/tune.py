"""Compare the time of a whole study with that of its first trial.

    python benchmarks/tune.py --trials 30
    python benchmarks/tune.py --trials 30 --data shop/ --weights backbone.pth

Runs the real command with ``experiments/tune.yaml`` (only the head is trained) in a separate
process, with an empty cache and a new tracking store, and prints a Markdown row. Without ``--data``
and ``--weights`` it uses the built-in catalogue and random weights, which take the same time.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import torch

if TYPE_CHECKING:
    from .job import Job

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--weights")
    options = parser.parse_args()
    given = {"data": options.data, "n_trials": options.trials, "jobs": options.jobs}
    found = study_seconds({**given, **starting_weights(options.weights)})
    first, whole = found["first_trial"], found["whole"]
    print(
        "| trials | first trial, s | median of the others, s | whole command, s | command / first "
        "trial | machine |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {found['states']} | {first:.1f} | {found['others']:.2f} | {whole:.1f} | "
        f"{whole / first:.2f} | "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__} |"
    )


def measure(job: Job) -> dict[str, Any]:
    """Times of a study on a catalogue of the benchmark."""
    given = {"data": job.catalog, "n_trials": job.trials, "image_size": job.image_size}
    return study_seconds({**given, "device": job.device, **starting_weights(job.weights)})


def starting_weights(weights: str | None) -> dict[str, str]:
    """The options for these weights; None: random weights."""
    return {"weights": weights} if weights else {"model": "effnet"}


def study_seconds(given: Mapping[str, object]) -> dict[str, Any]:
    """Seconds of the first trial, of the other trials (median) and of the whole command."""
    with tempfile.TemporaryDirectory() as place:
        whole, table = run_study(Path(place), given)
    states = table["state"].value_counts()
    return {
        "states": ", ".join(f"{count} {state}" for state, count in states.items()),
        "first_trial": float(table.loc[table["trial"] == 0, "seconds"].item()),
        "others": float(table.loc[table["trial"] > 0, "seconds"].median()),
        "whole": whole,
    }


def run_study(place: Path, given: Mapping[str, object]) -> tuple[float, pd.DataFrame]:
    """Seconds of the whole command with these options, and the table of its trials."""
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
