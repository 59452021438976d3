"""The pyfunc model, loaded locally or by MLflow's scoring server: classifies photos."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException

from ..data.photo_forms import read_photo
from ..data_config import AUTO, NONE
from ..modeling.inference import Prediction, Predictor

# Values of ``output`` in model_config.
TABLE, LABEL_GROUP = OUTPUTS = ("table", "label_group")
# Loaded in Spark's Python workers, where MLflow casts the output columns.
_SPARK_WORKER = "pyspark.worker"
# MLflow's evaluator of classifiers.
_EVALUATOR = "mlflow.models.evaluation.evaluators.classifier"
# Output columns; those of the second group only for top_k above 1.
_BEST, _ALL = ("label_group", "label_name", "probability"), ("label_groups", "probabilities")


class PhotoClassifier:
    """Classify photos in any supported form.

    :param image_size: side in pixels to which photos are resized.
    :param resize: how photos are made square.
    :param output: ``table``: all columns; ``label_group``: a Series of label groups ("" for a photo
        that cannot be read), which ``mlflow.models.evaluate`` requires and always gets.
    :param label_names: readable names of ``classes``; if empty, ``classes`` are used.
    :param read_paths: whether a string may be the path of a file on this machine.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        classes: Sequence[str],
        image_size: int,
        resize: str = "stretch",
        *,
        device: str = "cpu",
        output: str = TABLE,
        read_paths: bool = True,
        label_names: Sequence[str] = (),
    ) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"model_config: output={output}: must be {' or '.join(OUTPUTS)}")
        self.predictor = Predictor(model, classes, device)
        self.names = dict(zip(classes, label_names or classes, strict=True))
        self.image_size = image_size
        self.resize = resize
        self.output = output
        self.read_paths = read_paths

    def predict(
        self,
        model_input: pd.DataFrame | pd.Series | Sequence[Any],
        params: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame | pd.Series:
        """Classify photos.

        :param model_input: a table with a column ``image``, a Series or a list of photos, in any
            form that :func:`~shopee_mlflow.data.photo_forms.read_photo` takes; forms may be mixed.
            ``mlflow.pyfunc`` itself refuses lists, and Series that are not named ``image``.
        :param params: ``top_k``: how many of the most probable label groups to return; ``unknown``:
            ``auto`` (label_group is ``unknown`` for a photo that looks like none of the label
            groups, if the model can tell) or ``none``.
        :returns: one row per photo, with the columns label_group, label_name, probability and
            error; with ``top_k`` above 1 also ``label_groups`` and ``probabilities``, the most
            probable first. For a photo that cannot be read, ``error`` has the reason and all other
            columns are None. If the model can tell photos of no label group, there is also a column
            ``known_score``, below 0 for them.
        """
        unknown = _unknown(params)
        k = min(max(int((params or {}).get("top_k") or 1), 1), len(self.predictor.classes))
        photos, index = _photos(model_input)
        batches = self.predictor.predict(photos, self._decode, top_k=k, unknown=unknown)
        rows = [self._row(one) for predictions in batches for one in predictions]
        score = ["known_score"] if self.predictor.has_detector else []
        table = _table(rows, [*_BEST, *(_ALL if k > 1 else ()), *score, "error"], index)
        if self.output == LABEL_GROUP or _for_evaluator():
            return table[LABEL_GROUP].fillna("")
        return table

    def _decode(self, photo: Any) -> np.ndarray:
        return read_photo(photo, self.image_size, self.resize, paths=self.read_paths)

    def _row(self, prediction: Prediction) -> dict[str, Any]:
        if prediction.error is not None:
            return {"error": prediction.error}
        labels, probabilities = list(prediction.labels), list(prediction.probabilities)
        answer = prediction.answers()[0]
        return {
            "label_group": answer,
            "label_name": self.names.get(answer, answer),
            "known_score": prediction.known_score,
            "probability": probabilities[0],
            "label_groups": labels,
            "probabilities": probabilities,
        }


def _unknown(params: Mapping[str, Any] | None) -> str:
    """How photos of no label group are answered.

    MLflow's evaluator scores label groups, so it always gets one.

    :raises MlflowException: for a value other than ``auto`` and ``none``. MLflow's server answers
        any other exception with a traceback instead of its message.
    """
    chosen = str((params or {}).get("unknown") or AUTO)
    if chosen not in (AUTO, NONE):
        raise MlflowException.invalid_parameter_value(
            f"params: unknown={chosen}: must be {AUTO} or {NONE}"
        )
    return NONE if _for_evaluator() else chosen


def _for_evaluator() -> bool:
    """Whether MLflow's evaluator of classifiers calls. It takes one column of predictions, ignores
    its argument ``predictions``, and passes nothing to the model by which it could be recognized
    other than the call stack."""
    return any(
        frame.f_globals.get("__name__") == _EVALUATOR for frame, _ in traceback.walk_stack(None)
    )


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], index: Any) -> pd.DataFrame:
    """Build the output table. Missing values stay None, which is null in JSON; NaN is invalid."""
    table = {
        name: pd.Series([row.get(name) for row in rows], index=index, dtype=object)
        for name in columns
    }
    frame = pd.DataFrame(table, index=index)
    if frame["probability"].notna().all():
        frame["probability"] = frame["probability"].astype(float)
    if _SPARK_WORKER in sys.modules:
        for name in (LABEL_GROUP, "error"):
            frame[name] = pd.Series(_NullableText.of(frame[name]), index=index)
    return frame


class _NullableText(pd.arrays.StringArray):
    """Text for Spark. MLflow casts its columns to ``numpy.str_``, where None becomes 'None'."""

    @classmethod
    def of(cls, texts: pd.Series) -> _NullableText:
        known = [pd.NA if text is None else text for text in texts]
        return cls(np.array(known, dtype=object))

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        if dtype == np.str_:
            return np.array([None if text is pd.NA else text for text in self], dtype=object)
        return super().astype(dtype, copy)


def _photos(frame: Any) -> tuple[list[Any], pd.Index]:
    """The photos of a table, a Series or a list, and the index of their rows."""
    if isinstance(frame, (list, tuple)):
        return list(frame), pd.RangeIndex(len(frame))
    if isinstance(frame, pd.Series):
        return frame.tolist(), frame.index
    if not isinstance(frame, pd.DataFrame) or "image" not in frame:
        found = list(frame.columns) if isinstance(frame, pd.DataFrame) else type(frame).__name__
        raise ValueError(
            f"predict takes a DataFrame with a column 'image', a Series or a list; got {found}"
        )
    photos = frame["image"].tolist()
    # MLflow puts {"image": ["...", "..."]} into one row.
    if len(photos) == 1 and isinstance(photos[0], (list, tuple, np.ndarray)):
        several = list(photos[0])
        if several and all(isinstance(photo, (str, bytes)) for photo in several):
            return several, pd.RangeIndex(len(several))
    return photos, frame.index
