"""How a classifier is stored in MLflow, and how ``mlflow.pyfunc`` brings it back.

This package travels with every model, and this file is what ``mlflow.pyfunc.load_model`` and
``mlflow models serve`` call there. It therefore needs torch, torchvision, Pillow and MLflow, and
nothing else of the environment in which the model was trained.
"""

from __future__ import annotations

import base64
import binascii
import copy
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import pandas as pd
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import (
    AnyType,
    ColSpec,
    DataType,
    ParamSchema,
    ParamSpec,
    Schema,
    TensorSpec,
)

from ..data.images import pixels_from_array, read_pixels
from ..errors import ImageError, TrackingError
from ..modeling.models import ProductClassifier

ABOUT_FILE = "product_classifier.json"
PICKLE, PROGRAM = SERIALIZATIONS = ("pickle", "pt2")
PACKAGE = Path(__file__).parents[1]
_PACKAGES = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow")
_BATCH = 32


def save_model(
    path: str, mlflow_model: Model, classifier: ProductClassifier, serialization: str = PICKLE
) -> None:
    """Write a classifier as an MLflow model; the form that ``mlflow.models.Model.log`` calls.

    The weights are stored for the CPU whatever device they are on, and the code goes along.

    :param serialization: ``pickle`` keeps the module itself, which can be trained on; ``pt2``
        keeps a program for photos of ``image_size``, which loads without running any code.
    """
    portable = copy.deepcopy(classifier).cpu().to(memory_format=torch.contiguous_format).eval()
    portable.requires_grad_(True)
    with _without_pickle_advice():
        if serialization == PICKLE:
            _save_pickle(portable, path, mlflow_model)
        else:
            _save_program(portable, path, mlflow_model)
    about = {
        "classes": portable.classes,
        "image_size": portable.image_size,
        "architecture": portable.architecture,
        "probe": _probe_logits(portable, portable.image_size),
    }
    (Path(path) / "data" / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
    mlflow_model.signature = signature()
    mlflow_model.flavors["python_function"]["loader_module"] = __name__
    mlflow_model.save(str(Path(path) / "MLmodel"))


def _save_pickle(model: ProductClassifier, path: str, mlflow_model: Model) -> None:
    mlflow.pytorch.save_model(
        model,
        path,
        mlflow_model=mlflow_model,
        code_paths=[str(PACKAGE)],
        pip_requirements=pip_requirements(),
        signature=signature(),
        serialization_format="pickle",
    )


def _save_program(model: ProductClassifier, path: str, mlflow_model: Model) -> None:
    side = model.image_size
    mlflow.pytorch.save_model(
        model,
        path,
        mlflow_model=mlflow_model,
        code_paths=[str(PACKAGE)],
        pip_requirements=pip_requirements(),
        # What torch.export is to keep variable: the number of photos.
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 3, side, side))])
        ),
        # As a tensor it traces the program and is not written into the model as JSON.
        input_example=torch.zeros(2, 3, side, side, dtype=torch.uint8),
        serialization_format="pt2",
    )
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=__name__,
        data="data",
        code="code",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )


def pip_requirements() -> list[str]:
    """The packages that loading and serving need, at the versions of this environment."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in _PACKAGES]


def signature() -> ModelSignature:
    """A column ``image`` in; label group, probability and error out; ``top_k`` as a parameter."""
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label_group", required=False),
                ColSpec(DataType.double, "probability", required=False),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("top_k", DataType.integer, 1)]),
    )


def _load_pyfunc(path: str) -> PhotoClassifier:
    """Called by MLflow with the model's data folder."""
    about = json.loads((Path(path) / ABOUT_FILE).read_text(encoding="utf-8"))
    model = mlflow.pytorch.load_model(str(Path(path).parent))
    return PhotoClassifier(model, about["classes"], about["image_size"])


def check_probe(uri: str) -> None:
    """Load a logged model and compare its logits with those it had when it was saved.

    :raises TrackingError: when it is no model of this project, or its logits differ.
    """
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    model, about = load_folder(folder, uri)
    now, then = _probe_logits(model, about["image_size"]), about["probe"]
    if not np.allclose(now, then, rtol=1e-3, atol=1e-3):
        raise TrackingError(
            f"{uri}: loaded back, it gives other logits than when it was saved (largest "
            f"difference {np.abs(np.subtract(now, then)).max():.3g}). No alias has moved."
        )


