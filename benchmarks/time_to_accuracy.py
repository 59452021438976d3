"""Time from the command to a tested model, and its accuracy, beside other libraries.

    python benchmarks/time_to_accuracy.py --data shop --weights backbone.pth --out folder

Every row of benchmarks/time_to_accuracy.yaml trains five times, each time on other folds of the
catalogue, so that each photo is tested once. All rows have the same photos in the same folds, the
same weights and image size, and unless the row sets them, the same epochs and batch size; the
recipe is each library's own. A training is a process of its own with empty caches. Its seconds run
from the command to its exit: they include imports, decoding and the test, and for this project
MLflow, the report and the logged model, too.

The folder ``out`` gets a file for each training; those that are there are not run again. It holds
the results of one catalogue, device, image size and so on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
ROWS = Path(__file__).with_suffix(".yaml")


def main() -> None:
    """Run the trainings that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="catalogue")
    parser.add_argument("--weights", required=True, help="state-dict file in torchvision's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--rows", default="", help="names, separated by commas; default: all")
    parser.add_argument("--reference", default="ours", help="row that the others are compared with")
    parser.add_argument("--only", default="", help="folds to train, such as 1,2; default: all")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=75)
    parser.add_argument("--workers", type=int, default=2, help="loader processes of the others")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at a time; their seconds are no measure"
    )
    options = parser.parse_args()
    options.out = options.out.resolve()
    rows = yaml.safe_load(ROWS.read_text(encoding="utf-8"))
    names = options.rows.split(",") if options.rows else list(rows)
    if unknown := [name for name in [*names, options.reference] if name not in rows]:
        parser.error(f"no such rows in {ROWS.name}: {', '.join(unknown)}")
    if other := other_options(options):
        parser.error(f"{options.out} has results of {other}; name another folder")
    folds = write_folds(options.data, options.image_size, options.out / "folds")
    chosen = [folds[int(number) - 1] for number in options.only.split(",") if number] or folds

    def run(training: tuple[str, Path]) -> str | None:
        """Train if there is no result yet; returns the training's name if it fails."""
        name, fold = training
        file = options.out / f"{name}-{fold.name}.json"
        if file.exists() or measure(dict(rows[name]), fold, file, options):
            return None
        print(f"{file.stem}: failed; see {file.with_suffix('.log')}", file=sys.stderr)
        return file.stem

    with ThreadPoolExecutor(options.jobs) as pool:
        ended = list(pool.map(run, [(name, fold) for name in names for fold in chosen]))
    print_table(rows, options.reference, chosen, options.out, timed=options.jobs == 1)
    if failed := [name for name in ended if name]:
        sys.exit(f"failed: {', '.join(failed)}")


def other_options(options: argparse.Namespace) -> str:
    """The options of the folder's results that differ from these; a new folder notes these."""
    names = ("data", "weights", "device", "jobs", "workers", "image_size", "epochs", "batch_size")
    mine = {name: getattr(options, name) for name in names}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "options.json"
    if not file.exists():
        file.write_text(json.dumps(mine), encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    return ", ".join(f"{name}={value}" for name, value in found.items() if value != mine[name])


def write_folds(data: str, image_size: int, folder: Path) -> list[Path]:
    """A catalogue for each fold, whose column ``split`` has the fold as test photos."""
    from shopee_mlflow.config import CrossValidateConfig, resolve
    from shopee_mlflow.data.dataset import load_dataset
    from shopee_mlflow.data.fold_splits import assign_folds
    from shopee_mlflow.data.splits import tie_copies
    from shopee_mlflow.training.folds import fold_datasets

    config = resolve(CrossValidateConfig, {"data": data, "image_size": image_size})
    dataset = load_dataset(config)
    dataset = dataset.with_splits(assign_folds(dataset.frame, config))
    written = []
    for name, fold in fold_datasets(dataset, config).items():
        photos = folder / name / "train_images"
        photos.mkdir(parents=True, exist_ok=True)
        table = fold.frame.loc[:, ["posting_id", "image", "title", "label_group", "split"]]
        table = table.assign(copy_set=tie_copies(fold.frame, config.near_bits))
        table.to_csv(photos.parent / "train.csv", index=False)
        for image, file in zip(fold.frame["image"], fold.frame["file"], strict=True):
            link = photos / image
            link.unlink(missing_ok=True)
            link.symlink_to(Path(file).resolve())
        written.append(photos.parent)
    return written


def measure(row: dict[str, Any], fold: Path, file: Path, options: argparse.Namespace) -> bool:
    """Train one row on one fold; write its seconds and its prediction of each test photo.

    :return: whether it succeeded. Its output is in the file with the suffix .log.
    """
    system = row.pop("system")
    with TemporaryDirectory() as scratch:
        kept = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
        env = {
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")])),
            "MLFLOW_TRACKING_URI": f"sqlite:///{scratch}/mlflow.db",
            "SHOPEE_MLFLOW_CACHE": f"{scratch}/cache",
            "FASTAI_HOME": f"{scratch}/fastai",
        }
        answer = Path(scratch) / "answer.json"
        make = our_command if system == "ours" else peer_command
        command = make(system, row, fold, answer, options)
        began = time.perf_counter()
        with file.with_suffix(".log").open("w") as log:
            done = subprocess.run(
                command, env=env, cwd=scratch, stdout=log, stderr=subprocess.STDOUT, check=False
            )
        seconds = time.perf_counter() - began
        if done.returncode:
            return False
        predicted = (
            our_predictions(env["MLFLOW_TRACKING_URI"])
            if system == "ours"
            else json.loads(answer.read_text(encoding="utf-8"))
        )
    file.write_text(json.dumps({"seconds": seconds, "predicted": predicted}), encoding="utf-8")
    return True


def our_command(
    _system: str, row: dict[str, Any], fold: Path, _answer: Path, options: argparse.Namespace
) -> list[str]:
    """The train command, with the options of the row or of the experiment file that it names."""
    recipe = {"epochs": options.epochs, "batch-size": options.batch_size, **row}
    if "config" in row:
        recipe = {"config": ROOT / row["config"]}
    given = {
        "model": "effnet_pretrained",
        "data": str(fold),
        "largest-groups": "0",
        "weights": str(Path(options.weights).resolve()),
        "image-size": options.image_size,
        "device": options.device,
        **recipe,
    }
    words = [f"--{name}={value}" for name, value in given.items()]
    return [sys.executable, "-m", "shopee_mlflow", "train", *words]


def our_predictions(store: str) -> dict[str, str]:
    """The table that the training has logged."""
    import mlflow

    from shopee_mlflow.tracking.names import PREDICTIONS_FILE

    client = mlflow.MlflowClient(store)
    [run] = client.search_runs([one.experiment_id for one in client.search_experiments()])
    path = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path=PREDICTIONS_FILE, tracking_uri=store
    )
    table = pd.read_csv(path, dtype=str)
    return dict(zip(table["image"], table["predicted"], strict=True))


