"""The cache folder: files that can be computed again. It is never inside the user's data."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import CatalogError
from .options import expand_path

CACHE_VARIABLE = "SHOPEE_MLFLOW_CACHE"


def cache_folder() -> Path:
    """The folder for the sample catalogue and decoded photos, created when missing.

    ``$SHOPEE_MLFLOW_CACHE`` where it is set, else ``$XDG_CACHE_HOME/shopee_mlflow``, else
    ``~/.cache/shopee_mlflow``. A folder created here can be read by its owner alone; the
    permissions of an existing one stay. It may be deleted at any time: all of it is computed again.

    :raises CatalogError: when it is missing and cannot be created.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        folder = expand_path(chosen)
    else:
        folder = expand_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "shopee_mlflow"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CatalogError(
            f"The cache folder {folder} cannot be created ({error.strerror}). Name another one "
            f"with {CACHE_VARIABLE}."
        ) from error
    return folder
