"""A logged model, loaded as a module, as a python_function and as a program."""

from __future__ import annotations

import base64
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import draw_photo
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import invocations
from PIL import Image
from small_run import SIZE, SmallRun, as_base64, odd_photos, small_run

from shopee_mlflow.data.images import read_pixels
from shopee_mlflow.data.pixel_cache import hash_files, load_pixels
from shopee_mlflow.modeling.inference import Predictor
from shopee_mlflow.modeling.metrics import softmax
from shopee_mlflow.tracking.flavor import save_model
from shopee_mlflow.tracking.photo_classifier import PhotoClassifier
from shopee_mlflow.verbs.predict import predict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp(), "pt2")


def tensor(photos: list[Path]) -> torch.Tensor:
    pixels = np.stack([read_pixels(photo, SIZE) for photo in photos])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def module_of(uri: str) -> Any:
    return mlflow.pytorch.load_model(uri)


def ask(uri: str, *photos: Any, **params: Any) -> pd.DataFrame:
    model = mlflow.pyfunc.load_model(uri)
    return model.predict(pd.DataFrame({"image": list(photos)}, dtype=object), params=params or None)


def folder_of(uri: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(uri))


def test_the_module_is_whole(run: SmallRun) -> None:
    model = module_of(run.uri)
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert model.classes == run.result.dataset.classes == ["$group0$", "$group1$", "$group2$"]
    images = tensor(run.photos[:4])
    logits = model(images)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(model(images / 255), logits)
    assert model.embed(images).shape == (4, 512)
    assert model(torch.zeros(1, 3, 50, 70)).shape == (1, 3)
    with torch.no_grad():
        torch.testing.assert_close(run.result.model(images), logits)


def test_the_module_can_be_trained_on(run: SmallRun) -> None:
    model = module_of(run.uri).train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    images, labels = tensor(run.photos[::12]), torch.tensor([0, 1, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


ELSEWHERE = """
import json, sys
import mlflow, pandas as pd, torch
uri, photo = sys.argv[1:]
assert "shopee_mlflow" not in sys.modules
module = mlflow.pytorch.load_model(uri)
answer = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"image": [photo]})).iloc[0]
code = sys.modules["shopee_mlflow"].__file__
heavy = {"optuna", "matplotlib.pyplot", "sklearn", "imagehash"} & set(sys.modules)
logits = module(torch.full((2, 3, 32, 32), 99, dtype=torch.uint8)).tolist()
print(json.dumps([answer["label_group"], answer["probability"], code, sorted(heavy), logits]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("serialization", ["pickle", "pt2"])
def test_the_code_travels(
    serialization: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both formats load where this package is not installed; pt2 also where pickle is refused."""
    run = small_run(tmp_path_factory.getbasetemp(), serialization)
    folder, photo = folder_of(run.uri), run.photos[0]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if serialization == "pt2":
        env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(photo)]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    label, probability, code, heavy, logits = json.loads(done.stdout.splitlines()[-1])
    assert Path(code).is_relative_to(folder / "code")
    assert heavy == []
    (here,) = ask(run.uri, str(photo)).to_dict("records")
    assert (label, probability) == (here["label_group"], pytest.approx(here["probability"]))
    same = torch.full((2, 3, SIZE, SIZE), 99, dtype=torch.uint8)
    with torch.no_grad():
        np.testing.assert_allclose(run.result.model(same).numpy(), logits, atol=1e-5)


def test_pickle_is_refused_where_it_is_forbidden(
    run: SmallRun, program: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.raises(MlflowException, match="pickle"):
        mlflow.pytorch.load_model(run.uri)
    assert ask(program.uri, str(program.photos[0]))["error"].isna().all()


def test_a_program_gives_the_modules_logits_for_any_number_of_photos(program: SmallRun) -> None:
    loaded = module_of(program.uri)
    for count in (1, 2, 5):
        images = tensor(program.photos[:count])
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), program.result.model(images))


def test_photos_in_any_form_give_one_answer(run: SmallRun) -> None:
    photo = run.photos[5]
    pixels = np.asarray(Image.open(photo))
    text = as_base64(photo)
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    answers = ask(run.uri, str(photo), photo.read_bytes(), text, wrapped, pixels, pixels.tolist())
    assert list(answers.columns) == ["label_group", "label_name", "probability", "error"]
    assert answers["error"].isna().all()
    assert answers["label_group"].nunique() == 1
    np.testing.assert_allclose(answers["probability"], answers["probability"][0], rtol=1e-6)
    with torch.no_grad():
        logits = run.result.model(tensor([photo])).numpy()
    assert answers["probability"][0] == pytest.approx(softmax(logits).max(), abs=1e-6)


