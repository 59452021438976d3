"""The matcher as an MLflow model: postings in, ids of matching postings and their scores out.

The model holds the matcher, the postings of its catalogue (the index) with their likely pairs, and,
where photos are a signal, the embeddings and the model that computes them. A call compares new
postings with their nearest ones of the index. It does not match the index again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..data.photo_forms import is_missing, phash_of_photo, read_photo
from ..errors import CatalogError, ImageError
from ..matching.matcher import Matcher
from ..matching.pool import Pool
from ..matching.postings import check_postings, valid_phashes

if TYPE_CHECKING:
    from ..modeling.inference import Predictor
    from ..modeling.models import ProductClassifier

INDEX_COLUMNS = ("posting_id", "title", "image_phash")
# A photo is decoded at this size to learn why it cannot be.
_SIDE = 32
_UNUSED = "the image is not used: this matcher was chosen with titles alone"


class PostingMatcher:
    """Match new postings within an index.

    :ivar pool: the index and its likely pairs.
    :ivar embedder: embeds photos; None if photos are no signal.
    :param read_paths: whether the text in ``image`` may be the path of a file on this machine.
    """

    def __init__(
        self,
        matcher: Matcher,
        pool: Pool,
        embedder: ProductClassifier | None = None,
        *,
        read_paths: bool = True,
    ) -> None:
        self.matcher, self.pool, self.embedder = matcher, pool, embedder
        self.read_paths = read_paths

    def get_raw_model(self) -> PostingMatcher:
        """This object, for ``get_raw_model`` of a model that MLflow has loaded."""
        return self

    @property
    def index(self) -> pd.DataFrame:
        """The postings of the index: columns posting_id, title and image_phash."""
        return self.pool.postings.frame[list(INDEX_COLUMNS)]

    @cached_property
    def _predictor(self) -> Predictor:
        """The embedder prepared for inference, which copies it and takes time."""
        from ..modeling.inference import Predictor  # imports torch

        assert self.embedder is not None
        return Predictor(self.embedder, self.embedder.classes)

    def add(self, postings: pd.DataFrame) -> PostingMatcher:
        """A matcher whose index also holds new postings; finds the likely pairs of all again.

        :param postings: columns posting_id, and title, image_phash or image.
        :raises CatalogError: when an id is in the index already.
        """
        new, photos, problems = self._read(postings)
        if unnamed := int((new["posting_id"] == "").sum()):
            raise CatalogError(
                f"{unnamed:,} of {len(new):,} new postings have no posting_id; give each its own."
            )
        for row in np.flatnonzero(problems != ""):
            raise CatalogError(f"image of {new['posting_id'][row]}: {problems[row]}")
        self.pool.check_new_ids(new["posting_id"])
        rows = pd.concat([self.index, new], ignore_index=True)
        known = self.pool.postings.photos
        both = None if known is None or photos is None else np.concatenate([known, photos])
        pool = Pool.of(check_postings(rows, both), self.matcher)
        return PostingMatcher(self.matcher, pool, self.embedder, read_paths=self.read_paths)

    def predict(
        self,
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,  # noqa: ARG002 - MLflow passes it
    ) -> pd.DataFrame:
        """Matches of postings in the index and among one another.

        :param model_input: any of the columns title, image_phash and image. An image is a photo in
            any form that :func:`~shopee_mlflow.data.photo_forms.read_photo` takes; its phash is
            computed where none is given.
        :returns: columns matches and scores, both JSON lists, the best match first, and error, the
            reason why a photo cannot be read or is not used; the posting is then matched without
            it. A new posting without a posting_id is called new-1, new-2, ... by its row.
        :raises CatalogError: when a posting_id repeats or is in the index already.
        """
        rows, photos, problems = self._read(model_input)
        numbered = (rows.index + 1).astype(str)
        rows["posting_id"] = rows["posting_id"].mask(rows["posting_id"] == "", "new-" + numbered)
        if "image" in model_input and self.pool.postings.signals == ["titles"]:
            unused = ["" if is_missing(image) else _UNUSED for image in model_input["image"]]
            problems = pd.Series(unused, dtype=object)
        matches, scores = self._answers(rows, photos) if len(rows) else ([], [])
        found = {"matches": matches, "scores": scores, "error": problems.replace("", None)}
        return pd.DataFrame(found, index=rows.index)

    def _answers(self, new: pd.DataFrame, photos: np.ndarray | None) -> tuple[list[str], list[str]]:
        """JSON lists of the matches of new postings and of their scores."""
        found = self.pool.match(self.matcher, self.pool.new_postings(new, photos))
        known = len(self.pool.postings)
        names = self.pool.ids.append(pd.Index(new["posting_id"]))
        order = found.pairs.best_first(found.chances)
        order = order[found.chosen[order] & (found.pairs.query[order] >= known)]
        matches: list[list[str]] = [[] for _ in range(len(new))]
        scores: list[list[float]] = [[] for _ in range(len(new))]
        for pair, name in zip(order, names.take(found.pairs.match[order]), strict=True):
            row = found.pairs.query[pair] - known
            matches[row].append(str(name))
            scores[row].append(round(float(found.chances[pair]), 4))
        return [json.dumps(each) for each in matches], [json.dumps(each) for each in scores]

    def _read(self, postings: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray | None, pd.Series]:
        """Ids, titles and phashes as text; embeddings of photos; why a photo cannot be read."""
        rows = pd.DataFrame(index=range(len(postings)))
        for name in INDEX_COLUMNS:
            given = name in postings
            rows[name] = postings[name].fillna("").astype(str).to_numpy() if given else ""
        reasons = [""] * len(rows)
        images = list(postings["image"]) if "image" in postings else [None] * len(rows)
        if self.pool.postings.phashes is not None:
            for row in np.flatnonzero(valid_phashes(rows["image_phash"]) == ""):
                if not is_missing(images[row]):
                    phash = phash_of_photo(images[row], self.read_paths)
                    rows.loc[row, "image_phash"] = phash
                    reasons[row] = "" if phash else self._why_unreadable(images[row])
        known, problems = self.pool.postings.photos, pd.Series(reasons, dtype=object)
        if self.embedder is None or known is None:
            return rows, None, problems
        if all(is_missing(image) for image in images):
            return rows, np.zeros((len(rows), known.shape[1]), np.float32), problems
        from .photo_embeddings import embed_photos

        photos, errors = embed_photos(self.embedder, self._predictor, images, self.read_paths)
        return rows, photos, pd.Series(errors, index=rows.index, dtype=object)

    def _why_unreadable(self, photo: Any) -> str:
        """Why a photo has no phash; empty if it can be read."""
        try:
            read_photo(photo, _SIDE, paths=self.read_paths)
        except ImageError as error:
            return str(error)
        return ""


def _load_pyfunc(path: str) -> PostingMatcher:
    """Called by MLflow for matchers of earlier versions, which name this module as their loader."""
    from .matcher_files import _load_pyfunc as load  # imports this module

    return load(path)
