"""Export: the ONNX file has the logits of torch and metadata, and is written atomically."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_run import SIZE, SmallRun, small_run

from shopee_mlflow import cli
from shopee_mlflow.data.images import read_pixels
from shopee_mlflow.errors import ModelError
from shopee_mlflow.verbs import export as verb
from shopee_mlflow.verbs.export import export


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


def code(*arguments: str) -> int:
    try:
        cli.main(["export", *arguments])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.mark.parametrize("serialization", ["pickle", pytest.param("pt2", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_the_file_answers_like_torch(
    serialization: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = small_run(tmp_path_factory.getbasetemp(), serialization)
    out = tmp_path / "new" / "shop.onnx"
    capfd.readouterr()
    assert code("--model", run.uri, "--out", str(out)) == 0
    told = capfd.readouterr()
    assert "3 label groups; largest relative difference from torch" in told.out
    assert len(told.out.splitlines()) == 2
    assert told.out.startswith(f"loading torch and MLflow, then the model {run.uri}\n")
    assert told.err == ""
    assert [file.name for file in out.parent.iterdir()] == ["shop.onnx"]

    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape[1:] == [3, SIZE, SIZE]
    assert [output.name for output in session.get_outputs()] == ["logits"]
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == run.result.dataset.classes
    assert about["image_size"] == str(SIZE)
    for count in (1, 2, 7):
        pixels = np.stack([read_pixels(photo, SIZE) for photo in run.photos[:count]])
        photos = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        (logits,) = session.run(None, {"images": photos})
        with torch.no_grad():
            expected = run.result.model(torch.from_numpy(photos)).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_put_in_place(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("the one before")
    monkeypatch.setattr(verb, "_TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="other logits than torch"):
        export(run.uri, out)
    assert out.read_text() == "the one before"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_packages_are_named_with_the_command(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(verb, "_NEEDED", ("onnx", "no_such_package"))
    assert code("--model", run.uri, "--out", str(tmp_path / "m.onnx")) == 2
    error = capsys.readouterr().err
    assert "export needs no_such_package; install with: pip install no_such_package" in error


def test_mistakes_end_with_2(
    run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, out, message in (
        ("models:/none@champion", "m.onnx", "model=models:/none@champion: cannot be loaded"),
        (run.uri, str(tmp_path), "is a folder; name a file"),
        (run.uri, f"{run.photos[0]}/m.onnx", "cannot be written"),
    ):
        assert code("--model", model, "--out", out) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
