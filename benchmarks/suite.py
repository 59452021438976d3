"""Run the benchmark: make catalogues, measure one job after another, write the table."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from .catalogs import make_catalog
from .children import measure
from .job import Job
from .machine import describe_machine
from .record import Record
from .table import Measured, section, write_section

SYSTEMS = ("ours_frozen", "ours_full", "original", "torchvision", "timm", "fastai")
PARTS = ("training", "decode", "predict", "tune")
# Predict and tune are measured on the catalogue whose size is nearest to this.
_USUAL_SIZE = 827
_LOOK_SECONDS = 2.0
# Options that are paths of this machine.
_PLACES = ("record", "resume", "scratch", "keep", "out", "help")
_EXAMPLES = {"data": "shop", "weights": "backbone.pth"}
_RESULTS = Path(__file__).parent / "RESULTS.md"


@dataclass(frozen=True)
class Plan:
    """The measurements that the options ask for."""

    data: str
    weights: str | None
    sizes: list[int]
    systems: list[str]
    parts: list[str]
    whole: set[str]
    settings: dict[str, Any]
    scratch: Path
    keep: bool

    def jobs(self) -> Iterator[Job]:
        """Every measurement, small catalogues first."""
        for size in self.sizes:
            if "training" in self.parts:
                yield from (self._job(system, size) for system in self.systems)
            if "decode" in self.parts:
                yield self._job("decode", size)
        usual = min(self.sizes, key=lambda size: abs(size - _USUAL_SIZE))
        for part in ("predict", "tune"):
            if part in self.parts:
                yield self._job(part, usual)

    def catalog(self, size: int) -> Path:
        """The folder of the catalogue of this size."""
        return self.scratch / f"catalog-{size}"

    def _job(self, name: str, size: int) -> Job:
        whole = bool({name, f"{name}:{size}"} & self.whole)
        return Job(
            name=name,
            catalog=str(self.catalog(size)),
            weights=self.weights,
            size=size,
            whole=whole,
            data=Path(self.data).name,
            scratch=str(self.scratch / f"{name}-{size}"),
            **self.settings,
        )


def main() -> None:
    """Read the options, measure, write the table and print it."""
    options = _parser().parse_args()
    # A signal also ends the current measurement.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    record = Record.open(options.record, options.resume)
    with tempfile.TemporaryDirectory() as place:
        plan = _plan(options, options.scratch or Path(place))
        machine = describe_machine()
        measured = [_measured(job, plan, record) for job in plan.jobs()]
    lines = section(measured, date.today(), machine, _command(options))
    write_section(options.out, lines)
    print("\n".join(lines))


def _measured(job: Job, plan: Plan, record: Record) -> Measured:
    result = record.find(job)
    if result is None:
        make_catalog(plan.data, job.size, plan.catalog(job.size))
        print(f"measuring {job.name}, {job.size} photos ...", flush=True)
        # No process of the benchmark is running now.
        busy = psutil.cpu_percent(_LOOK_SECONDS)
        result = {**measure(job, plan.keep), "busy_before": busy}
        record.add(job, result)
        print(f"  {result.get('failed') or 'done'}", flush=True)
    return Measured(job, result)


def _plan(options: argparse.Namespace, scratch: Path) -> Plan:
    parts = options.parts
    settings = {
        "image_size": options.image_size,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "budget": options.budget,
        "workers": options.workers,
        "channels_last": options.channels_last,
        "compile": options.compile,
        "device": options.device,
        "trials": options.trials,
    }
    return Plan(
        # Absolute, since children run in other folders.
        data=options.data if options.data == "sample" else str(Path(options.data).resolve()),
        weights=str(Path(options.weights).resolve(strict=True)) if options.weights else None,
        sizes=sorted(options.sizes),
        systems=options.systems,
        parts=["training"] if options.only_training else parts,
        whole=set(options.whole),
        settings=settings,
        scratch=scratch.resolve(),
        keep=options.keep,
    )


def _command(options: argparse.Namespace) -> str:
    """The command line, without paths of this machine."""
    words = ["python benchmarks/run.py"]
    for action in _parser()._actions:
        value = getattr(options, action.dest, None)
        if action.dest in _PLACES or value is None or value == action.default:
            continue
        name = action.option_strings[0]
        if isinstance(value, bool):
            words.append(name if value else action.option_strings[-1])
        elif isinstance(value, list):
            words.append(f"{name} {','.join(map(str, value))}")
        else:
            words.append(f"{name} {_EXAMPLES.get(action.dest, value)}")
    return " ".join(words)


def _names(allowed: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name.split(":")[0] not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)}: there are {', '.join(allowed)}"
            )
        return names

    return read


def _sizes(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    yes_or_no = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description="Compare with reference implementations; see README.md.",
    )
    add = parser.add_argument
    add("--data", default="sample", help="folder with train.csv and train_images/; or sample")
    add("--weights", help="EfficientNet-B0's state dict; without it weights are random")
    add("--sizes", type=_sizes, default=[200, 827, 8000], help="photos, separated by commas")
    add("--systems", type=_names(SYSTEMS), default=list(SYSTEMS), help="separated by commas")
    add("--parts", type=_names(PARTS), default=list(PARTS), help="separated by commas")
    add("--only-training", action="store_true", help="the same as --parts training")
    add("--budget", type=float, default=60, help="measured seconds a system; 0: to the end")
    add(
        "--whole",
        type=_names(SYSTEMS),
        default=["ours_frozen"],
        help="systems to train to the end regardless of the budget, as SYSTEM or SYSTEM:SIZE",
    )
    add("--epochs", type=int, default=50)
    add("--batch-size", type=int, default=75)
    add("--image-size", type=int, default=256)
    add("--workers", type=int, default=2, help="processes of the references' loaders")
    add("--compile", action=yes_or_no, default=True, help="torch.compile, except for the original")
    add("--channels-last", action=yes_or_no, default=True, help="except for the original")
    add("--device", default="auto", help="as for train")
    add("--trials", type=int, default=30, help="number of trials of the search")
    add("--record", type=Path, help="store each measurement in this file, as lines of JSON")
    add("--resume", action="store_true", help="do not repeat the measurements in --record")
    add("--scratch", type=Path, help="folder for catalogues, which are kept for the next call")
    add("--keep", action="store_true", help="keep each measurement's folder and log")
    add("--out", type=Path, default=_RESULTS, help="file to write the section of today to")
    return parser