def peer_command(
    system: str, row: dict[str, Any], fold: Path, answer: Path, options: argparse.Namespace
) -> list[str]:
    """The training of another library in a process of its own."""
    settings = {
        "image_size": options.image_size,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "workers": options.workers,
        "device": options.device,
        "lr": 0.0,
        "freeze": "none",
        "flips_only": False,
        "backbone_lr_divisor": 100.0,
        "freeze_norms": False,
        **row,
    }
    weights = str(Path(options.weights).resolve())
    words = [system, str(fold), weights, str(answer), json.dumps(settings)]
    return [sys.executable, "-m", "benchmarks.peer_recipes", *words]


def print_table(
    rows: dict[str, Any], reference: str, folds: list[Path], out: Path, timed: bool
) -> None:
    """Print each row's accuracy over the folds, its seconds for a training, and McNemar's test.

    :param reference: the row that the others are compared with.
    :param timed: whether trainings ran one at a time, so that their seconds mean something.
    """
    from shopee_mlflow.modeling.metrics import mcnemar, wilson_interval

    tables = [pd.read_csv(fold / "train.csv", dtype=str) for fold in folds]
    tested = pd.concat([table[table["split"] == "test"] for table in tables])
    truth = tested.set_index("image")["label_group"]
    sets = tested["copy_set"].to_numpy()
    found: dict[str, tuple[pd.Series, list[float]]] = {}
    for name in rows:
        files = [out / f"{name}-{fold.name}.json" for fold in folds]
        if all(file.exists() for file in files):
            results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            answers = pd.concat([pd.Series(one["predicted"]) for one in results])
            found[name] = answers[truth.index], [one["seconds"] for one in results]
    print("| row | recipe | accuracy (95 % interval) | seconds a training | right, wrong | p |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (labels, seconds) in found.items():
        predicted = labels.to_numpy()
        right = int((predicted == truth.to_numpy()).sum())
        low, high = wilson_interval(right, len(truth))
        cells = [
            name,
            " ".join(f"{key}={value}" for key, value in rows[name].items()),
            f"{right} of {len(truth)}, {right / len(truth):.1%} ({low:.1%} to {high:.1%})",
            f"{statistics.median(seconds):.0f}" if timed else "-",
        ]
        against = ["", ""]
        if name != reference and reference in found:
            theirs = found[reference][0].to_numpy()
            gained, lost, p = mcnemar(truth.to_numpy(), predicted, theirs, sets)
            against = [f"+{gained}, -{lost}", f"{p:.2g}"]
        print(f"| {' | '.join([*cells, *against])} |")


if __name__ == "__main__":
    # A script has only its own folder on the path.
    sys.path.insert(0, str(ROOT))
    main()
