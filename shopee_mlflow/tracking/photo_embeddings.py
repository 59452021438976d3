"""Embeddings of photos by any model: logged, registered, or an architecture by name; cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import is_model_reference
from ..data.array_cache import load_or_build
from ..data.images import read_pixels
from ..data.photo_forms import is_missing, read_photo
from ..data.pixel_cache import Progress, hash_files, pixel_key
from ..errors import ImageError, ModelError
from ..modeling.architectures import build_model
from ..modeling.inference import BATCH, Predictor
from ..modeling.models import ProductClassifier
from ..options import expand_path
from .finding import RUN_ID
from .registry import load_classifier


def embedding_model(name: str, image_size: int, resize: str) -> ProductClassifier:
    """The model that a name refers to.

    :param name: a model URI, the id of a run, the folder of a logged model, or an architecture
        such as ``effnet_pretrained``.
    :param image_size: for an architecture; a logged model has its own, and its own ``resize``.
    :raises ModelError: for a model that returns logits only (``serialization=pt2``).
    :raises TrackingError: when there is no such model.
    """
    if not is_model_reference(name) and not expand_path(name).is_dir():
        return build_model(name, ["none", "other"], image_size, resize=resize)
    uri = f"runs:/{name}/model" if RUN_ID.fullmatch(name) else name
    module = load_classifier(uri).module
    if not isinstance(module, ProductClassifier):
        raise ModelError(
            f"model={name}: was saved with serialization=pt2 and returns logits only. Matching "
            "needs the embeddings of a model saved with serialization=pickle."
        )
    return module


def embed_files(
    model: ProductClassifier,
    files: Sequence[Path | None],
    *,
    cache: bool = True,
    workers: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Embeddings of photos, scaled to length 1.

    :param files: one for each posting; None where there is no photo.
    :param cache: whether to keep them in the cache folder, under a name that depends on the
        model's weights and on the bytes of the photos.
    :returns: (N, features) float32; zeros where there is no photo or it cannot be read.
    """
    rows = [row for row, file in enumerate(files) if file is not None]
    known = [file for file in files if file is not None]
    predictor = Predictor(model, model.classes)
    side, resize = model.image_size, model.resize
    width = predictor.network.embed(torch.zeros(1, 3, side, side)).shape[1]

    def fill(values: np.ndarray, start: int) -> dict[str, Any]:
        for first in range(0, len(values), BATCH):
            part = known[start + first : start + min(first + BATCH, len(values))]
            values[first : first + len(part)] = _embed(predictor, part, side, resize, workers)
            if progress:
                progress(start + first + len(part), len(known))
        return {}

    shape = (len(known), width)
    if cache:
        key = f"{_digest(model)}-{pixel_key(hash_files(known, workers), side, resize)}"
        found, _ = load_or_build(f"activations-match-{key}", shape, np.float32, fill, "embeddings")
    else:
        found = np.empty(shape, np.float32)
        fill(found, 0)
    result = np.zeros((len(files), width), np.float32)
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    result[rows] = found / np.maximum(lengths, 1e-12)
    return result


def embed_photos(
    model: ProductClassifier,
    predictor: Predictor,
    photos: Sequence[Any],
    read_paths: bool = True,
) -> tuple[np.ndarray, list[str]]:
    """Embeddings of photos in any form, scaled to length 1, and why a photo cannot be read.

    :param predictor: the same model, prepared for inference.
    :param photos: in any form that :func:`~shopee_mlflow.data.photo_forms.read_photo` takes, or
        None where there is none.
    :returns: (N, features) float32, zeros without a photo; and (N,) text, empty without an error.
    """
    side, resize = model.image_size, model.resize
    errors = [""] * len(photos)

    def decode(row: int) -> np.ndarray:
        try:
            return read_photo(photos[row], side, resize, paths=read_paths)
        except ImageError as error:
            errors[row] = str(error)
            return np.zeros((side, side, 3), np.uint8)

    there = [row for row, photo in enumerate(photos) if not is_missing(photo)]
    values = predictor.embed(there, decode).numpy()
    result = np.zeros((len(photos), values.shape[1]), np.float32)
    result[there] = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    result[[row for row, error in enumerate(errors) if error]] = 0
    return result, errors


def _embed(
    predictor: Predictor, files: Sequence[Path], side: int, resize: str, workers: int
) -> np.ndarray:
    """Embeddings of a batch; zeros for photos that cannot be read."""
    unreadable = []

    def decode(row: int) -> np.ndarray:
        try:
            return read_pixels(files[row], side, resize)
        except ImageError:
            unreadable.append(row)
            return np.zeros((side, side, 3), np.uint8)

    values = predictor.embed(range(len(files)), decode, workers=workers).numpy().copy()
    values[unreadable] = 0
    return np.asarray(values)


def _digest(model: ProductClassifier) -> str:
    """A digest of the weights, and of what else affects embeddings."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(f"{model.architecture} {model.image_size} {model.resize}".encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