def test_data_urls_are_photos(run: SmallRun) -> None:
    """RFC 2397, as browsers write them: base64, percent-encoded base64, percent-encoded bytes."""
    photo = run.photos[5]
    text = as_base64(photo)
    forms = [
        str(photo),
        f"data:image/png;base64,{text}",
        f"DATA:;BASE64,{quote(text, safe='')}",
        f"data:image/png,{quote(photo.read_bytes())}",
    ]
    answers = ask(run.uri, *forms, "data:image/png;base64", "data:image/png;base64,???")
    assert answers["label_group"].nunique() == 1
    assert answers["error"].isna().tolist() == [True] * 4 + [False] * 2


def serve(uri: str, content: Any, kind: str = "application/json") -> Any:
    """What MLflow's scoring server answers to a request; its code, without its process."""
    model = mlflow.pyfunc.load_model(uri)
    data = content if kind == "text/csv" else json.dumps(content)
    response = invocations(data, kind, model, model.metadata.get_input_schema())
    assert response.status == 200
    return json.loads(response.response)["predictions"]


def test_every_documented_form_of_a_request_gives_a_row_for_each_photo(run: SmallRun) -> None:
    one, other = as_base64(run.photos[0]), as_base64(run.photos[20])
    expected = ask(run.uri, one, other).to_dict("records")
    assert expected[0]["label_group"] != expected[1]["label_group"]
    for content in (
        {"dataframe_records": [{"image": one}, {"image": other}]},
        {"dataframe_split": {"columns": ["image"], "data": [[one], [other]]}},
        {"inputs": {"image": [one, other]}},
        {"inputs": [one, other]},
        {"inputs": [{"image": one}, {"image": other}]},
        {"instances": [one, other]},
        {"instances": [{"image": one}, {"image": other}]},
    ):
        assert serve(run.uri, content) == expected, content.keys()
    assert serve(run.uri, f"image\n{one}\n{other}\n", "text/csv") == expected
    (single,) = serve(run.uri, {"inputs": {"image": [one]}})
    assert single["label_group"] == expected[0]["label_group"]
    model = mlflow.pyfunc.load_model(run.uri)
    assert model.predict({"image": [one, other]}).to_dict("records") == expected
    assert model.predict({"image": [one]})["label_group"].tolist() == [single["label_group"]]


@pytest.mark.parametrize("serialization", ["pickle", "pt2"])
def test_the_input_example_is_answered(
    serialization: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = small_run(tmp_path_factory.getbasetemp(), serialization)
    model = mlflow.pyfunc.load_model(run.uri)
    assert model.input_example is not None
    answers = model.predict(model.input_example)
    assert len(answers) == 1
    assert answers["error"].isna().all()
    assert serve(run.uri, {"dataframe_split": model.input_example.to_dict("split")}) == (
        answers.to_dict("records")
    )


@pytest.mark.fault
def test_a_served_model_reads_no_paths(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("secret")
    there = [str(run.photos[0]), str(tmp_path / "notes.txt"), str(tmp_path), "/dev/zero"]
    gone = [f"{path}.gone" for path in there]
    # As mlflow models serve starts its process.
    monkeypatch.setenv("__pyfunc_model_path__", str(tmp_path))
    refused = ask(run.uri, *there, *gone)
    assert refused["label_group"].isna().all()
    asked = zip(refused["error"], [*there, *gone], strict=True)
    reasons = [error.replace(f"{path:.60}", "") for error, path in asked]
    assert set(reasons) == {"no base64 text or data: URL: "}
    assert ask(run.uri, as_base64(run.photos[0]))["error"].isna().all()
    monkeypatch.setenv("SHOPEE_MLFLOW_READ_PATHS", "true")
    assert ask(run.uri, *there)["error"].isna().tolist() == [True, False, False, False]
    monkeypatch.delenv("__pyfunc_model_path__")
    monkeypatch.setenv("SHOPEE_MLFLOW_READ_PATHS", "false")
    assert ask(run.uri, there[0])["label_group"].isna().all()
    monkeypatch.setenv("SHOPEE_MLFLOW_READ_PATHS", "perhaps")
    with pytest.raises(ValueError, match="SHOPEE_MLFLOW_READ_PATHS=perhaps: must be true or fal"):
        ask(run.uri, there[0])


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"predictions": "label_group"},
        {"model_config": {"output": "label_group"}},
    ],
    ids=str,
)
def test_mlflows_own_evaluation_scores_the_model(
    run: SmallRun, tmp_path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "torn.png").write_bytes(run.photos[0].read_bytes()[:300])
    photos = [*run.photos[::4], tmp_path / "torn.png"]
    frame = pd.DataFrame({"image": [str(photo) for photo in photos]})
    labels = ask(run.uri, *frame["image"])["label_group"].tolist()
    assert labels[-1] is None
    # The first is made wrong, and the last cannot be read.
    wrong = "$group1$" if labels[0] == "$group0$" else "$group0$"
    frame["label_group"] = [wrong, *labels[1:-1], "$group2$"]
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            run.uri,
            frame,
            targets="label_group",
            model_type="classifier",
            evaluator_config={"log_model_explainability": False},
            **options,
        )
    mlflow.clear_active_model()
    # Only the evaluator gets the column alone.
    assert "probability" in ask(run.uri, str(run.photos[0]))
    assert result.metrics["accuracy_score"] == pytest.approx(8 / 10)
    assert result.metrics["example_count"] == 10


