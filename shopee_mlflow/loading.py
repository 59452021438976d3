"""Import torch and other heavy libraries when a command needs them, and say so."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

from .console import say

# Some ten microseconds, about what it takes to wake a thread.
_SPIN_COUNT = "1000"


@contextmanager
def loading(what: str, *heavy: str) -> Iterator[None]:
    """Say what the command begins with, since imports of these libraries take seconds.

    Of processes that train together, the first one says it. What the block imports stays until the
    process ends, so the garbage collector never looks for garbage in it.
    """
    lines = [f"loading {' and '.join(heavy)}, then {what}"]
    if "torch" in heavy and _release_cores():
        lines.append(f"waiting threads release their cores (GOMP_SPINCOUNT={_SPIN_COUNT})")
    if os.environ.get("RANK", "0") == "0":
        say(*lines)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _release_cores() -> bool:
    """Limit how long torch's threads spin when they wait for each other; False if the user has.

    By default they spin for milliseconds, and trainings that share a machine take the cores from
    each other; benchmarks/RESULTS.md has figures. The variable is read when torch is imported.
    """
    if {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        return False
    os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
    return True
