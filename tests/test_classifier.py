"""Classifier: a logged model in Python, asked with photos in every form."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from small_run import SIZE, SmallRun, odd_photos, small_run

from shopee_mlflow import Classifier
from shopee_mlflow.data.images import read_pixels
from shopee_mlflow.errors import (
    CatalogError,
    ConfigError,
    ImageError,
    ModelError,
    TrackingError,
)
from shopee_mlflow.tracking.photo_classifier import PhotoClassifier
from shopee_mlflow.verbs.predict import predict

COLUMNS = ["image", "label_group", "label_name", "probability", "error"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def classifier(run: SmallRun) -> Classifier:
    return Classifier.load(run.uri)


def tensor(photos: list[Path]) -> torch.Tensor:
    pixels = np.stack([read_pixels(photo, SIZE) for photo in photos])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_every_form_of_one_photo_gives_the_models_answer(
    run: SmallRun, classifier: Classifier
) -> None:
    photo = run.photos[5]
    image = Image.open(photo)
    pixels = np.asarray(image)
    with torch.no_grad():
        shares = run.result.model(tensor([photo])).softmax(1)[0]
    forms: list[Any] = [photo, str(photo), image, pixels, pixels[None], photo.read_bytes()]
    forms += [[photo], (image,), pd.Series([str(photo)]), np.array([str(photo)])]
    forms.append(pd.DataFrame({"image": [pixels]}))
    for form in forms:
        answer = classifier.predict(form)
        assert list(answer.columns) == COLUMNS
        (row,) = answer.to_dict("records")
        assert row["label_group"] == classifier.classes[int(shares.argmax())], type(form)
        assert row["probability"] == pytest.approx(float(shares.max()), abs=1e-5)
        assert row["error"] is None
    assert answer["probability"].dtype == float


def test_a_folder_gives_what_the_command_writes(
    run: SmallRun, classifier: Classifier, tmp_path: Path
) -> None:
    folder = run.shop / "train_images"
    answer = classifier.predict(folder, top_k=2)
    predict(run.uri, str(folder), tmp_path / "out.csv", top_k=2)
    written = pd.read_csv(tmp_path / "out.csv")
    assert list(answer.columns) == list(written.columns)
    assert answer["image"].tolist() == [photo.name for photo in run.photos]
    for column in ("label_group_2", "label_name", "label_name_2"):
        assert answer[column].tolist() == written[column].tolist(), column
    np.testing.assert_allclose(answer["probability_2"], written["probability_2"], atol=1e-6)
    assert (answer["probability"] >= answer["probability_2"]).all()


def test_names_and_index_are_those_of_the_caller(run: SmallRun, classifier: Classifier) -> None:
    names = [photo.name for photo in run.photos[:3]]
    frame = pd.DataFrame({"title": list("abc"), "image": names}, index=[7, 3, 5])
    answer = classifier.predict(frame, images=run.shop / "train_images")
    assert answer.index.tolist() == [7, 3, 5]
    assert answer["image"].tolist() == names
    assert answer["error"].isna().all()
    images = [Image.open(run.photos[0]), np.zeros((9, 7, 3), np.uint8)]
    assert classifier.predict(images)["image"].tolist() == [str(run.photos[0]), None]
    series = classifier.predict(frame["image"], images=str(run.shop / "train_images"))
    pd.testing.assert_frame_equal(series, answer)


def test_a_photo_of_several_that_cannot_be_read_has_the_reason_in_its_row(
    run: SmallRun, classifier: Classifier, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(run.photos[0].read_bytes()[:300])
    answer = classifier.predict([torn, run.photos[0], "nowhere.jpg"], top_k=9)
    assert answer["label_group"].isna().tolist() == [True, False, True]
    assert answer["error"].notna().tolist() == [True, False, True]
    assert "no such file" in answer["error"][2]
    assert "label_group_3" in answer
    assert "label_group_4" not in answer
    with pytest.raises(ImageError, match=re.escape(str(torn))):
        classifier.predict(torn)
    with pytest.raises(ImageError, match=re.escape(str(torn))):
        classifier.embed([run.photos[0], torn])
    with pytest.raises(ImageError, match="photo 1: an array must have the shape"):
        classifier.embed([run.photos[0], np.zeros((2, 2, 9), np.uint8)])


def test_what_is_no_photo_is_refused_in_words(run: SmallRun, classifier: Classifier) -> None:
    with pytest.raises(CatalogError, match=r"nowhere: no such photo, folder or table"):
        classifier.predict("nowhere")
    with pytest.raises(CatalogError, match="has no column image. Its columns: photo"):
        classifier.predict(pd.DataFrame({"photo": ["a.jpg"]}))
    with pytest.raises(CatalogError, match="images=nowhere: no such folder"):
        classifier.predict(["a.jpg"], images="nowhere")
    with pytest.raises(ImageError, match="an image is a path, bytes, .*not tensor"):
        classifier.predict(torch.zeros(3, 8, 8))
    with pytest.raises(ConfigError, match="top_k=0: must be at least 1"):
        classifier.predict(run.photos[0], top_k=0)


def test_no_photos_give_no_rows(classifier: Classifier) -> None:
    answer = classifier.predict([])
    assert list(answer.columns) == COLUMNS
    assert len(answer) == 0
    assert classifier.embed([]).shape == (0, 512)


def test_embeddings_are_the_models(run: SmallRun, classifier: Classifier) -> None:
    embeddings = classifier.embed(run.photos[:3])
    assert embeddings.shape == (3, 512)
    assert embeddings.dtype == np.float32
    with torch.no_grad():
        expected = run.result.model.embed(tensor(run.photos[:3])).numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_an_image_is_seen_as_its_file_is(classifier: Classifier, tmp_path: Path) -> None:
    """Rotated, CMYK and transparent photos, opened by Pillow."""
    photos = odd_photos(tmp_path / "odd")
    opened = classifier.predict([Image.open(photo) for photo in photos])
    read = classifier.predict(photos)
    assert opened["label_group"].tolist() == read["label_group"].tolist()
    np.testing.assert_allclose(opened["probability"], read["probability"], atol=5e-3)


@pytest.mark.slow
def test_it_loads_by_run_and_from_a_folder(run: SmallRun, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts(run.uri), folder)
    first = Classifier.load(run.result.uri).predict(run.photos[0])
    for uri in (f"runs:/{run.result.run_id}/model", folder, "model"):
        pd.testing.assert_frame_equal(Classifier.load(uri).predict(run.photos[0]), first)
    with pytest.raises(TrackingError, match="model=models:/nothing@champion"):
        Classifier.load("models:/nothing@champion")


def test_its_repr_fits_a_line(run: SmallRun, classifier: Classifier) -> None:
    assert repr(classifier) == f"Classifier('{run.uri}', cnn, 3 classes, {SIZE} px)"


@pytest.mark.slow
def test_a_program_has_predictions_and_no_embeddings(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    program = small_run(tmp_path_factory.getbasetemp(), "pt2")
    classifier = Classifier.load(program.uri)
    assert "program" in repr(classifier)
    assert classifier.predict(program.photos[:2])["error"].isna().all()
    with pytest.raises(ModelError, match="Embeddings need a model saved with serialization=pickle"):
        classifier.embed(program.photos[:2])
    with pytest.raises(ConfigError, match="device=cuda: .* runs on the CPU only"):
        Classifier.load(program.uri, device="cuda")


def test_the_python_function_takes_a_series_and_a_list(run: SmallRun) -> None:
    paths = [str(photo) for photo in run.photos[:2]]
    function = mlflow.pyfunc.load_model(run.uri)
    expected = function.predict(pd.DataFrame({"image": paths}))
    forms: list[Any] = [pd.Series(paths, name="image"), {"image": paths}]
    forms.append([{"image": path} for path in paths])
    for form in forms:
        pd.testing.assert_frame_equal(function.predict(form), expected)
    names = run.result.model.label_names
    direct = PhotoClassifier(run.result.model, run.result.dataset.classes, SIZE, label_names=names)
    for photos in (paths, tuple(paths), pd.Series(paths, name="file")):
        pd.testing.assert_frame_equal(direct.predict(photos), expected)
