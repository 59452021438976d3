"""A child process: read a job, measure it, write the result or the reason of a failure."""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

from .job import Job

MODULES = {
    "ours_frozen": "systems.ours",
    "ours_full": "systems.ours",
    "original": "systems.original",
    "torchvision": "systems.torchvision_reference",
    "timm": "systems.timm_reference",
    "fastai": "systems.fastai_reference",
    "decode": "decode",
    "predict": "predict",
    "tune": "tune",
}


def main(job_file: str, answer: str) -> None:
    """Measure; an error becomes a result with its reason."""
    job = Job.read(Path(job_file))
    result: dict[str, Any]
    try:
        result = importlib.import_module(f"benchmarks.{MODULES[job.name]}").measure(job)
    except Exception as error:  # noqa: BLE001 - the table reports it
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        result = {"failed": f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]}
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
