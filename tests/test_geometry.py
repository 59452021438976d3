"""Resizing to a square: stretch or pad, the same in training, inference and serving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import draw_photo, write_csv
from PIL import Image

from shopee_mlflow import TrainConfig, TrainResult, build_model, train
from shopee_mlflow.data.images import pixels_from_array, read_pixels
from shopee_mlflow.data.pixel_cache import hash_files, load_pixels, pixel_key
from shopee_mlflow.errors import ImageError
from shopee_mlflow.tracking.registry import load_classifier
from shopee_mlflow.verbs.evaluate import evaluate
from shopee_mlflow.verbs.export import export
from shopee_mlflow.verbs.predict import predict

SIZE = 32
RED = (220, 30, 30)


def save(image: Image.Image, file: Path, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, exif=exif, quality=95)
    return file


def box_of(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not white."""
    rows, columns = np.nonzero((pixels < 250).any(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (80, 40, (0, 8, 32, 24)),
        (40, 80, (8, 0, 24, 32)),
        (48, 48, (0, 0, 32, 32)),
        (100, 75, (0, 4, 32, 28)),
        (16, 8, (0, 8, 32, 24)),
        (900, 1, (0, 15, 32, 16)),
    ],
)
def test_pad_keeps_proportions_and_centres_on_white(
    tmp_path: Path, width: int, height: int, box: tuple[int, int, int, int]
) -> None:
    file = tmp_path / "photo.png"
    Image.new("RGB", (width, height), RED).save(file)
    pixels = read_pixels(file, SIZE, "pad")
    assert pixels.shape == (SIZE, SIZE, 3)
    assert box_of(pixels) == box
    left, top, right, bottom = box
    assert (pixels[top:bottom, left:right] == RED).all()
    array = np.asarray(Image.open(file))
    np.testing.assert_array_equal(pixels_from_array(array, SIZE, "pad"), pixels)
    assert box_of(read_pixels(file, SIZE)) == (0, 0, SIZE, SIZE)


def test_a_rotated_photo_is_padded_as_people_see_it(tmp_path: Path) -> None:
    """23 of 32 rows: an odd margin, whose larger part is below, rotated or not."""
    photo = draw_photo(0, 1, 160).crop((0, 0, 160, 115))
    upright = save(photo, tmp_path / "upright.png")
    stored = save(photo.transpose(Image.Transpose.ROTATE_90), tmp_path / "stored.png", 6)
    pixels = read_pixels(upright, SIZE, "pad")
    assert box_of(pixels) == (0, 4, 32, 27)
    assert np.abs(read_pixels(stored, SIZE, "pad").astype(int) - pixels).max() <= 2


def test_large_jpegs_are_decoded_at_a_reduced_scale(tmp_path: Path) -> None:
    photo = draw_photo(1, 1, 1600).crop((0, 0, 1600, 700))
    small = read_pixels(save(photo, tmp_path / "photo.jpg"), SIZE, "pad")
    whole = pixels_from_array(np.asarray(photo), SIZE, "pad")
    assert box_of(small) == box_of(whole)
    assert np.abs(small.astype(int) - whole).mean() < 3


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("shape", [(160, 96), (97, 160), (64, 64), (20, 30)])
def test_a_tensor_is_resized_as_the_file_is(
    tmp_path: Path, resize: str, shape: tuple[int, int]
) -> None:
    photo = draw_photo(2, 3, 160).resize(shape)
    photo.save(tmp_path / "photo.png")
    model = build_model("cnn", ["a", "b"], SIZE, resize=resize)
    pixels = torch.from_numpy(read_pixels(tmp_path / "photo.png", SIZE, resize).copy())
    whole = torch.from_numpy(np.array(photo))
    for images in (whole, whole / 255):
        seen = model.preprocess(images.permute(2, 0, 1)[None]) * model.std + model.mean
        difference = seen[0].permute(1, 2, 0) * 255 - pixels
        assert difference.abs().max() < 3


def test_an_unknown_geometry_is_refused(tmp_path: Path) -> None:
    draw_photo(0, 0).save(tmp_path / "photo.png")
    with pytest.raises(ImageError, match="resize=crop: must be stretch or pad"):
        read_pixels(tmp_path / "photo.png", SIZE, "crop")
    with pytest.raises(ValueError, match="resize=crop: must be stretch or pad"):
        build_model("cnn", ["a"], SIZE, resize="crop")


