"""Where this project keeps what it can make again: one folder of the user, never the data's."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CatalogError

CACHE_VARIABLE = "SHOPEE_MLFLOW_CACHE"


def cache_folder() -> Path:
    """The folder for the sample catalogue and decoded photos, created when missing.

    ``$SHOPEE_MLFLOW_CACHE`` where it is set, else ``$XDG_CACHE_HOME/shopee_mlflow``, else
    ``~/.cache/shopee_mlflow``. It may be deleted at any time: everything in it is made again.

    :raises CatalogError: when it is not there and cannot be made.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        folder = Path(chosen).expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shopee_mlflow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogError(
            f"The cache folder {folder} cannot be made ({error.strerror}). Name another one with "
            f"{CACHE_VARIABLE}."
        ) from error
    return folder
