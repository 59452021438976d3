"""Tags that describe the environment of a run."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import mlflow

from .. import __version__


def machine_tags(device: str) -> dict[str, str]:
    """Tags for the commit, the device, the host and the package versions of a run.

    The versions of torch and torchvision are tags of a run that has imported them. Importing them
    takes seconds and over half a gigabyte, and a matching of titles does not need them.
    """
    networks = {name: sys.modules[name] for name in ("torch", "torchvision") if name in sys.modules}
    return {
        "git_commit": git_commit(),
        "device": device,
        "host": platform.node(),
        "python_version": platform.python_version(),
        **{f"{name}_version": module.__version__ for name, module in networks.items()},
        "mlflow_version": mlflow.__version__,
        "shopee_mlflow_version": __version__,
    }


def git_commit() -> str:
    """The commit of this checkout, with ``-dirty`` if files are modified; else ``unknown``."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed copy may be inside another project's repository, which does not track it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", ":/") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
