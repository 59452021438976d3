"""Use a logged model from Python: classify photos, or compute their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..console import say
from ..data.photo_inputs import PhotoInputs, photos_in
from ..data_config import AUTO
from ..errors import ConfigError, ImageError, ModelError
from ..modeling.inference import Prediction, Predictor, check_answer_options
from ..modeling.models import ProductClassifier
from .registry import LoadedModel, load_classifier


class Classifier:
    """A model of this project, ready to classify photos::

        classifier = Classifier.load("models:/shopee-classifier@champion")
        classifier.predict("photos/", top_k=3)

    The methods accept ``photos`` in these forms: the path of a photo, a folder, a pattern such as
    ``shop/*.jpg`` or a CSV with a column ``image``; a Pillow image; an array, (H, W, 3) or
    (N, H, W, 3) uint8; the bytes of a file; a list or a Series of any of these; a DataFrame with
    any of these in its column ``image``. ``images`` is the folder to which paths in a list or a
    table are relative. Photos are decoded by ``workers`` threads (0: one per core), and only a few
    batches are in memory at a time.

    :ivar module: the model: uint8 or float photos, (N, 3, H, W) -> logits (N, classes).
    :ivar classes: label groups in logit order.
    :ivar image_size: side in pixels to which photos are resized.
    """

    def __init__(self, loaded: LoadedModel, *, device: str = "cpu", name: str = "") -> None:
        """
        :param loaded: a model from :func:`load_classifier`.
        :param name: shown by ``repr``.
        :raises ConfigError: for a device on which this model cannot run.
        """
        self.module, self.classes = loaded.module, loaded.classes
        self.image_size, self.resize, self.name = loaded.image_size, loaded.resize, name
        self._names = dict(zip(self.classes, loaded.label_names or self.classes, strict=True))
        self._is_pickled = isinstance(loaded.module, ProductClassifier)
        if device != "cpu" and not self._is_pickled:
            raise ConfigError(
                [f"device={device}: a model saved with serialization=pt2 runs on the CPU only"]
            )
        self._predictor = Predictor(loaded.module, loaded.classes, device)

    @classmethod
    def load(cls, uri: str | Path, *, device: str = "cpu") -> Classifier:
        """Load a model from the tracking store, the registry or a folder.

        :param uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/MODEL_ID``,
            ``runs:/RUN_ID/model``, or a folder with an ``MLmodel`` file.
        :param device: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        :raises TrackingError: when there is no such model, or it was not made by this project.
        """
        return cls(load_classifier(str(uri)), device=device, name=str(uri))

    def predict(
        self,
        photos: Any,
        *,
        top_k: int = 1,
        images: str | Path | None = None,
        workers: int = 0,
        unknown: str = AUTO,
    ) -> pd.DataFrame:
        """Classify photos.

        :param top_k: number of label groups per photo. The second most probable one is in the
            columns ``label_group_2``, ``label_name_2`` and ``probability_2``, and so on.
        :param unknown: ``auto``: label_group is ``unknown`` for a photo that looks like none of the
            label groups, if the model can tell; ``none``: always the most probable group.
        :returns: one row per photo, in order; a Series or a DataFrame keeps its index. Columns:
            image (the path as passed; None without one), label_group, label_name (a readable name
            of the group), probability (0..1) and error (why the photo could not be read; None if
            it could). If the model can tell photos of no label group, there is also a column
            known_score, below 0 for them.
        :raises CatalogError: when a path does not exist, or a table has no column ``image``.
        :raises ImageError: when a single photo is passed and cannot be read. For several photos,
            the column error has the reason instead.
        """
        check_answer_options(top_k, unknown, workers)
        found = _read_inputs(photos, images)
        decode = found.decoder(self.image_size, self.resize, named=found.single)
        top_k = min(top_k, len(self.classes))
        batches = self._predictor.predict(
            found.numbered(), decode, top_k=top_k, workers=workers, unknown=unknown
        )
        rows = [prediction for batch in batches for prediction in batch]
        if found.single and rows[0].error is not None:
            raise ImageError(rows[0].error)
        return _table(found, rows, top_k, self._names, self._predictor.has_detector)

    def embed(
        self, photos: Any, *, images: str | Path | None = None, workers: int = 0
    ) -> np.ndarray:
        """Compute embeddings, the inputs of the head: (N, features) float32, one row per photo.

        :raises CatalogError: when a path does not exist, or a table has no column ``image``.
        :raises ImageError: for a photo that cannot be read.
        :raises ModelError: for a model saved with ``serialization=pt2``, which returns logits only.
        """
        if not self._is_pickled:
            raise ModelError(
                f"{self.name or 'This model'} was saved with serialization=pt2 and returns logits "
                "only. Embeddings need a model saved with serialization=pickle."
            )
        found = _read_inputs(photos, images)
        decode = found.decoder(self.image_size, self.resize, named=True)
        return self._predictor.embed(found.numbered(), decode, workers=workers).numpy()

    def __repr__(self) -> str:
        kind = getattr(self.module, "architecture", "") if self._is_pickled else "program"
        name = [repr(self.name)] if self.name else []
        facts = [*name, kind, f"{len(self.classes)} classes", f"{self.image_size} px"]
        return f"Classifier({', '.join(facts)})"


def _read_inputs(photos: Any, images: str | Path | None) -> PhotoInputs:
    found = photos_in(photos, images)
    if found.remark:
        say(found.remark)
    return found


def _table(
    found: PhotoInputs,
    rows: list[Prediction],
    top_k: int,
    names: Mapping[str, str],
    has_detector: bool,
) -> pd.DataFrame:
    table = {"image": pd.Series(found.names, index=found.index, dtype=object)}
    for rank in range(top_k):
        suffix = f"_{rank + 1}" if rank else ""
        labels = [row.answers()[rank] if row.error is None else None for row in rows]
        shares = [row.probabilities[rank] if row.error is None else np.nan for row in rows]
        groups = pd.Series(labels, index=found.index, dtype=object)
        table[f"label_group{suffix}"] = groups
        table[f"label_name{suffix}"] = groups.map(
            lambda label: names.get(label, label), na_action="ignore"
        )
        table[f"probability{suffix}"] = pd.Series(shares, index=found.index, dtype=float)
    if has_detector:
        scores = [row.known_score for row in rows]
        table["known_score"] = pd.Series(scores, index=found.index, dtype=float)
    table["error"] = pd.Series([row.error for row in rows], index=found.index, dtype=object)
    return pd.DataFrame(table)
