"""Register the model of a finished run, and print its alias and the reason for it."""

from __future__ import annotations

from ..console import say
from ..tracking.registry import REGISTERED_NAME, Registration, register_model


def register(run_id: str, name: str = REGISTERED_NAME, *, promote: bool = False) -> Registration:
    """Register the model that a run has logged; see :func:`..tracking.registry.register_model`."""
    result = register_model(run_id, name, promote=promote)
    say(
        f"registered {result.name} version {result.version} as {result.alias}: {result.reason}",
        f"load it with: mlflow.pytorch.load_model({result.uri!r})",
    )
    return result