def test_an_output_that_there_is_not(run: SmallRun) -> None:
    with pytest.raises(ValueError, match="output=labels: must be table or label_group"):
        mlflow.pyfunc.load_model(run.uri, model_config={"output": "labels"})


def test_base64_shorter_than_a_path_is_no_path(run: SmallRun) -> None:
    """The system refuses to look for a file of a name longer than any."""
    content = b"".join(draw_photo(0, 1, 8).tobytes() for _ in range(2))
    answers = ask(run.uri, base64.b64encode(content).decode(), "A" * 400)
    assert answers["error"].str.contains("no such file").all()


def test_the_best_k(run: SmallRun) -> None:
    answers = ask(run.uri, *map(str, run.photos[:3]), top_k=2)
    for row in answers.to_dict("records"):
        assert len(row["label_groups"]) == len(row["probabilities"]) == 2
        assert row["label_groups"][0] == row["label_group"]
        assert row["probabilities"][0] == row["probability"] >= row["probabilities"][1]
    every = ask(run.uri, str(run.photos[0]), top_k=99)
    assert sorted(every["label_groups"][0]) == run.result.dataset.classes
    assert sum(every["probabilities"][0]) == pytest.approx(1)


def test_a_bad_photo_is_told_of_in_its_own_row(run: SmallRun, tmp_path: Path) -> None:
    torn = tmp_path / "torn.png"
    torn.write_bytes(run.photos[0].read_bytes()[:300])
    bad = ["nowhere.jpg", "nope", b"", b"text", None, 7, str(torn), np.zeros((2, 2, 9), np.uint8)]
    mixed = [photo for one in bad for photo in (one, str(run.photos[0]))]
    answers = ask(run.uri, *mixed, top_k=2)
    assert len(answers) == len(mixed)
    good = answers.iloc[1::2]
    assert good["error"].isna().all()
    assert good["label_group"].nunique() == 1
    refused = answers.iloc[::2]
    assert refused["error"].str.len().gt(10).all()
    # None and not NaN, which is no JSON.
    assert all(v is None for v in refused[["label_group", "probability"]].to_numpy().flat)
    assert "no such file" in refused["error"].iloc[0]
    assert "no such file" in refused["error"].iloc[1]


