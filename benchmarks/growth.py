"""Time and memory per photo of every step of a training, for catalogues of increasing size.

    python benchmarks/growth.py --sizes 10000,100000 --rows 1000000 --scratch folder

Each size is measured in its own process. Photos are small generated JPEG files, so that decoding
takes little of the time. Catalogues of --rows have no photos; only steps that need none are
measured. docs/scaling.md discusses the results.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

_SIDE, _GROUP, _COPIES = 64, 20, 0.05
_EPOCH = "an epoch of the small CNN"
_AGAIN = "check the cache (later starts)"
# Step -> module and name of the function that is timed.
_STEPS = {
    "read the CSV": ("dataset", "read_catalog"),
    "clean the rows": ("dataset", "select_rows"),
    "find the files": ("dataset", "locate_files"),
    "compute file digests": ("dataset", "hash_files"),
    "decode into the cache": ("dataset", "load_pixels"),
    "tie copies": ("dataset", "_tie_copies"),
    "split": ("splits", "assign_splits"),
    "assemble the dataset, compute its digest": ("dataset", "_assemble"),
}


def main() -> None:
    """Generate missing catalogues, measure each size and print a table."""
    options = _parser().parse_args()
    if options.child:
        folder = options.scratch / options.child
        with_photos = (folder / "train_images").exists()
        print(
            json.dumps(measure(folder, options.image_size) if with_photos else measure_rows(folder))
        )
        return
    columns = []
    for size in options.sizes:
        make_catalog(options.scratch / str(size), size)
        columns.append((size, _in_child(options, str(size))))
    for size in options.rows:
        make_catalog(options.scratch / f"{size}-rows", size, photos=False)
        columns.append((size, _in_child(options, f"{size}-rows")))
    print("\n".join(table(columns)))


def make_catalog(folder: Path, size: int, photos: bool = True) -> None:
    """Generate small photos in groups of 20; a twentieth have the phash of another photo."""
    if (folder / "train.csv").exists():
        return
    (folder / "train_images" if photos else folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    phashes = rng.integers(0, 2**63, size=size)
    copies = np.flatnonzero(rng.random(size) < _COPIES)
    phashes[copies] = phashes[np.maximum(copies - 1, 0)]
    rows = []
    for number in range(size):
        name = f"{number:08d}.jpg"
        if photos:
            blocks = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(blocks).resize((_SIDE, _SIDE))
            picture.save(folder / "train_images" / name, quality=80)
        phash = f"{phashes[number]:016x}"
        rows.append((f"p{number}", name, phash, f"title {number}", f"group {number // _GROUP}"))
    # The CSV is written last: if it exists, the catalogue is complete.
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("posting_id", "image", "image_phash", "title", "label_group"))
        writer.writerows(rows)


def measure(folder: Path, image_size: int) -> dict[str, dict[str, float]]:
    """Step -> seconds, and MiB of peak resident memory above that before the step."""
    from shopee_mlflow.config import TrainConfig, resolve
    from shopee_mlflow.data import dataset, splits
    from shopee_mlflow.data.pixel_cache import load_pixels
    from shopee_mlflow.modeling.device import choose_machine
    from shopee_mlflow.training.context import TrainingContext
    from shopee_mlflow.training.trainer import Trainer

    measured: dict[str, dict[str, float]] = {}
    modules = {"dataset": dataset, "splits": splits}
    for title, (module, name) in _STEPS.items():
        clocked = _clocked(getattr(modules[module], name), title, measured)
        setattr(modules[module], name, clocked)
    config = resolve(
        TrainConfig,
        {
            "data": str(folder),
            "model": "cnn",
            "image_size": image_size,
            "epochs": 1,
            "largest_groups": 0,
            "batch_size": 256,
            "augment": "none",
        },
    )
    data = dataset.load_dataset(config)
    files, contents = list(data.frame["file"]), list(data.frame["content"])
    with _clock(_AGAIN, measured):
        load_pixels(files, contents, image_size)
    context = TrainingContext(data, choose_machine("cpu"))
    inputs = context.prepare(context.new_model(config), config)
    with _clock("an epoch of batches, without a model", measured):
        for _ in inputs.train.epoch(1):
            pass
    with _clock(_EPOCH, measured):
        trainer = Trainer(inputs.parts.trainable, inputs.train, inputs.val, config, context.machine)
        next(trainer.epochs())
    return measured


def measure_rows(folder: Path) -> dict[str, dict[str, float]]:
    """:func:`measure` for the steps that need no photos."""
    from shopee_mlflow.data.catalog_csv import read_catalog
    from shopee_mlflow.data.cleaning import select_rows
    from shopee_mlflow.data.cleaning_record import Cleaning
    from shopee_mlflow.data.splits import assign_splits, tie_copies

    measured: dict[str, dict[str, float]] = {}
    read, clean, _, _, _, tie, split, _ = _STEPS
    with _clock(read, measured):
        rows = read_catalog(folder / "train.csv")
    with _clock(clean, measured):
        frame = select_rows(rows, 0, Cleaning(rows=len(rows)))
    frame = frame.assign(content="")
    with _clock(tie, measured):
        sets = tie_copies(frame)
    with _clock(split, measured):
        assign_splits(frame, sets=sets)
    return measured


def _clocked(
    function: Callable[..., Any], title: str, measured: dict[str, dict[str, float]]
) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        with _clock(title, measured):
            return function(*arguments, **options)

    return run


@contextlib.contextmanager
def _clock(title: str, measured: dict[str, dict[str, float]]) -> Iterator[None]:
    me, ended = psutil.Process(), threading.Event()
    before = highest = me.memory_info().rss

    def look() -> None:
        nonlocal highest
        while not ended.wait(0.02):
            highest = max(highest, me.memory_info().rss)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        ended.set()
        looking.join()
        highest = max(highest, me.memory_info().rss)
        measured[title] = {
            "seconds": seconds,
            "mib": (highest - before) / 2**20,
            "rss": highest / 2**20,
        }


def table(columns: list[tuple[int, dict[str, dict[str, float]]]]) -> list[str]:
    """Markdown table, a row per step: seconds, microseconds per photo and MiB for each size."""
    sizes = [f"{size:,} photos: s | µs a photo | MiB more" for size, _ in columns]
    lines = [f"| step | {' | '.join(sizes)} |", "| --- |" + " --- | --- | --- |" * len(columns)]
    for title in columns[0][1]:
        cells = [title]
        for size, measured in columns:
            if title not in measured:
                cells += ["", "", ""]
                continue
            step = measured[title]
            each = step["seconds"] / size * 1e6
            cells += [f"{step['seconds']:.2f}", f"{each:,.0f}", f"{step['mib']:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    heights = [max(step["rss"] for step in measured.values()) for _, measured in columns]
    cells = [f"| | {height:,.0f}" for height in heights]
    lines.append(f"| peak resident memory | {' | '.join(cells)} |")
    return lines


def _in_child(options: argparse.Namespace, catalog: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, str(Path(__file__).resolve()), "--child", catalog]
    command += ["--scratch", str(options.scratch), "--image-size", str(options.image_size)]
    root = str(Path(__file__).resolve().parents[1])
    cache = str(options.scratch / f"cache-{catalog}")
    env = {**os.environ, "PYTHONPATH": root, "SHOPEE_MLFLOW_CACHE": cache}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/growth.py", description=__doc__)
    add = parser.add_argument
    add("--sizes", type=_numbers, default=[10_000, 100_000])
    add("--rows", type=_numbers, default=[], help="catalogues without photos")
    add("--scratch", type=Path, default=Path("growth"), help="folder for catalogues and caches")
    add("--image-size", type=int, default=_SIDE)
    add("--child", help=argparse.SUPPRESS)
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    main()