def test_both_geometries_have_caches_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    draw_photo(0, 0, 80).crop((0, 0, 80, 40)).save(file)
    contents = hash_files([file])
    for _ in range(2):
        for resize in ("stretch", "pad"):
            pixels = load_pixels([file], contents, SIZE, resize=resize).values
            np.testing.assert_array_equal(pixels[0], read_pixels(file, SIZE, resize))
    assert pixel_key(contents, SIZE) == pixel_key(contents, SIZE, "stretch")


@dataclass(frozen=True)
class Padded:
    """A model that was trained on padded photos, and its catalogue of wide photos."""

    result: TrainResult
    shop: Path

    @property
    def uri(self) -> str:
        return f"models:/{self.result.model_id}"

    @property
    def photos(self) -> list[Path]:
        return sorted((self.shop / "train_images").iterdir())

    @property
    def pixels(self) -> np.ndarray:
        return np.stack([read_pixels(photo, SIZE, "pad") for photo in self.photos])

    @property
    def probabilities(self) -> np.ndarray:
        images = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)
        with torch.no_grad():
            best: np.ndarray = self.result.model(images).softmax(1).max(dim=1).values.numpy()
        return best


@pytest.fixture(scope="module", params=["pickle", "pt2"])
def padded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Padded]:
    base, place = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("padded")
    (place / "shop" / "train_images").mkdir(parents=True)
    rows = []
    for group in range(3):
        for number in range(8):
            photo = draw_photo(group, number, 160).crop((0, 0, 160, 60 + 5 * number))
            name = f"g{group}n{number}.png"
            photo.save(place / "shop" / "train_images" / name)
            rows.append((name, f"group{group}"))
    write_csv(place / "shop" / "train.csv", ("image", "label_group"), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOPEE_MLFLOW_CACHE", str(base / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
        patch.chdir(place)
        config = TrainConfig(
            data=str(place / "shop"),
            model="cnn",
            image_size=SIZE,
            resize="pad",
            epochs=2,
            batch_size=8,
            serialization=request.param,
        )
        yield Padded(train(config), place / "shop")


def test_training_sees_padded_photos(padded: Padded) -> None:
    dataset = padded.result.dataset
    by_name = {file.name: file for file in padded.photos}
    for name, pixels in zip(dataset.frame["image"], dataset.pixels, strict=True):
        np.testing.assert_array_equal(pixels, read_pixels(by_name[name], SIZE, "pad"))
    assert padded.result.model.resize == "pad"
    assert mlflow.get_run(padded.result.run_id).data.params["resize"] == "pad"


def test_evaluate_predict_and_pyfunc_pad_too(padded: Padded, tmp_path: Path) -> None:
    assert load_classifier(padded.uri).resize == "pad"
    scores = evaluate(padded.uri, run=padded.result.run_id).scores
    assert scores["eval_accuracy"] == padded.result.scores["test_accuracy"]
    assert scores["eval_loss"] == pytest.approx(padded.result.scores["test_loss"], rel=1e-5)

    predict(padded.uri, str(padded.shop / "train_images"), tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(table["probability"], padded.probabilities, atol=1e-5)

    paths = [str(photo) for photo in padded.photos]
    arrays = [np.asarray(Image.open(photo)) for photo in padded.photos]
    model = mlflow.pyfunc.load_model(padded.uri)
    for forms in (paths, arrays):
        answers = model.predict(pd.DataFrame({"image": pd.Series(forms, dtype=object)}))
        np.testing.assert_allclose(answers["probability"], padded.probabilities, atol=1e-5)


def test_onnx_names_the_geometry(padded: Padded, tmp_path: Path) -> None:
    export(padded.uri, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert session.get_modelmeta().custom_metadata_map["resize"] == "pad"
    photos = np.ascontiguousarray(padded.pixels.transpose(0, 3, 1, 2))
    (logits,) = session.run(None, {"images": photos})
    probabilities = torch.from_numpy(logits).softmax(1).max(dim=1).values
    np.testing.assert_allclose(probabilities, padded.probabilities, atol=1e-4)


def test_a_model_logged_before_there_was_a_choice_stretches(padded: Padded, tmp_path: Path) -> None:
    downloaded = mlflow.artifacts.download_artifacts(padded.uri)
    folder = Path(shutil.copytree(downloaded, tmp_path / "older"))
    file = folder / "data" / "product_classifier.json"
    about = json.loads(file.read_text())
    del about["resize"]
    file.write_text(json.dumps(about))
    assert load_classifier(str(folder)).resize == "stretch"
