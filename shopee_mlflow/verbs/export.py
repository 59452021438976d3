"""Export a logged model as an ONNX file, whose logits are compared with torch's first."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..console import say
from ..errors import ModelError
from ..modeling.models import ProductClassifier
from ..tracking.registry import LoadedModel, load_classifier

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
# Numbers of photos other than that of the tracing.
_CHECKED_BATCHES = (1, 3, 5)
_TOLERANCE = 1e-3


def export(model: str, out: Path) -> Path:
    """Write a model as ONNX: ``images`` (N, 3, S, S) uint8 -> ``logits`` (N, classes) float32.

    If the model can tell photos of no label group, there is a second output ``known_score`` (N,)
    float32, below 0 for them. Logits are calibrated: their softmax is the probability.

    The file's metadata holds ``classes`` (JSON list, in the order of the logits), ``image_size``,
    ``resize`` (how photos must be brought to S x S: stretch, pad on white, or crop
    the centre) and ``mlflow_model``. N is free.

    :param model: an MLflow model URI, such as ``models:/shopee-classifier@champion``.
    :raises ShopeeError: when the model does not exist, packages are missing, the model cannot be
        written as ONNX, or its logits differ from torch's; ``out`` is then unchanged.
    """
    _check_packages()
    if out.is_dir():
        raise ModelError(f"out={out}: is a folder; name a file, such as {out / 'model.onnx'}.")
    loaded = load_classifier(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
            file = Path(folder) / "model.onnx"
            _write(loaded, file)
            difference = _check(loaded, file)
            file.replace(out)
    except OSError as error:
        raise ModelError(f"out={out}: cannot be written ({error.strerror or error}).") from error
    say(
        f"{out}: {out.stat().st_size / 2**20:,.1f} MiB, {len(loaded.classes):,} label groups; "
        f"largest relative difference from torch {difference:.1g}"
    )
    return out


def _check_packages() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"export needs {', '.join(missing)}; install with: pip install {' '.join(missing)}"
        )


def _write(loaded: LoadedModel, file: Path) -> None:
    import onnx

    side, outputs = loaded.image_size, _outputs(loaded)
    with _quiet_exporter():
        program = torch.onnx.export(
            _network(loaded),
            (torch.zeros(2, 3, side, side, dtype=torch.uint8),),
            dynamo=True,
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("photos")},),
            verbose=False,
        )
    assert program is not None
    network = program.model_proto
    about = {
        "classes": json.dumps(loaded.classes, ensure_ascii=False),
        "label_names": json.dumps(loaded.label_names, ensure_ascii=False),
        "image_size": str(side),
        "resize": loaded.resize,
        "mlflow_model": loaded.identity,
        **({"unknown": "photos with known_score below 0"} if len(outputs) > 1 else {}),
    }
    onnx.helper.set_model_props(network, about)
    onnx.save_model(network, str(file))


def _outputs(loaded: LoadedModel) -> list[str]:
    detects = isinstance(_network(loaded), _Answers)
    return ["logits", "known_score"] if detects else ["logits"]


def _network(loaded: LoadedModel) -> torch.nn.Module:
    """The module whose outputs are written: with scores, if the model has a detector."""
    model = loaded.module
    if isinstance(model, ProductClassifier) and getattr(model, "detector", None) is not None:
        return _Answers(model)
    return model


class _Answers(torch.nn.Module):
    """A model's :meth:`ProductClassifier.answer` as the forward of a module."""

    def __init__(self, model: ProductClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Photos -> logits and scores."""
        logits, scores = self.model.answer(images)
        assert scores is not None
        return logits, scores


def _check(loaded: LoadedModel, file: Path) -> float:
    """Largest relative difference of the logits from torch's, for several numbers of photos."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    differences = []
    for count in _CHECKED_BATCHES:
        photos = _made_up_photos(count, loaded.image_size)
        found = session.run(_outputs(loaded), {"images": photos})
        with torch.inference_mode():
            answers = _network(loaded)(torch.from_numpy(photos))
        answers = answers if len(found) > 1 else (answers,)
        for mine, theirs in zip(found, answers, strict=True):
            # Relative to the largest value: an untrained network's logits are tiny.
            scale = float(np.abs(theirs.numpy()).max()) or 1.0
            differences.append(float(np.abs(mine - theirs.numpy()).max()) / scale)
    if not max(differences) <= _TOLERANCE:  # also true for NaN
        raise ModelError(
            f"The ONNX model gives other logits than torch (largest relative difference "
            f"{max(differences):.3g}); it was not written."
        )
    return max(differences)


def _made_up_photos(count: int, side: int) -> np.ndarray:
    """(count, 3, side, side) uint8, smooth patches of colour.

    Noise would cause activations so large that rounding errors alone show in the logits.
    """
    patches = torch.randint(0, 256, (count, 3, 6, 6), generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(patches.float(), size=(side, side), mode="bilinear")
    photos: np.ndarray = smooth.round().to(torch.uint8).numpy()
    return photos


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress the exporter's progress messages and libraries' deprecation warnings."""
    names = ("torch.onnx", "onnxscript", "onnx_ir")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
