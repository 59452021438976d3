"""Where and with what a run was made."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import mlflow
import torch
import torchvision

from .. import __version__


def machine_tags(device: str) -> dict[str, str]:
    """Where and with what a run was made: commit, device, versions."""
    return {
        "git_commit": git_commit(),
        "device": device,
        "host": platform.node(),
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "torchvision_version": torchvision.__version__,
        "mlflow_version": mlflow.__version__,
        "shopee_mlflow_version": __version__,
    }


def git_commit() -> str:
    """The commit of this project's checkout, with ``-dirty`` when files differ; else unknown."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository: is this file one of its own?
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ":/") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
