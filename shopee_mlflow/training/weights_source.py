"""Resolve the option ``weights``: a file of weights, or a logged or registered model."""

from __future__ import annotations

import re

from ..data_config import AUTO
from ..errors import ModelError, TrackingError
from ..modeling.initial_weights import InitialWeights, read_weights, weights_of_model
from ..modeling.models import ProductClassifier
from ..options import expand_path
from ..tracking.names import MODEL_NAME
from ..tracking.registry import load_classifier

_RUN = re.compile(r"(?:runs:/)?([0-9a-f]{32})")
_LOGGED_MODEL = re.compile(r"m-[0-9a-f]{32}")


def initial_weights(weights: str) -> InitialWeights | None:
    """Load the weights that a training starts from.

    :param weights: the option: ``auto``, a file, the folder of a logged model, a model URI such as
        ``models:/shopee-classifier@champion``, the id of a logged model, or the id of a run that
        has logged a model.
    :returns: None for ``auto``.
    :raises ModelError: when they cannot be loaded, or cannot be trained.
    """
    if weights == AUTO:
        return None
    file = expand_path(weights)
    if file.is_file():
        return read_weights(file)
    try:
        loaded = load_classifier(_model_uri(weights))
    except TrackingError as error:
        raise ModelError(f"weights={weights}: cannot be used. {error}") from error
    if not isinstance(loaded.module, ProductClassifier):
        raise ModelError(
            f"weights={weights}: was logged with serialization=pt2, which cannot be trained. Name "
            "a model that was logged with serialization=pickle."
        )
    return weights_of_model(loaded.module, weights, loaded.run_id)


def _model_uri(weights: str) -> str:
    """The model URI of a run, a logged model or a folder; any other URI is unchanged."""
    if found := _RUN.fullmatch(weights):
        return f"runs:/{found[1]}/{MODEL_NAME}"
    if _LOGGED_MODEL.fullmatch(weights):
        return f"models:/{weights}"
    return weights if ":/" in weights else str(expand_path(weights))
