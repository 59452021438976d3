"""Describe the machine that the times were measured on."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

_LIBRARIES = ("torch", "torchvision", "timm", "fastai", "pillow", "numpy", "mlflow")


def describe_machine() -> str:
    """Processor, cores, memory, GPU, and the versions of the libraries."""
    cores = psutil.Process().cpu_affinity() or []
    parts = [
        f"{_processor()}, {len(cores)} cores, {torch.get_num_threads()} torch threads",
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        *_gpus(),
        f"{platform.system()}, Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in _LIBRARIES),
    ]
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[str]:
    """Ask nvidia-smi, since torch would allocate GPU memory."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ["no GPU"]
    return done.stdout.strip().splitlines()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
