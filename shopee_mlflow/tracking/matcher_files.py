"""A matcher logged and registered as an MLflow model, and loaded."""

from __future__ import annotations

import csv
import io
import pickle
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

from ..errors import TrackingError
from ..matching.pairs import Pairs
from ..matching.pool import Pool
from ..matching.postings import check_postings
from .finding import RUN_ID
from .posting_matcher import INDEX_COLUMNS, PostingMatcher
from .read_paths import may_read_paths
from .store import NoModelFolderError, artifact_errors, downloaded, quieten

if TYPE_CHECKING:
    from ..modeling.models import ProductClassifier

REGISTERED_MATCHER = "shopee-matcher"
MATCHER_NAME = "matcher"
_MATCHER_FILE, _INDEX_FILE, _PAIRS_FILE = "matcher.pkl", "index.csv", "pairs.npz"
_PHOTOS_FILE, _EMBEDDER_FILE = "photos.npy", "embedder.pt"
_PACKAGES = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "pillow", "imagehash")
_MORE_PACKAGES = ("click", "filelock", "psutil", "pyarrow", "pyyaml", "tqdm")
_PACKAGE = Path(__file__).parents[1]


def log_matcher(matcher: PostingMatcher, *, register: bool) -> str:
    """Log a matcher as a model of the active run; returns its URI.

    :param register: whether to register it as ``shopee-matcher``.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        artifact_errors("the matcher was not stored"),
        warnings.catch_warnings(),
    ):
        # An example would be answered at once.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        data = Path(folder) / "matcher"
        data.mkdir()
        _save(matcher, data)
        info = mlflow.pyfunc.log_model(
            name=MATCHER_NAME,
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(_PACKAGE)],
            pip_requirements=_requirements(matcher.embedder),
            signature=_signature(),
            registered_model_name=REGISTERED_MATCHER if register else None,
        )
    return str(info.model_uri)


def load_matcher(uri: str) -> PostingMatcher:
    """Load a matcher by an MLflow URI, the id of its run, or its folder.

    :raises TrackingError: when there is no such matcher, or its index has changed.
    """
    quieten()
    where = f"runs:/{uri}/{MATCHER_NAME}" if RUN_ID.fullmatch(uri) else uri
    try:
        with downloaded(where) as folder:
            if not (folder / "data" / "matcher" / _MATCHER_FILE).is_file():
                raise _no_matcher(uri, f"it has no {_MATCHER_FILE}")
            return _load_pyfunc(str(folder / "data" / "matcher"))
    except NoModelFolderError as error:
        raise _no_matcher(uri, str(error)) from None
    except (MlflowException, OSError, ValueError) as error:
        message = getattr(error, "message", None) or str(error)
        raise TrackingError(
            f"matcher={uri}: cannot be loaded from {mlflow.get_tracking_uri()}: {message}"
        ) from error


def _no_matcher(uri: str, reason: str) -> TrackingError:
    return TrackingError(
        f"matcher={uri}: is no matcher ({reason}). Name one that match has logged, such as "
        f"models:/{REGISTERED_MATCHER}/1."
    )


def _save(matcher: PostingMatcher, folder: Path) -> None:
    pairs, photos = matcher.pool.pairs, matcher.pool.postings.photos
    (folder / _MATCHER_FILE).write_bytes(pickle.dumps(matcher.matcher))
    # Quoted, since pandas reads a carriage return in a title as the end of a row otherwise.
    matcher.index.to_csv(folder / _INDEX_FILE, index=False, quoting=csv.QUOTE_ALL)
    np.savez_compressed(
        folder / _PAIRS_FILE,
        query=pairs.query[pairs.forward].astype(np.int32),
        match=pairs.match[pairs.forward].astype(np.int32),
        rows=_row_digests(matcher.index),
    )
    if photos is not None and matcher.embedder is not None:
        import torch

        np.save(folder / _PHOTOS_FILE, photos)
        stored = io.BytesIO()
        torch.save(matcher.embedder, stored)
        (folder / _EMBEDDER_FILE).write_bytes(stored.getvalue())


def _load_pyfunc(path: str) -> PostingMatcher:
    """Called by MLflow with the model's data folder.

    :raises TrackingError: when the matcher cannot be read, or its index has changed since its
        likely pairs were found.
    """
    folder = Path(path)
    try:
        matcher = pickle.loads((folder / _MATCHER_FILE).read_bytes())
    except (AttributeError, ImportError, pickle.UnpicklingError, EOFError) as error:
        raise TrackingError(
            f"{_MATCHER_FILE} cannot be read by this version ({error}). It is damaged, or another "
            "version has stored it: run match again."
        ) from error
    index = pd.read_csv(folder / _INDEX_FILE, dtype=str, keep_default_na=False)
    photos, embedder = None, None
    if (folder / _PHOTOS_FILE).is_file():
        import torch

        photos = np.load(folder / _PHOTOS_FILE)
        embedder = torch.load(folder / _EMBEDDER_FILE, map_location="cpu", weights_only=False)
    postings = check_postings(index, photos)
    if (folder / _PAIRS_FILE).is_file():
        pool = Pool(postings, _stored_pairs(folder / _PAIRS_FILE, index))
    else:  # Earlier versions stored no pairs.
        pool = Pool.of(postings, matcher)
    return PostingMatcher(matcher, pool, embedder, read_paths=may_read_paths())


def _stored_pairs(file: Path, index: pd.DataFrame) -> Pairs:
    with np.load(file) as stored:
        _check_index(index, stored["rows"])
        return Pairs.of(len(index), stored["query"], stored["match"])


def _row_digests(index: pd.DataFrame) -> np.ndarray:
    """(N,) uint64, a digest of the text of each row."""
    return pd.util.hash_pandas_object(index[list(INDEX_COLUMNS)], index=False).to_numpy()


def _check_index(index: pd.DataFrame, digests: np.ndarray) -> None:
    now = _row_digests(index)
    if np.array_equal(now, digests):
        return
    new, gone = (~np.isin(now, digests)).sum(), (~np.isin(digests, now)).sum()
    raise TrackingError(
        f"The matcher's {_INDEX_FILE} has changed since its likely pairs were found: it has "
        f"{len(now):,} postings instead of {len(digests):,}; {new:,} rows are new or changed, and "
        f"{gone:,} are gone. Restore the file first; then add postings with add, or match another "
        "catalogue with the matcher. Or choose a new matcher: run match without matcher."
    )


def _requirements(embedder: ProductClassifier | None) -> list[str]:
    """Packages that loading and serving need, with the versions of this environment."""
    packages = [*_PACKAGES, *_MORE_PACKAGES]
    if embedder is not None:
        packages += ["torch", "torchvision", *["timm"] * embedder.architecture.startswith("timm/")]
    return [f"{name}=={version(name).partition('+')[0]}" for name in packages]


def _signature() -> ModelSignature:
    """Columns of text, all optional; a posting needs a title, a phash or a photo."""
    inputs: list[Any] = [
        ColSpec(DataType.string, name, required=False) for name in (*INDEX_COLUMNS, "image")
    ]
    outputs: list[Any] = [ColSpec(DataType.string, name) for name in ("matches", "scores")]
    outputs.append(ColSpec(DataType.string, "error", required=False))
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))
