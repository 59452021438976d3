"""Measure options one by one: five folds of a catalogue, so that every photo is tested once.

    python benchmarks/recipes.py --data shop --weights backbone.pth --out recipes [--rows seed,lr]

Each row of benchmarks/recipes.yaml is a cross-validation with the options of another row and a
change. The folder ``out`` gets a file for each row; rows that are there are not run again.
docs/recipes.md discusses the results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROWS = Path(__file__).with_name("recipes.yaml")


def main() -> None:
    """Run the rows that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="catalogue")
    parser.add_argument("--weights", default="auto", help="state-dict file; auto: torchvision's")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--rows", default="", help="names, separated by commas; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out = options.out.resolve()
    if options.one:
        measure(options.one, options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = read_rows()
    names = options.rows.split(",") if options.rows else list(rows)
    if unknown := [name for name in names if name not in rows]:
        parser.error(f"no such rows in {ROWS.name}: {', '.join(unknown)}")
    missing = [name for name in names if not (options.out / f"{name}.json").exists()]
    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [
            name for name, code in zip(missing, pool.map(start, missing), strict=True) if code
        ]
    print_table(rows, names, options.out)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their output is in {options.out}")


def read_rows() -> dict[str, dict[str, Any]]:
    """The options of each row; ``of`` names the row whose options it begins with."""
    rows: dict[str, dict[str, Any]] = {}
    for name, own in yaml.safe_load(ROWS.read_text(encoding="utf-8")).items():
        own = dict(own or {})
        base = own.get("of")
        inherited = {key: value for key, value in rows[base].items() if key != "of"} if base else {}
        rows[name] = {**inherited, **own}
    return rows


def start(name: str) -> int:
    """Run a row in a process of its own; returns its exit code."""
    out = Path(sys.argv[sys.argv.index("--out") + 1])
    with (out / f"{name}.log").open("w") as log:
        command = [sys.executable, *sys.argv, "--one", name]
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode


def measure(name: str, options: argparse.Namespace) -> None:
    """Cross-validate one row and write its scores and predictions."""
    store = options.out / "stores" / name
    store.mkdir(parents=True, exist_ok=True)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{store}/mlflow.db"
    from shopee_mlflow import cross_validate
    from shopee_mlflow.config import CrossValidateConfig, resolve

    own = {key: value for key, value in read_rows()[name].items() if key != "of"}
    settings = {"data": options.data, "weights": options.weights, "folds": options.folds, **own}
    began = time.perf_counter()
    result = cross_validate(resolve(CrossValidateConfig, settings))
    seconds = time.perf_counter() - began
    table = result.predictions
    report = {
        "options": own,
        "scores": dict(result.scores),
        "seconds": seconds,
        "photos": table[["image", "label_group", "predicted", "copy_set"]].to_dict("list"),
    }
    (options.out / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")


def print_table(rows: Mapping[str, Mapping[str, Any]], names: list[str], out: Path) -> None:
    """Print each row's change, accuracy with its interval, macro-F1, seconds and McNemar's p."""
    files = {name: out / f"{name}.json" for name in rows}
    found = {n: json.loads(f.read_text(encoding="utf-8")) for n, f in files.items() if f.exists()}
    print(
        "| row | of | change | accuracy | macro-F1 | seconds | right, wrong of it | McNemar's p |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in (name for name in names if name in found):
        row, base = found[name], rows[name].get("of", "")
        before = rows.get(base, {})
        change = {k: v for k, v in rows[name].items() if k != "of" and before.get(k) != v}
        scores = row["scores"]
        low, high = scores["cv_accuracy_low"], scores["cv_accuracy_high"]
        cells = [
            name,
            base,
            " ".join(f"{key}={value}" for key, value in change.items()),
            f"{scores['cv_accuracy']:.1%} ({low:.1%} to {high:.1%})",
            f"{scores['cv_macro_f1']:.3f}",
            f"{row['seconds']:.0f}",
            *(against(row["photos"], found[base]["photos"]) if base in found else ("", "")),
        ]
        print(f"| {' | '.join(cells)} |")


def against(mine: dict[str, list[str]], its: dict[str, list[str]]) -> tuple[str, str]:
    """Photos that only one of two rows has right, and McNemar's exact p, copies together."""
    from shopee_mlflow.modeling.metrics import mcnemar

    first, second = (pd.DataFrame(table).set_index("image").sort_index() for table in (mine, its))
    if not first.index.equals(second.index):
        return "other photos", ""
    pair = first["predicted"].to_numpy(), second["predicted"].to_numpy()
    # Files of earlier versions have no sets of copies: their photos count as independent.
    sets = first["copy_set"].to_numpy() if "copy_set" in first else None
    gained, lost, p = mcnemar(first["label_group"].to_numpy(), *pair, sets)
    return f"+{gained}, -{lost}", f"{p:.2g}"


if __name__ == "__main__":
    # A script has only its own folder on the path.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