@pytest.mark.fault
def test_answers_for_spark_keep_their_nulls(run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    # A Python worker of Spark has this module; MLflow copies the frame and casts its columns.
    monkeypatch.setitem(sys.modules, "pyspark.worker", ModuleType("pyspark.worker"))
    answers = pd.DataFrame(ask(run.uri, str(run.photos[0]), "nowhere.jpg"))
    labels = answers["label_group"].astype(np.str_).tolist()
    errors = answers["error"].astype(np.str_).tolist()
    assert str(labels[0]).startswith("$group")
    assert labels[1] is None
    assert errors[0] is None
    assert "no such file" in errors[1]
    assert answers["probability"].astype(np.float64).isna().tolist() == [False, True]


def test_the_index_of_the_frame_is_kept_and_the_frame_itself(run: SmallRun) -> None:
    frame = pd.DataFrame({"image": [str(p) for p in run.photos[:2]]}, index=[7, 3])
    before = frame.copy()
    answers = mlflow.pyfunc.load_model(run.uri).predict(frame)
    assert answers.index.tolist() == [7, 3]
    assert frame.equals(before)


def test_no_photos_give_no_rows(run: SmallRun) -> None:
    answers = ask(run.uri)
    assert list(answers.columns) == ["label_group", "label_name", "probability", "error"]
    assert len(answers) == 0


def test_a_wrong_column_is_named(run: SmallRun) -> None:
    model = mlflow.pyfunc.load_model(run.uri)
    with pytest.raises(MlflowException, match="image"):
        model.predict(pd.DataFrame({"photo": [str(run.photos[0])]}))
    classifier = PhotoClassifier(run.result.model, run.result.dataset.classes, SIZE)
    with pytest.raises(ValueError, match=r"column 'image', .*; got \['photo'\]"):
        classifier.predict(pd.DataFrame({"photo": ["a.jpg"]}))


def test_the_image_path_is_one(run: SmallRun, tmp_path: Path) -> None:
    """Cache, evaluate, predict and python_function see the same pixels of odd photos."""
    photos = odd_photos(tmp_path / "odd")
    pixels = load_pixels(photos, hash_files(photos), SIZE).values
    with torch.no_grad():
        images = torch.from_numpy(np.asarray(pixels)).permute(0, 3, 1, 2)
        logits = run.result.model(images).numpy()
    predictor = Predictor(module_of(run.uri), run.result.dataset.classes)
    np.testing.assert_allclose(predictor.logits(pixels, np.asarray), logits, atol=1e-5)

    expected = softmax(logits)
    labels = [run.result.dataset.classes[i] for i in expected.argmax(axis=1)]
    for forms in (map(str, photos), (p.read_bytes() for p in photos), map(as_base64, photos)):
        answers = ask(run.uri, *forms)
        assert answers["label_group"].tolist() == labels
        np.testing.assert_allclose(answers["probability"], expected.max(axis=1), atol=1e-6)
    predict(run.uri, str(tmp_path / "odd"), tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table["image"].tolist() == [p.name for p in photos]
    assert table["label_group"].tolist() == labels
    np.testing.assert_allclose(table["probability"], expected.max(axis=1), atol=1e-6)


def test_odd_photos_are_seen_as_people_see_them(tmp_path: Path) -> None:
    """Guards the test above: pixels that are equally wrong everywhere would pass it."""
    cmyk, rotated, transparent = odd_photos(tmp_path / "odd")
    upright = Image.open(rotated).rotate(-90, expand=True).resize((SIZE, SIZE), 2)
    seen = read_pixels(rotated, SIZE).astype(int)
    assert np.abs(seen - np.asarray(upright.convert("RGB"))).mean() < 4
    assert np.abs(read_pixels(cmyk, SIZE).mean(axis=(0, 1)) - [40, 160, 60]).max() < 15
    assert read_pixels(transparent, SIZE)[0].mean() > 245  # its first row is clear: white


@pytest.mark.parametrize("serialization", ["pickle", "pt2"])
def test_the_logged_model_is_hardly_larger_than_its_weights(
    serialization: str, run: SmallRun, tmp_path: Path
) -> None:
    # One of its own: where a model is loaded, Python compiles the code beside it.
    save_model(str(tmp_path / "model"), Model(), run.result.model, serialization)
    files = [file for file in (tmp_path / "model").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files if "example" in file.name) < 10_000
    assert not any(file.suffix in (".pyc", ".png", ".jpg") for file in files)
    state = run.result.model.state_dict().values()
    weights = sum(value.nbytes for value in state)
    assert sum(file.stat().st_size for file in files) < weights + 1.25 * 2**20


@pytest.mark.parametrize("serialization", ["pickle", "pt2"])
def test_weights_are_kept_for_the_cpu(
    serialization: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = small_run(tmp_path_factory.getbasetemp(), serialization)
    state = module_of(run.uri).state_dict()
    assert {value.device.type for value in state.values()} == {"cpu"}


def test_the_example_prints_one_answer(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its third way, which tests/test_serving.py goes."""
    example = Path(__file__).parents[1] / "examples" / "three_ways.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(run.photos[5]), "--model", run.uri])
    runpy.run_path(str(example), run_name="__main__")
    module, function = (line.split() for line in capsys.readouterr().out.splitlines())
    assert (module[0], function[0]) == ("mlflow.pytorch", "mlflow.pyfunc")
    assert module[1:] == function[1:]
    assert module[1] in run.result.dataset.classes