def load_folder(folder: Path, uri: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The module and what is known of it: classes, image_size, architecture, probe.

    :raises TrackingError: when the folder holds a model of another kind.
    """
    about = folder / "data" / ABOUT_FILE
    if not about.is_file():
        raise TrackingError(f"{uri}: is no model of this project (it holds no {ABOUT_FILE}).")
    return mlflow.pytorch.load_model(str(folder)), json.loads(about.read_text(encoding="utf-8"))


def _probe_logits(model: torch.nn.Module, side: int) -> list[list[float]]:
    """Logits of two fixed made-up photos, by which a model is known again."""
    ramp = torch.arange(side) * 255 // max(side - 1, 1)
    photo = torch.stack(
        [ramp.expand(side, side), ramp.expand(side, side).T, (ramp // 2).expand(side, side)]
    )
    photos = torch.stack([photo, 255 - photo]).to(torch.uint8)
    with torch.inference_mode():
        return model(photos).double().tolist()


class PhotoClassifier:
    """Photos in any of their forms -> label groups with probabilities, one row a photo."""

    def __init__(self, model: torch.nn.Module, classes: Sequence[str], image_size: int) -> None:
        self.model = model
        self.classes = list(classes)
        self.image_size = image_size

    def predict(
        self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify the photos of the column ``image``.

        :param model_input: column ``image`` with file paths, the file's bytes, its base64 text, or
            arrays (H, W, 3) uint8; forms may be mixed.
        :param params: ``top_k``: how many of the best label groups to give.
        :returns: label_group, probability and error, a row a photo; with ``top_k`` above 1 also
            ``label_groups`` and ``probabilities``, the best first. A photo that cannot be read
            has the reason in ``error`` and nothing else; the others have their answers.
        """
        k = min(max(int((params or {}).get("top_k", 1)), 1), len(self.classes))
        rows: list[dict[str, Any]] = []
        with ThreadPoolExecutor() as pool:
            for part in _in_batches(_column(model_input), _BATCH):
                pixels = list(pool.map(self._pixels_or_error, part))
                rows += self._classify(pixels, k)
        return pd.DataFrame(rows, index=getattr(model_input, "index", None))

    def _pixels_or_error(self, photo: Any) -> np.ndarray | str:
        try:
            return read_photo(photo, self.image_size)
        except ImageError as error:
            return str(error)

    def _classify(self, pixels: Sequence[np.ndarray | str], k: int) -> list[dict[str, Any]]:
        good = [p for p in pixels if isinstance(p, np.ndarray)]
        answers = iter(self._answers(good, k) if good else [])
        empty: dict[str, Any] = {"label_group": None, "probability": float("nan")}
        if k > 1:
            empty |= {"label_groups": [], "probabilities": []}
        return [
            next(answers) if isinstance(p, np.ndarray) else {**empty, "error": p} for p in pixels
        ]

    def _answers(self, pixels: Sequence[np.ndarray], k: int) -> Iterator[dict[str, Any]]:
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            probabilities = torch.softmax(self.model(images).double(), dim=1)
        values, positions = (part.tolist() for part in probabilities.topk(k, dim=1))
        for value, position in zip(values, positions, strict=True):
            names = [self.classes[i] for i in position]
            row = {"label_group": names[0], "probability": value[0]}
            if k > 1:
                row |= {"label_groups": names, "probabilities": value}
            yield {**row, "error": None}


def read_photo(photo: Any, size: int) -> np.ndarray:
    """One photo in any form that callers send -> (size, size, 3) uint8, by the project's one path.

    :param photo: a file path, the file's bytes, its base64 text, or an array (H, W, 3) uint8.
    :raises ImageError: when it is none of these, or does not decode.
    """
    if isinstance(photo, (bytes, bytearray, memoryview)):
        return read_pixels(bytes(photo), size)
    if isinstance(photo, (np.ndarray, list)):
        return pixels_from_array(np.asarray(photo), size)
    if isinstance(photo, Path):
        return read_pixels(photo, size)
    if not isinstance(photo, str) or not photo:
        raise ImageError(f"an image is a path, bytes, base64 text or an array, not {photo!r:.60}")
    # A path is never a whole encoded photo, and what is longer than any path is base64.
    if len(photo) < 4096 and Path(photo).is_file():
        return read_pixels(Path(photo), size)
    try:
        return read_pixels(base64.b64decode(photo, validate=True), size)
    except binascii.Error:
        raise ImageError(f"no such file, and no base64 text: {photo[:60]!r}") from None


def _column(frame: Any) -> list[Any]:
    if isinstance(frame, pd.DataFrame) and "image" in frame:
        return frame["image"].tolist()
    found = list(frame.columns) if isinstance(frame, pd.DataFrame) else type(frame).__name__
    raise ValueError(f"predict takes a DataFrame with a column 'image'; got {found}")


def _in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@contextmanager
def _without_pickle_advice() -> Iterator[None]:
    """MLflow warns at each save that pickles can run code; the README says it once, with the
    alternative."""
    logger = logging.getLogger("mlflow.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
