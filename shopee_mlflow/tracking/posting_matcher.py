"""The matcher as an MLflow model: postings in, ids of matching postings and their scores out.

The model holds the matcher and the postings of its catalogue, the index. New postings are matched
within the index and one another, so each call costs a matching of the whole pool.
"""

from __future__ import annotations

import json
import pickle
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

from ..matching.matcher import Matcher
from ..matching.postings import check_postings
from .store import artifact_errors

REGISTERED_MATCHER = "shopee-matcher"
MATCHER_NAME = "matcher"
_MATCHER_FILE, _INDEX_FILE = "matcher.pkl", "index.csv"
_COLUMNS = ("title", "image_phash")
_PACKAGES = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "click", "tqdm", "pyyaml")
_PACKAGE = Path(__file__).parents[1]


class PostingMatcher:
    """Match new postings within an index.

    :ivar index: columns posting_id, title and image_phash.
    """

    def __init__(self, matcher: Matcher, index: pd.DataFrame) -> None:
        self.matcher, self.index = matcher, index

    def get_raw_model(self) -> PostingMatcher:
        """This object, for ``get_raw_model`` of a model that MLflow has loaded."""
        return self

    def add(self, postings: pd.DataFrame) -> PostingMatcher:
        """A matcher whose index also holds new postings.

        :param postings: columns posting_id, and title or image_phash or both.
        :raises CatalogError: when an id is in the index already.
        """
        added = pd.concat([self.index, _texts(postings)], ignore_index=True).fillna("")
        check_postings(added)
        return PostingMatcher(self.matcher, added)

    def predict(
        self,
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,  # noqa: ARG002 - MLflow passes it
    ) -> pd.DataFrame:
        """Matches of postings in the index and among one another.

        :param model_input: columns title or image_phash or both.
        :returns: columns matches and scores, both JSON lists, the best match first. A new posting
            without a posting_id is called new-1, new-2, ... by its row.
        :raises CatalogError: when a posting_id is in the index already.
        """
        new = _texts(model_input)
        if "posting_id" not in new:
            new["posting_id"] = [f"new-{row + 1}" for row in range(len(new))]
        pool = pd.concat([self.index, new], ignore_index=True).fillna("")
        found = self.matcher.match(check_postings(pool))
        names, pairs = pool["posting_id"].to_numpy(), found.pairs
        order = pairs.best_first(found.chances)
        order = order[found.chosen[order] & (pairs.query[order] >= len(self.index))]
        matches: list[list[str]] = [[] for _ in range(len(new))]
        scores: list[list[float]] = [[] for _ in range(len(new))]
        for pair in order:
            row = pairs.query[pair] - len(self.index)
            matches[row].append(str(names[pairs.match[pair]]))
            scores[row].append(round(float(found.chances[pair]), 4))
        return pd.DataFrame(
            {"matches": [json.dumps(m) for m in matches], "scores": [json.dumps(s) for s in scores]}
        )


def log_matcher(matcher: Matcher, index: pd.DataFrame, *, register: bool) -> str:
    """Log a matcher as a model of the active run; returns its URI.

    :param index: columns posting_id, title and image_phash.
    :param register: whether to register it as ``shopee-matcher``.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        artifact_errors("the matcher was not stored"),
        warnings.catch_warnings(),
    ):
        # MLflow would answer an example at once, which matches the whole index.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        data = Path(folder) / "matcher"
        data.mkdir()
        (data / _MATCHER_FILE).write_bytes(pickle.dumps(matcher))
        index[["posting_id", *_COLUMNS]].to_csv(data / _INDEX_FILE, index=False)
        info = mlflow.pyfunc.log_model(
            name=MATCHER_NAME,
            loader_module=__name__,
            data_path=str(data),
            code_paths=[str(_PACKAGE)],
            pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES],
            signature=_signature(),
            registered_model_name=REGISTERED_MATCHER if register else None,
        )
    return str(info.model_uri)


def _signature() -> ModelSignature:
    """Columns of text, all optional; a posting needs a title or a phash."""
    names = ("posting_id", *_COLUMNS)
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, name, required=False) for name in names]),
        outputs=Schema([ColSpec(DataType.string, name) for name in ("matches", "scores")]),
    )


def _texts(postings: pd.DataFrame) -> pd.DataFrame:
    """The known columns, as text."""
    known = [name for name in ("posting_id", *_COLUMNS) if name in postings]
    return postings[known].fillna("").astype(str).reset_index(drop=True)


def _load_pyfunc(path: str) -> PostingMatcher:
    """Called by MLflow with the model's data folder."""
    folder = Path(path)
    matcher = pickle.loads((folder / _MATCHER_FILE).read_bytes())
    index = pd.read_csv(folder / _INDEX_FILE, dtype=str, keep_default_na=False)
    return PostingMatcher(matcher, index)
