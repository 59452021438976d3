"""How a classifier is stored in MLflow, and how ``mlflow.pyfunc`` brings it back.

This package travels with every model, and this file is what ``mlflow.pyfunc.load_model`` and
``mlflow models serve`` call there. It therefore needs torch, torchvision, Pillow and MLflow, and
nothing else of the environment in which the model was trained.
"""

from __future__ import annotations

import copy
import json
import logging
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.artifacts
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import torch
from mlflow.exceptions import MlflowException
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

from ..errors import TrackingError
from ..modeling.models import ProductClassifier
from .photo_classifier import PhotoClassifier

ABOUT_FILE = "product_classifier.json"
PICKLE, PROGRAM = SERIALIZATIONS = ("pickle", "pt2")
PACKAGE = Path(__file__).parents[1]
_PACKAGES = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow")
# What torch and pickle answer to files that are cut off, or were written by other code.
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    ImportError,
    AttributeError,
    TypeError,
    pickle.UnpicklingError,
)


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
        "resize": portable.resize,
        "architecture": portable.architecture,
        "tta": portable.tta,
        "probe": _probe_logits(portable, portable.image_size),
    }
    (Path(path) / "data" / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
    mlflow_model.signature = signature()
    mlflow_model.flavors["python_function"]["loader_module"] = __name__
    mlflow_model.save(str(Path(path) / "MLmodel"))


def save_in_folder(classifier: ProductClassifier, folder: Path) -> None:
    """Write a classifier into a folder, which ``mlflow.pytorch.load_model`` takes, without a store.

    What is there is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    save_model(str(folder), Model(), classifier)


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


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PhotoClassifier:
    """Called by MLflow with the model's data folder.

    It answers on the device that ``model_config={"device": ...}`` names, by default on the CPU;
    programs (pt2) know the CPU only.
    """
    about = json.loads((Path(path) / ABOUT_FILE).read_text(encoding="utf-8"))
    model = mlflow.pytorch.load_model(str(Path(path).parent))
    device = (model_config or {}).get("device") or "cpu"
    # Models logged by earlier versions do not say how they resize: they stretch.
    resize = about.get("resize", "stretch")
    return PhotoClassifier(model, about["classes"], about["image_size"], resize, device)


def check_probe(uri: str) -> None:
    """Load a logged model and compare its logits with those it had when it was saved.

    :raises TrackingError: when it is no model of this project, or its logits differ.
    """
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    model, about = load_folder(folder, uri)
    now, then = _probe_logits(model, about["image_size"]), about["probe"]
    # Relative to the largest logit: another device adds up in another order.
    if not np.allclose(now, then, rtol=0, atol=1e-3 * float(np.abs(then).max())):
        raise TrackingError(
            f"{uri}: loaded back, it gives other logits than when it was saved (largest "
            f"difference {np.abs(np.subtract(now, then)).max():.3g}). No alias has moved."
        )


def load_folder(folder: Path, uri: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The module and what is known of it: classes, image_size, architecture, probe.

    :raises TrackingError: when the folder holds a model of another kind, or one that is damaged
        or may not be loaded here.
    """
    file = folder / "data" / ABOUT_FILE
    if not file.is_file():
        raise TrackingError(f"model={uri}: is no model of this project (it holds no {ABOUT_FILE}).")
    try:
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return mlflow.pytorch.load_model(str(folder)), about
    except MlflowException as error:
        raise TrackingError(f"model={uri}: may not be loaded here: {error.message}") from error
    except _DAMAGE as error:
        raise TrackingError(
            f"model={uri}: is damaged ({type(error).__name__}: {error})."
        ) from error


def _probe_logits(model: torch.nn.Module, side: int) -> list[list[float]]:
    """Logits of two fixed made-up photos, by which a model is known again."""
    ramp = torch.arange(side) * 255 // max(side - 1, 1)
    photo = torch.stack(
        [ramp.expand(side, side), ramp.expand(side, side).T, (ramp // 2).expand(side, side)]
    )
    photos = torch.stack([photo, 255 - photo]).to(torch.uint8)
    with torch.inference_mode():
        return model(photos).double().tolist()


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
