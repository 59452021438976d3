"""The MLflow flavor of a classifier: saving it, and loading it for ``mlflow.pyfunc``.

A copy of this package is stored with every model. ``mlflow.pyfunc.load_model`` and
``mlflow models serve`` call this module in that copy, with only the packages that
:func:`pip_requirements` lists.
"""

from __future__ import annotations

import base64
import copy
import io
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
    ColSpec,
    DataType,
    ParamSchema,
    ParamSpec,
    Schema,
    TensorSpec,
)
from PIL import Image

from ..errors import TrackingError
from ..modeling.models import ProductClassifier
from ..modeling.timm_models import PREFIX as TIMM
from .photo_classifier import TABLE, PhotoClassifier
from .read_paths import may_read_paths

ABOUT_FILE = "product_classifier.json"
_EXAMPLE_FILE = "input_example.json"
PICKLE, PROGRAM = SERIALIZATIONS = ("pickle", "pt2")
PACKAGE = Path(__file__).parents[1]
_PACKAGES = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow")
# Errors of torch and pickle for files that are truncated or were written by incompatible code.
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
    """Save a classifier as an MLflow model; ``mlflow.models.Model.log`` calls this function.

    The weights are copied to the CPU and stored together with a copy of this package.

    :param serialization: ``pickle`` stores the module itself, which can be trained further;
        ``pt2`` stores a program for photos of ``image_size``, which loads without running code.
    """
    portable = copy.deepcopy(classifier).cpu().to(memory_format=torch.contiguous_format).eval()
    portable.requires_grad_(True)
    with _without_pickle_warning():
        if serialization == PICKLE:
            _save_pickle(portable, path, mlflow_model)
        else:
            _save_program(portable, path, mlflow_model)
    about = {
        "classes": portable.classes,
        "label_names": list(portable.label_names) or portable.classes,
        "image_size": portable.image_size,
        "resize": portable.resize,
        "architecture": portable.architecture,
        "tta": portable.tta,
        "probe": _probe_logits(portable, portable.image_size),
    }
    (Path(path) / "data" / ABOUT_FILE).write_text(json.dumps(about), encoding="utf-8")
    mlflow_model.signature = signature(portable)
    function = mlflow_model.flavors["python_function"]
    # Defaults of model_config in mlflow.pyfunc.load_model.
    function |= {"loader_module": __name__, "config": {"device": None, "output": TABLE}}
    _save_example(Path(path), mlflow_model, portable.image_size)
    mlflow_model.save(str(Path(path) / "MLmodel"))


def _save_example(folder: Path, mlflow_model: Model, side: int) -> None:
    """Save an input example: one photo as base64 text.

    MLflow's own ``input_example`` would load and run the model each time a model is logged.
    """
    file = io.BytesIO()
    Image.fromarray(_probe_photos(side)[0].permute(1, 2, 0).numpy()).save(file, "JPEG")
    text = base64.b64encode(file.getvalue()).decode()
    example = {"columns": ["image"], "data": [[text]]}
    (folder / _EXAMPLE_FILE).write_text(json.dumps(example), encoding="utf-8")
    mlflow_model.saved_input_example_info = {
        "artifact_path": _EXAMPLE_FILE,
        "type": "dataframe",
        "pandas_orient": "split",
    }


