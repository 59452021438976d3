"""Resizing to a square: stretch, pad or crop, the same in training, inference and serving."""

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
from PIL import Image, ImageOps

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


def test_crop_takes_the_centre(tmp_path: Path) -> None:
    """Red, with a green stripe on each side that is cut off."""
    for width, height in ((80, 40), (40, 80), (99, 64), (16, 9)):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        whole = Image.new("RGB", (width, height), (20, 200, 20))
        whole.paste(RED, (left, top, left + side, top + side))
        whole.save(tmp_path / "photo.png")
        pixels = read_pixels(tmp_path / "photo.png", SIZE, "crop")
        assert pixels.shape == (SIZE, SIZE, 3)
        assert (pixels == RED).all()
        np.testing.assert_array_equal(pixels_from_array(np.asarray(whole), SIZE, "crop"), pixels)
        seen = read_pixels(tmp_path / "photo.png", SIZE)
        assert (seen != RED).any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_cropped_as_people_see_it(tmp_path: Path, orientation: int) -> None:
    photo = draw_photo(0, 1, 160).crop((0, 0, 160, 97))
    save(photo, tmp_path / "stored.png", orientation)
    upright = ImageOps.exif_transpose(Image.open(tmp_path / "stored.png"))
    expected = pixels_from_array(np.asarray(upright), SIZE, "crop")
    np.testing.assert_array_equal(read_pixels(tmp_path / "stored.png", SIZE, "crop"), expected)


def test_a_line_of_pixels_is_cropped_within_the_memory_of_a_photo(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1), RED).save(tmp_path / "line.png")
    assert (read_pixels(tmp_path / "line.png", SIZE, "crop") == RED).all()


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


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
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
    with pytest.raises(ImageError, match="resize=fit: must be stretch, pad or crop"):
        read_pixels(tmp_path / "photo.png", SIZE, "fit")
    with pytest.raises(ValueError, match="resize=fit: must be stretch, pad or crop"):
        build_model("cnn", ["a"], SIZE, resize="fit")


def test_all_geometries_have_caches_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    draw_photo(0, 0, 80).crop((0, 0, 80, 40)).save(file)
    contents = hash_files([file])
    for _ in range(2):
        for resize in ("stretch", "pad", "crop"):
            pixels = load_pixels([file], contents, SIZE, resize=resize).values
            np.testing.assert_array_equal(pixels[0], read_pixels(file, SIZE, resize))
    assert pixel_key(contents, SIZE) == pixel_key(contents, SIZE, "stretch")


@dataclass(frozen=True)
class Squared:
    """A model that was trained on padded or cropped photos, and its catalogue of wide photos."""

    resize: str
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
        return np.stack([read_pixels(photo, SIZE, self.resize) for photo in self.photos])

    @property
    def probabilities(self) -> np.ndarray:
        images = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)
        with torch.no_grad():
            best: np.ndarray = self.result.model(images).softmax(1).max(dim=1).values.numpy()
        return best


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((kind, how), id=f"{kind}-{how}", marks=marks)
        for kind, marks in (("pickle", ()), ("pt2", pytest.mark.slow))
        for how in ("pad", "crop")
    ],
)
def squared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Squared]:
    serialization, resize = request.param
    base, place = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("squared")
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
            resize=resize,
            epochs=2,
            batch_size=8,
            serialization=serialization,
        )
        yield Squared(resize, train(config), place / "shop")


def test_training_sees_such_photos(squared: Squared) -> None:
    dataset = squared.result.dataset
    by_name = {file.name: file for file in squared.photos}
    for name, pixels in zip(dataset.frame["image"], dataset.pixels, strict=True):
        np.testing.assert_array_equal(pixels, read_pixels(by_name[name], SIZE, squared.resize))
    assert squared.result.model.resize == squared.resize
    assert mlflow.get_run(squared.result.run_id).data.params["resize"] == squared.resize


@pytest.mark.slow
def test_evaluate_predict_and_pyfunc_do_the_same(squared: Squared, tmp_path: Path) -> None:
    assert load_classifier(squared.uri).resize == squared.resize
    scores = evaluate(squared.uri, run=squared.result.run_id).scores
    assert scores["eval_accuracy"] == squared.result.scores["test_accuracy"]
    assert scores["eval_loss"] == pytest.approx(squared.result.scores["test_loss"], rel=1e-5)

    predict(squared.uri, str(squared.shop / "train_images"), tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(table["probability"], squared.probabilities, atol=1e-5)

    paths = [str(photo) for photo in squared.photos]
    arrays = [np.asarray(Image.open(photo)) for photo in squared.photos]
    model = mlflow.pyfunc.load_model(squared.uri)
    for forms in (paths, arrays):
        answers = model.predict(pd.DataFrame({"image": pd.Series(forms, dtype=object)}))
        np.testing.assert_allclose(answers["probability"], squared.probabilities, atol=1e-5)


@pytest.mark.slow
def test_onnx_names_the_geometry(squared: Squared, tmp_path: Path) -> None:
    export(squared.uri, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    assert session.get_modelmeta().custom_metadata_map["resize"] == squared.resize
    photos = np.ascontiguousarray(squared.pixels.transpose(0, 3, 1, 2))
    (logits,) = session.run(None, {"images": photos})
    probabilities = torch.from_numpy(logits).softmax(1).max(dim=1).values
    np.testing.assert_allclose(probabilities, squared.probabilities, atol=1e-4)


def test_a_model_logged_before_there_was_a_choice_stretches(
    squared: Squared, tmp_path: Path
) -> None:
    downloaded = mlflow.artifacts.download_artifacts(squared.uri)
    folder = Path(shutil.copytree(downloaded, tmp_path / "older"))
    file = folder / "data" / "product_classifier.json"
    about = json.loads(file.read_text())
    del about["resize"]
    file.write_text(json.dumps(about))
    assert load_classifier(str(folder)).resize == "stretch"
