"""Strangers: photos of no label group are told, measured, and answered as unknown everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import MakeCatalog, draw_photo, write_csv
from html_page import read_page
from mlflow.exceptions import MlflowException
from torch import nn

from shopee_mlflow import Classifier, TrainConfig, cross_validate, train
from shopee_mlflow.config import CrossValidateConfig, resolve
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.modeling.models import ProductClassifier, StrangerDetector
from shopee_mlflow.modeling.strangers import (
    Embedded,
    StrangerResult,
    detect_strangers,
    reference_rows,
)
from shopee_mlflow.training.pooled_strangers import pool_strangers
from shopee_mlflow.verbs.export import export
from shopee_mlflow.verbs.predict import predict
from shopee_mlflow.verbs.train import TrainResult

OPTIONS = {"model": "cnn", "image_size": 32, "epochs": 2, "batch_size": 16, "largest_groups": 3}


def embedded(directions: np.ndarray, labels: np.ndarray | None = None) -> Embedded:
    values = np.asarray(directions, np.float32)
    known = np.zeros(0, np.int64) if labels is None else labels
    logits = values[:, :2] if labels is None else np.eye(2, dtype=np.float32)[known] * 3
    return Embedded(values, logits, known)


def around(axis: int, photos: int, seed: int) -> np.ndarray:
    """Embeddings near an axis of four."""
    noise = np.random.default_rng(seed).normal(0, 0.15, (photos, 4))
    return noise + np.eye(4)[axis]


def known(photos: int, seed: int) -> Embedded:
    """Two classes of ``photos`` each, near the first two axes."""
    values = np.concatenate([around(0, photos, seed), around(1, photos, seed + 50)])
    return embedded(values, np.repeat([0, 1], photos))


def detect(strangers: int = 40, groups: int = 4, val: int = 30, **given: Any) -> StrangerResult:
    names = [f"other{i % max(groups, 1)}" for i in range(strangers)]
    frame = pd.DataFrame({"image": names, "label_group": names}, dtype=str)
    # Between the known axes and an axis of their own.
    others = around(2, strangers, 7) + 0.5 * np.eye(4)[0]
    classes = given.get("classes", ["a", "b"])
    parts = known(60, 1), known(val, 2), known(50, 3), embedded(others.reshape(-1, 4))
    return detect_strangers(*parts, frame, classes, seed=0)


def test_the_threshold_keeps_95_percent_of_val_and_refuses_strangers() -> None:
    found = detect()
    assert found.facts["kept_val"] == pytest.approx(0.95, abs=0.02)
    assert found.facts["kept_test"] > 0.85
    assert found.facts["strangers_accepted"] < 0.05
    assert found.facts["auroc"] > 0.97
    assert found.facts["photos_measured"] == 20
    assert found.photos["use"].value_counts().to_dict() == {"reference": 20, "measured": 20}
    groups = found.photos.groupby("label_group")["use"].nunique()
    assert (groups == 1).all()
    curve = found.curve
    assert curve["known_kept"].is_monotonic_decreasing
    assert curve["strangers_accepted"].is_monotonic_decreasing
    assert "20 of them are its examples" in found.words[0]
    assert "of 20 strangers get a label group" in found.words[1]


@pytest.mark.parametrize(
    ("strangers", "groups", "words"),
    [(0, 0, "no label group is left out"), (9, 1, "9 photos of one left-out label group")],
)
def test_without_two_groups_of_strangers_val_alone_decides(
    strangers: int, groups: int, words: str
) -> None:
    found = detect(strangers, groups)
    assert found.detector is not None
    assert len(found.detector.strangers) == 0
    assert found.facts.keys() == {"kept_val", "kept_test"}
    assert words in found.words[0]
    assert "val alone" in found.words[0]
    assert "strangers_accepted" not in found.curve


def test_few_strangers_are_said_to_be_few() -> None:
    assert (
        "of 2 strangers (too few photos for a precise share) get a label group"
        in detect(4, 4).words[1]
    )


def test_too_few_validation_photos_are_said() -> None:
    found = detect(val=9)
    assert found.detector is None
    assert "a threshold needs 20 validation photos, and there are 18" in found.words[0]


def test_a_label_group_named_unknown_is_said() -> None:
    found = detect(classes=["a", "unknown"])
    assert found.detector is None
    assert "a label group is named unknown" in found.words[0]


def test_the_references_are_bounded_and_of_all_groups() -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 2])
    rows = reference_rows(labels, most=300)
    assert np.bincount(labels[rows]).tolist() == [100, 90, 2]
    assert len(reference_rows(labels)) == len(labels)


def test_the_score_is_the_difference_of_the_nearest_similarities() -> None:
    detector = StrangerDetector(torch.eye(3)[:2], torch.eye(3)[2:], threshold=0.25)
    photos = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 5.0], [3.0, 0.0, 4.0]])
    torch.testing.assert_close(detector(photos), torch.tensor([0.75, -1.25, -0.45]))
    assert detector.state_dict() == {}


def test_the_three_nearest_strangers_count_by_their_mean() -> None:
    strangers = torch.tensor([[0.0, 1.0], [0.6, 0.8], [0.8, 0.6], [-1.0, 0.0]])
    photo = torch.tensor([[0.0, 2.0]])
    known = torch.tensor([[1.0, 0.0]])
    for count, mean in ((1, 1.0), (2, 0.9), (4, 0.8)):
        found = StrangerDetector(known, strangers[:count])(photo)
        torch.testing.assert_close(found, torch.tensor([-mean]), atol=1e-3, rtol=0)
    # A detector of an earlier version counts the nearest one.
    earlier = StrangerDetector(known, strangers)
    del earlier.neighbours
    torch.testing.assert_close(earlier(photo), torch.tensor([-1.0]))


def small_model() -> ProductClassifier:
    return ProductClassifier(nn.Flatten(), nn.Linear(12, 2), ["a", "b"], 2).eval()


def test_a_model_of_an_earlier_version_has_no_score() -> None:
    model = small_model()
    del model.detector
    logits, scores = model.answer(torch.rand(3, 3, 2, 2))
    assert logits.shape == (3, 2)
    assert scores is None


def test_weights_are_the_same_with_a_detector() -> None:
    model = small_model()
    names = set(model.state_dict())
    photos = torch.rand(4, 3, 2, 2)
    before = model(photos)
    model.detector = StrangerDetector(torch.rand(5, 12), torch.rand(2, 12))
    assert set(model.state_dict()) == names
    assert torch.equal(model(photos), before)
    assert torch.equal(model.answer(photos)[0], before)


def fold_scores(known: list[float], others: list[float], **facts: float) -> StrangerResult:
    facts = {"by_probability_accepted": 0.8, "by_probability_auroc": 0.6, **facts}
    words = ["strangers: 4 photos of 2 left-out label groups", "a share"]
    scores = np.float32(known), np.float32(others)
    return StrangerResult(None, words, facts, known_scores=scores[0], stranger_scores=scores[1])


def test_the_folds_are_pooled_to_one_curve() -> None:
    folds = [
        fold_scores([0.4, -0.1], [0.2, -0.3], by_probability_accepted=0.6),
        fold_scores([0.3, 0.1], [-0.2, -0.4]),
    ]
    right = np.array([True, True, False, False])
    found = pool_strangers(folds, [np.array([3, 0]), np.array([1, 2])], right)
    assert found.curve["known_score"].tolist() == pytest.approx([-0.1, 0.1, 0.3, 0.4])
    assert found.curve["known_kept"].tolist() == [1, 0.75, 0.5, 0.25]
    assert found.curve["accuracy"].tolist() == pytest.approx([0.5, 1 / 3, 0.5, 0])
    assert found.curve["strangers_accepted"].tolist() == [0.25, 0.25, 0, 0]
    assert found.facts["auroc"] == 14 / 16
    assert found.facts["kept_test"] == 0.75
    assert found.scores() == {"strangers_accepted": 0.25}
    assert found.facts["by_probability_accepted"] == pytest.approx(0.7)
    few = "25.0% of the photos of left-out label groups (too few for a precise share) get a label"
    assert few in found.words[1]
    assert (
        "2 photos of left-out label groups are scored by the model of each fold" in found.words[0]
    )


def test_folds_without_strangers_say_why() -> None:
    none = "strangers: no label group is left out, so the threshold follows from val alone"
    alone = StrangerResult(words=[none], known_scores=np.float32([0.1, -0.2]))
    found = pool_strangers([alone], [np.array([0, 1])], np.array([True, False]))
    assert found.words == [none]
    assert found.scores() == {}
    assert found.curve["accuracy"].tolist() == [0.5, 1]
    few = StrangerResult(words=["9 validation photos are too few"])
    found = pool_strangers([alone, few], [np.array([0, 1]), np.array([2])], np.ones(3, bool))
    assert (found.words, len(found.curve)) == (few.words, 0)
    assert pool_strangers([StrangerResult()], [np.array([0])], np.ones(1, bool)).words == []


# --- a whole training ---


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    """Three groups of 110 photos of one colour each, and four groups of six other photos."""
    base = tmp_path_factory.mktemp("strangers")
    folder = base / "shop" / "train_images"
    folder.mkdir(parents=True)
    rows = []
    for group, count in enumerate([110] * 3 + [6] * 4):
        for number in range(count):
            image = f"g{group}n{number:02}.png"
            draw_photo(group, number).save(folder / image)
            rows.append((f"p{group}_{number:02}", image, f"title {group}", f"group{group}"))
    write_csv(base / "shop/train.csv", ("posting_id", "image", "title", "label_group"), rows)
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.getbasetemp()
        patch.setenv("SHOPEE_MLFLOW_CACHE", str(root / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.chdir(base)
        result = train(resolve(TrainConfig, {**OPTIONS, "data": str(base / "shop")}))
    return result, folder


@pytest.fixture
def run(trained: tuple[TrainResult, Path]) -> TrainResult:
    return trained[0]


@pytest.fixture
def photos(trained: tuple[TrainResult, Path]) -> list[str]:
    """A known photo that is kept, and a stranger, an inverted photo of noise, that is not."""
    run, folder = trained
    files = [str(file) for file in sorted(folder.iterdir())]
    table = Classifier.load(run.uri).predict(files)
    kept = table.loc[table["known_score"] > 0.01, "image"].iloc[0]
    refused = table.loc[table["known_score"] < -0.01, "image"].iloc[-1]
    return [kept, refused]


def test_a_run_logs_the_measurement(run: TrainResult) -> None:
    logged = mlflow.get_run(run.run_id)
    facts = json.loads(mlflow.artifacts.load_text(f"runs:/{run.run_id}/test/strangers.json"))
    assert facts["photos_measured"] == 12
    assert logged.data.metrics["strangers_accepted"] == facts["strangers_accepted"]
    assert len(logged.data.metrics) <= 20
    table = mlflow.artifacts.load_text(f"runs:/{run.run_id}/test/strangers.csv").splitlines()
    assert table[0] == "image,label_group,use,known_score,nearest,probability"
    assert len(table) == 25
    assert "known_kept" in mlflow.artifacts.load_text(f"runs:/{run.run_id}/test/stranger_curve.csv")
    page = read_page(mlflow.artifacts.load_text(f"runs:/{run.run_id}/report.html"))
    assert "24 photos show 4 label groups that the model does not learn" in page.text


def test_python_answers_unknown(run: TrainResult, photos: list[str]) -> None:
    model = Classifier.load(run.uri)
    table = model.predict(photos, top_k=2)
    assert table["label_group"].iloc[0] in model.classes
    assert table["label_group"].iloc[1] == table["label_name"].iloc[1] == "unknown"
    assert set(table["label_group_2"]) <= set(model.classes)
    named = model.predict(photos, unknown="none")
    assert set(named["label_group"]) <= set(model.classes)
    assert named["known_score"].tolist() == table["known_score"].tolist()
    with pytest.raises(ConfigError, match="unknown=maybe: must be auto or none"):
        model.predict(photos, unknown="maybe")


def test_pyfunc_answers_unknown(run: TrainResult, photos: list[str]) -> None:
    model = mlflow.pyfunc.load_model(run.uri)
    frame = pd.DataFrame({"image": photos})
    table = model.predict(frame)
    assert table["label_group"].iloc[1] == "unknown"
    assert (table["known_score"] < 0).tolist() == [False, True]
    named = model.predict(frame, params={"unknown": "none"})
    assert "unknown" not in set(named["label_group"])
    assert "known_score" in [column.name for column in model.metadata.get_output_schema()]
    with pytest.raises(MlflowException, match="unknown=x: must be auto or none"):
        model.predict(frame, params={"unknown": "x"})
    # A client may send null for what it leaves to the model.
    nothing = {"unknown": None, "top_k": None}
    pd.testing.assert_frame_equal(model.predict(frame, params=nothing), table)


def test_predict_answers_unknown(run: TrainResult, photos: list[str], tmp_path: Path) -> None:
    names = [*(Path(photo).name for photo in photos), "missing.png"]
    source = tmp_path / "source.csv"
    source.write_text("image\n" + "\n".join(names) + "\n")
    images = str(Path(photos[0]).parent)
    assert predict(run.uri, str(source), tmp_path / "a.csv", images=images) == 1
    table = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert list(table)[-2:] == ["known_score", "error"]
    assert table["label_group"].iloc[1] == "unknown"
    assert table["known_score"].iloc[2] == ""
    assert table["error"].iloc[2]
    predict(run.uri, str(source), tmp_path / "b.csv", images=images, unknown="none")
    assert "unknown" not in set(pd.read_csv(tmp_path / "b.csv")["label_group"])


@pytest.mark.slow
def test_onnx_has_the_score(run: TrainResult, tmp_path: Path) -> None:
    file = export(run.uri, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shown = np.ascontiguousarray(run.dataset.photos(np.arange(5)).transpose(0, 3, 1, 2))
    logits, scores = session.run(["logits", "known_score"], {"images": shown})
    with torch.inference_mode():
        expected = run.model.cpu().answer(torch.from_numpy(shown))
    np.testing.assert_allclose(logits, expected[0], atol=1e-3)
    assert expected[1] is not None
    np.testing.assert_allclose(scores, expected[1], atol=1e-3)
    assert "known_score below 0" in session.get_modelmeta().custom_metadata_map["unknown"]


@pytest.mark.slow
def test_unknown_none_trains_a_model_that_always_answers(
    trained: tuple[TrainResult, Path],
) -> None:
    data = trained[1].parent
    result = train(resolve(TrainConfig, {**OPTIONS, "data": str(data), "unknown": "none"}))
    assert result.model.detector is None
    assert "strangers_accepted" not in result.scores
    table = mlflow.pyfunc.load_model(result.uri).predict(
        pd.DataFrame({"image": [str(file) for file in sorted(trained[1].iterdir())[-3:]]})
    )
    assert "known_score" not in table
    assert "unknown" not in set(table["label_group"])


def test_a_stranger_is_no_photo_of_a_kept_group(make_catalog: MakeCatalog) -> None:
    folder = make_catalog(groups=5, each=6)
    table = folder / "train.csv"
    # One file of a left-out group also stands under a kept one, and a label looks like a kept one.
    table.write_text(
        table.read_text() + "x,g4n0.png,t,group0\ny,g3n1.png,t,Group1\nz,lost.png,t,group5\n"
    )
    data = load_dataset(folder, largest_groups=3, image_size=32)
    left = set(data.left_out["image"])
    assert set(data.classes) == {"group0", "group1", "group2"}
    assert left == {f"g3n{n}.png" for n in (0, 2, 3, 4, 5)} | {f"g4n{n}.png" for n in range(1, 6)}


@pytest.mark.slow
def test_a_program_says_that_it_names_a_group_always(
    trained: tuple[TrainResult, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {**OPTIONS, "data": str(trained[1].parent), "serialization": "pt2"}
    result = train(resolve(TrainConfig, options))
    assert "strangers are not refused: serialization=pt2" in capsys.readouterr().out
    assert "known_score" not in Classifier.load(result.uri).predict(str(trained[1]))


@pytest.mark.drawn
@pytest.mark.slow
def test_the_final_model_of_a_cross_validation_refuses_strangers(
    trained: tuple[TrainResult, Path],
) -> None:
    options = {**OPTIONS, "data": str(trained[1].parent), "folds": 3, "epochs": 1}
    first = cross_validate(resolve(CrossValidateConfig, options))
    measured = json.loads(mlflow.artifacts.load_text(f"runs:/{first.run_id}/cv/strangers.json"))
    assert measured["known_photos"] == len(first.predictions)
    assert measured["photos_measured"] == 12
    assert first.scores["cv_strangers_accepted"] == measured["strangers_accepted"]
    curve = mlflow.artifacts.load_text(f"runs:/{first.run_id}/cv/stranger_curve.csv")
    assert curve.splitlines()[0] == "known_score,known_kept,accuracy,strangers_accepted"
    page = read_page(mlflow.artifacts.load_text(f"runs:/{first.run_id}/report.html"))
    assert "12 photos of left-out label groups are scored by the model of each fold" in page.text
    assert "share of strangers accepted" in " ".join(picture["alt"] for picture in page.pictures)

    options |= {"resume": first.run_id, "refit": "true"}
    result = cross_validate(resolve(CrossValidateConfig, options))
    again = mlflow.artifacts.load_text(f"runs:/{result.run_id}/cv/strangers.json")
    assert json.loads(again) == measured
    assert mlflow.artifacts.load_text(f"runs:/{result.run_id}/cv/stranger_curve.csv") == curve
    assert result.model is not None
    assert result.model.detector is not None
    assert result.model.temperature != 1
    assert len(result.model.detector.known) == len(result.predictions)
    assert 0 <= result.scores["cv_strangers_accepted"] <= 1
    facts = json.loads(mlflow.artifacts.load_text(f"runs:/{result.run_id}/cv/calibration.json"))
    assert facts["temperature"] == pytest.approx(result.model.temperature)