def save_in_folder(classifier: ProductClassifier, folder: Path) -> None:
    """Save a classifier in a folder for ``mlflow.pytorch.load_model``, without a tracking store.

    An existing folder is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    save_model(str(folder), Model(), classifier)


def _save_pickle(model: ProductClassifier, path: str, mlflow_model: Model) -> None:
    mlflow.pytorch.save_model(
        model,
        path,
        mlflow_model=mlflow_model,
        code_paths=[str(PACKAGE)],
        pip_requirements=pip_requirements(model),
        signature=signature(model),
        serialization_format="pickle",
    )


def _save_program(model: ProductClassifier, path: str, mlflow_model: Model) -> None:
    side = model.image_size
    mlflow.pytorch.save_model(
        model,
        path,
        mlflow_model=mlflow_model,
        code_paths=[str(PACKAGE)],
        pip_requirements=pip_requirements(model),
        # Tells torch.export which dimension is dynamic: the number of photos.
        signature=ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 3, side, side))])
        ),
        # A tensor is used to trace the program, and is not stored in the model as JSON.
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


def pip_requirements(model: ProductClassifier) -> list[str]:
    """Packages that loading and serving need, with the versions of this environment."""
    packages = [*_PACKAGES, "timm"] if model.architecture.startswith(TIMM) else _PACKAGES
    return [f"{name}=={version(name).partition('+')[0]}" for name in packages]


def signature(model: ProductClassifier) -> ModelSignature:
    """Input ``image``; outputs label_group, label_name, probability, error; and known_score, if the
    model can tell photos of no label group. The parameters are ``top_k`` and ``unknown``.

    MLflow does not check the values of a text column with object dtype, so bytes and arrays are
    accepted as well. All documented input formats of its server work (inputs, instances, text/csv).
    """
    detects = getattr(model, "detector", None) is not None
    score = [ColSpec(DataType.double, "known_score", required=False)] if detects else []
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label_group", required=False),
                ColSpec(DataType.string, "label_name", required=False),
                ColSpec(DataType.double, "probability", required=False),
                *score,
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("top_k", DataType.integer, 1),
                ParamSpec("unknown", DataType.string, "auto"),
            ]
        ),
    )


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PhotoClassifier:
    """Called by MLflow with the model's data folder.

    :param model_config: ``device``, by default ``cpu``, which pt2 models require; ``output``:
        ``table`` or ``label_group``, see :class:`PhotoClassifier`.
    """
    about = json.loads((Path(path) / ABOUT_FILE).read_text(encoding="utf-8"))
    model = mlflow.pytorch.load_model(str(Path(path).parent))
    chosen = model_config or {}
    # Models logged by earlier versions do not store how they resize: they stretch.
    resize = about.get("resize", "stretch")
    return PhotoClassifier(
        model,
        about["classes"],
        about["image_size"],
        resize,
        device=chosen.get("device") or "cpu",
        output=chosen.get("output") or TABLE,
        read_paths=may_read_paths(),
        label_names=about.get("label_names") or (),
    )


def check_probe(folder: Path, uri: str) -> None:
    """Load a logged model from a folder and compare its logits with those stored with it.

    :raises TrackingError: when it is not a model of this project, or its logits differ.
    """
    model, about = load_folder(folder, uri)
    now, then = _probe_logits(model, about["image_size"]), about["probe"]
    # Relative to the largest logit, since devices sum in different orders.
    if not np.allclose(now, then, rtol=0, atol=1e-3 * float(np.abs(then).max())):
        raise TrackingError(
            f"{uri}: the loaded model computes other logits than before it was saved (largest "
            f"difference {np.abs(np.subtract(now, then)).max():.3g}). No alias has moved."
        )


def load_folder(folder: Path, uri: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Load the module and its description, as :func:`save_model` writes it.

    :raises TrackingError: when the folder holds another kind of model, or one that is damaged or
        that MLflow refuses to load.
    """
    file = folder / "data" / ABOUT_FILE
    if not (folder / "MLmodel").is_file():
        raise TrackingError(
            f"model={uri}: its files are not at the path that the store has recorded. MLflow "
            "records absolute paths: if the store's folder was moved or copied, move it back. "
            "Otherwise the artifacts were deleted."
        )
    if not file.is_file():
        raise TrackingError(f"model={uri}: not a model of this project (it has no {ABOUT_FILE}).")
    try:
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return mlflow.pytorch.load_model(str(folder)), about
    except MlflowException as error:
        raise TrackingError(f"model={uri}: MLflow refuses to load it: {error.message}") from error
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"model={uri}: needs the Python module {error.name}, which defines its network and is "
            "not installed here. Install it or add it to the Python path."
        ) from error
    except _DAMAGE as error:
        raise TrackingError(
            f"model={uri}: is damaged ({type(error).__name__}: {error})."
        ) from error


def _probe_logits(model: torch.nn.Module, side: int) -> list[list[float]]:
    """Logits of two fixed synthetic photos, to check that a loaded model is the saved one."""
    with torch.inference_mode():
        return model(_probe_photos(side)).double().tolist()


def _probe_photos(side: int) -> torch.Tensor:
    """(2, 3, side, side) uint8: brightness ramps and their negatives."""
    ramp = torch.arange(side) * 255 // max(side - 1, 1)
    photo = torch.stack(
        [ramp.expand(side, side), ramp.expand(side, side).T, (ramp // 2).expand(side, side)]
    )
    return torch.stack([photo, 255 - photo]).to(torch.uint8)


@contextmanager
def _without_pickle_warning() -> Iterator[None]:
    """Suppress MLflow's warning at each save that pickles can run code.

    The README says it once, with the alternative.
    """
    logger = logging.getLogger("mlflow.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
