"""Whether a served model may read files by the paths that it is sent."""

from __future__ import annotations

import os
import sys

READ_PATHS_VARIABLE = "SHOPEE_MLFLOW_READ_PATHS"
# MLflow's scoring server finds its model by this variable, in a container as well.
_SERVER_VARIABLE = "__pyfunc_model_path__"
_SERVER_MODULES = ("mlflow.pyfunc.scoring_server.app", "mlserver")


def may_read_paths() -> bool:
    """Whether a string may be the path of a file.

    ``SHOPEE_MLFLOW_READ_PATHS`` decides. If it is not set, paths are allowed except in MLflow's
    scoring server.

    :raises ValueError: when the variable is neither ``true`` nor ``false``.
    """
    chosen = os.environ.get(READ_PATHS_VARIABLE, "").lower()
    if chosen in ("true", "false"):
        return chosen == "true"
    if chosen:
        raise ValueError(f"{READ_PATHS_VARIABLE}={chosen}: must be true or false")
    return _SERVER_VARIABLE not in os.environ and not any(m in sys.modules for m in _SERVER_MODULES)
