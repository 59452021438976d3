"""Tracking stores of a test's own."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest


def new_store(file: Path) -> str:
    """Make an empty tracking store, and return its address.

    It is a copy of one that MLflow has made, since making its tables takes seconds.
    """
    file.write_bytes(_empty_store())
    return f"sqlite:///{file}"


@cache
def _empty_store() -> bytes:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "empty.db"
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
        import mlflow

        mlflow.search_experiments()
        return file.read_bytes()
