"""The report of a training: its contents, and the correctness of its statements."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import draw_photo, write_csv
from html_page import Page, read_page
from matplotlib.figure import Figure
from PIL import Image
from small_run import SmallRun, small_run

from shopee_mlflow import TrainConfig, train
from shopee_mlflow.config import resolve
from shopee_mlflow.modeling.metrics import (
    calibration,
    class_report,
    confusion,
)
from shopee_mlflow.modeling.temperature import Temperature, calibration_facts
from shopee_mlflow.reports.pages import Table, figure_picture
from shopee_mlflow.reports.training import training_page
from shopee_mlflow.reports.training_facts import TrainingFacts
from shopee_mlflow.reports.training_figures import confusion_figure, f1_figure, mistakes_figure

SCRIPT = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


def logged_page(run_id: str) -> Page:
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="report.html")
    return read_page(Path(path))


def history(train_accuracy: list[float], val_accuracy: list[float]) -> pd.DataFrame:
    epochs = len(val_accuracy)
    return pd.DataFrame(
        {
            "epoch": range(1, epochs + 1),
            "train_loss": np.linspace(2, 1, epochs),
            "val_loss": np.linspace(2, 1.5, epochs),
            "train_accuracy": train_accuracy,
            "val_accuracy": val_accuracy,
        }
    )


def facts(
    logits: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    subsets: dict[str, tuple[int, float, float, float]] | None = None,
    **changes: Any,
) -> TrainingFacts:
    """Facts of a training of three label groups; by default each of 9 photos is right."""
    classes = list(changes.pop("classes", "abc"))
    labels = np.arange(9) % 3 if labels is None else labels
    logits = np.eye(len(classes))[labels] * 9 if logits is None else logits
    predicted = logits.argmax(axis=1)
    table = calibration(labels, logits)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    accuracy = float((predicted == labels).mean())
    scores = {"test_accuracy": accuracy, "test_accuracy_low": 0.1, "test_accuracy_high": 1.0}
    scores |= {"best_val_accuracy": 0.75, "best_epoch": changes.pop("best_epoch", 2)}
    given: dict[str, Any] = {
        "title": "Training of cnn",
        "lead": "Run 1",
        "options": {"model": "cnn"},
        "data_lines": ["9 photos"],
        "scores": scores,
        "history": history([0.5, 0.6, 0.7, 0.75], [0.5, 0.7, 0.7, 0.7]),
        "photos": np.zeros((len(labels), 8, 8, 3), np.uint8).__getitem__,
        "names": pd.DataFrame(
            {
                "image": [f"{n}.jpg" for n in range(len(labels))],
                "label_group": [classes[i] for i in labels],
            }
        ),
        "labels": labels,
        "probabilities": exponents / exponents.sum(axis=1, keepdims=True),
        "classes": classes,
        "class_scores": class_report(labels, predicted, classes),
        "counts": confusion(labels, predicted, classes),
        "calibration": table,
        "calibrated": calibration_facts(labels, logits, logits, Temperature()),
        "subsets": subsets or {},
    }
    return TrainingFacts(**{**given, **changes})


def page_of(given: TrainingFacts, maps: float | None = None) -> Page:
    def look(photos: np.ndarray, predicted: np.ndarray) -> np.ndarray | None:
        assert len(photos) == len(predicted)
        return None if maps is None else np.full(photos.shape[:3], maps)

    return read_page(training_page(given, look))


@pytest.mark.drawn
def test_the_page_is_in_the_run_and_holds_all_it_shows(run: SmallRun) -> None:
    result = run.result
    page = logged_page(result.run_id)
    test = result.dataset.rows("test")
    wrong = int((result.test_logits.argmax(1) != result.test_labels).sum())
    # Two curves, three figures, each test photo once, and each mistake with its heat map.
    page.check_self_contained(pictures=5 + len(test) + wrong)
    scores = result.scores
    interval = f"{scores['test_accuracy_low']:.1%} to {scores['test_accuracy_high']:.1%}"
    assert f"Test accuracy {scores['test_accuracy']:.1%} 95 % interval {interval}" in page.text
    assert f"Test photos {len(test)} of 3 groups" in page.text
    assert f"Best epoch {scores['best_epoch']:.0f} of 4" in page.text
    assert f"Run {result.run_id}, data {result.dataset.digest}, train.csv" in page.text
    for line in result.dataset.lines():
        assert " ".join(line.split()) in page.text
    assert "image_size 32" in page.text
    assert "augment flip" in page.text
    assert "Rp 5$ off $" in page.text, "titles stand below the photos"


def test_each_heading_of_the_contents_is_there(run: SmallRun) -> None:
    page = logged_page(run.result.run_id)
    links = [link["href"] for link in page.all("a")]
    assert links == ["#learning", "#groups", "#trust", "#photos", "#setup"]


def shop_with_copies(folder: Path, group: str = "group", title: str = "title") -> Path:
    """Three groups of 12 photos, of which every second one is there twice, byte for byte."""
    (folder / "train_images").mkdir(parents=True)
    rows = []
    for number in range(36):
        names = [f"{number}.png", f"{number}-again.png"][: 1 + number % 2]
        for name in names:
            draw_photo(number % 3, number).save(folder / "train_images" / name)
            rows.append((name, name, f"{title} {number}", f"{group} {number % 3}"))
    write_csv(folder / "train.csv", ("posting_id", "image", "title", "label_group"), rows)
    return folder


@pytest.mark.drawn
@pytest.mark.slow
@pytest.mark.parametrize("split", ["random", "leak_free"])
def test_a_random_split_is_scored_with_and_without_copies(tmp_path: Path, split: str) -> None:
    """Titles and label groups that are script tags are shown as they are, and not executed."""
    shop = shop_with_copies(tmp_path / "shop", f"{SCRIPT}&amp;$x", SCRIPT)
    given = {"data": str(shop), "model": "cnn", "image_size": 32, "epochs": 1, "batch_size": 8}
    result = train(resolve(TrainConfig, {**given, "split": split}))
    page = logged_page(result.run_id)
    assert ("With and without a copy in train" in page.text) == (split == "random")
    if split == "random":
        count = len(result.dataset.rows("test"))
        copied = result.dataset.leaks
        assert 0 < copied < count
        assert f"with a copy in train {copied} " in page.text
        assert f" without {count - copied} " in page.text
    wrong = int((result.test_logits.argmax(1) != result.test_labels).sum())
    page.check_self_contained(pictures=5 + len(result.test_labels) + wrong)
    assert f"{SCRIPT}&amp;$x" in page.text, "a label"
    assert f" {SCRIPT} " in page.text, "a title"
    alts = [picture["alt"] for picture in page.pictures]
    assert any(f"of {SCRIPT} " in alt and f"({SCRIPT[:17]}…)" in alt for alt in alts)


FLAT = [2.0, 1.5, 1.5, 1.5]
FALLING = [2.0, 1.8, 1.6, 1.4]
OVERFITS = "accuracy on training photos is 25 percentage points higher than on validation photos"
AUGMENT = "Augmentation is off; augment=original or flip may help."
UNDERFITS = "only 30% of the training photos are correct: the model underfits."
OTHER_LR = "The loss no longer falls; another learning rate may help."
MORE_EPOCHS = "The validation loss was still falling at the end, so more epochs may help."


@pytest.mark.parametrize(
    ("train_accuracy", "last", "val_loss", "augment", "said"),
    [
        (0.95, 0.7, FLAT, "original", [OVERFITS]),
        (0.95, 0.7, FLAT, "none", [OVERFITS, AUGMENT]),
        (0.8, 0.8, FALLING, "none", [MORE_EPOCHS]),
        (0.8, 0.8, FLAT, "none", []),
        (0.3, 0.3, FLAT, "none", [UNDERFITS, OTHER_LR]),
        (0.3, 0.3, FALLING, "none", [UNDERFITS, MORE_EPOCHS]),
    ],
)
def test_advice_comes_from_the_curve_and_the_options(
    train_accuracy: float, last: float, val_loss: list[float], augment: str, said: list[str]
) -> None:
    table = history([0.1, 0.2, 0.2, train_accuracy], [0.1, 0.2, 0.2, last])
    given = facts(history=table.assign(val_loss=val_loss), options={"augment": augment})
    text = page_of(given).text
    known = (OVERFITS, AUGMENT, UNDERFITS, OTHER_LR, MORE_EPOCHS)
    assert [words for words in known if words in text] == said
    assert "more photos" not in text
    assert "weight decay" not in text


@pytest.mark.parametrize(
    ("val_accuracy", "val_loss", "best", "said"),
    [
        ([0.5, 0.7, 0.6], [1, 1, 1], 2, "Epoch 2 has the highest validation accuracy (70.0%)"),
        (
            [0.7, 0.7, 0.6],
            [1, 1, 1],
            1,
            "Epochs 1 and 2 have the same highest validation accuracy (70.0%). Epoch 1 is the "
            "first; its weights were kept.",
        ),
        (
            [0.7, 0.7, 0.7],
            [3, 2, 2.5],
            2,
            "Epochs 1, 2 and 3 have the same highest validation accuracy (70.0%). Epoch 2 has the "
            "lowest validation loss of them; its weights were kept.",
        ),
        ([0.7] * 8, [1] * 8, 1, "8 epochs have the same highest validation accuracy (70.0%)."),
    ],
)
def test_ties_of_the_best_epoch_are_said(
    val_accuracy: list[float], val_loss: list[float], best: int, said: str
) -> None:
    table = history([0.7] * len(val_accuracy), val_accuracy).assign(val_loss=val_loss)
    assert said in page_of(facts(history=table, best_epoch=best)).text


def test_a_coarse_map_claims_nothing_about_the_background() -> None:
    text = page_of(facts(np.eye(3)[[1, 1, 2]] * 3, np.array([0, 1, 2])), maps=0.5).text
    assert "a few coarse cells" in text
    assert "background" not in text


@pytest.mark.drawn
def test_pages_invert_transparent_figures_on_dark_screens() -> None:
    page = page_of(facts())
    dark = page.style.partition("prefers-color-scheme: dark")[2].partition("* {")[0]
    assert ".plate img { filter: invert(1)" in dark
    picture = figure_picture(Figure(), "empty")
    with Image.open(io.BytesIO(base64.b64decode(picture.source.partition(",")[2]))) as image:
        assert image.mode == "RGBA"
        assert image.getpixel((0, 0))[3] == 0


@pytest.mark.drawn
def test_no_mistakes() -> None:
    page = page_of(facts(), maps=0.5)
    assert "All 9 test photos are classified correctly." in page.text
    assert "Most confident mistakes There are none." in page.text
    assert "Confused label groups" not in page.text
    assert "Where the network looked" not in page.text
    assert "3 of 3 label groups have no mistake." in page.text
    page.check_self_contained(pictures=5 + 9)


@pytest.mark.drawn
@pytest.mark.slow
def test_mistakes_stand_in_order_of_sureness_with_their_pairs() -> None:
    """Photos 0 to 3 are of group a. 1 and 2 are taken for b, 2 more surely; 3 for c."""
    labels = np.array([0, 0, 0, 0, 1, 2])
    logits = np.array([[2, 0, 0], [0, 1, 0], [0, 5, 0], [0, 0, 3], [0, 9, 0], [0, 0, 9]], float)
    page = page_of(facts(logits, labels), maps=0.5)
    assert "3 of 6 test photos are misclassified; the table lists the pairs." in page.text
    assert "true predicted photos a b 2 a c 1" in page.text
    told = page.text[
        page.text.index("Most confident mistakes") : page.text.index("Where the network")
    ]
    said = ["b (99%) true a (1%) 2.jpg", "c (91%) true a (5%) 3.jpg", "b (58%) true a"]
    places = [told.index(words) for words in said]
    assert places == sorted(places)
    hits = page.text[page.text.index("Least confident correct") :]
    assert hits.index("predicted a (79%)") < hits.index("predicted b (100%)")
    page.check_self_contained(pictures=5 + 6 + 3)


def test_without_a_heat_map_nothing_is_said_of_it() -> None:
    labels = np.array([0, 1, 2])
    page = page_of(facts(np.eye(3)[[1, 1, 2]] * 3, labels))
    assert "1 of 3 test photo is misclassified" in page.text
    assert "Where the network looked" not in page.text


@pytest.mark.parametrize(
    ("claimed", "right", "said"),
    [
        (0.9, 50, "Probabilities are 40 percentage points too high"),
        (0.6, 90, "Probabilities are 30 percentage points too low"),
        (0.8, 80, "On average, probabilities agree with the accuracy within chance."),
        # Two standard errors of 100 photos at 0.8 are 8 percentage points.
        (0.8, 74, "On average, probabilities agree with the accuracy within chance."),
        (0.8, 71, "Probabilities are 9 percentage points too high"),
    ],
)
@pytest.mark.slow
def test_calibration_in_words(claimed: float, right: int, said: str) -> None:
    labels = np.zeros(100, int)
    predicted = (np.arange(100) >= right).astype(int)
    logits = np.log(np.array([[claimed, 1 - claimed - 1e-9, 1e-9]]).repeat(100, 0))
    logits[predicted == 1] = logits[predicted == 1][:, [1, 0, 2]]
    page = page_of(facts(logits, labels))
    error = abs(claimed - right / 100)
    assert f"Expected calibration error {error:.1%}; a calibrated model has about" in page.text
    assert said in page.text
    both = ("points too high", "points too low", "accuracy within chance")
    assert sum(words in page.text for words in both) == 1


@pytest.mark.slow
def test_long_names_are_cut_and_little_support_is_told() -> None:
    given = facts()
    names = given.names.assign(
        image=[f"{n}{'0' * 40}.jpg" for n in range(9)],
        title=r"\xe2\x9d\xa4 " + "word " * 40,
        label_group="x",
    )
    page = page_of(facts(names=names))
    assert "00000000000000000…" in page.text
    assert "0" * 30 not in page.text
    assert "word " * 20 not in page.text
    assert "\u2764 word word" in page.text
    assert "xe2" not in page.text
    assert "3 have fewer than 5 test photos" in page.text


@pytest.mark.slow
def test_a_label_group_without_test_photos_has_no_score() -> None:
    labels = np.array([0, 0, 1])
    given = facts(np.eye(3)[[0, 2, 1]] * 5, labels)
    page = page_of(given)
    assert "1 of 2 label groups have no mistake." in page.text
    assert "1 have no test photo and are not shown." in page.text
    assert len(f1_figure(given.class_scores.head(3)).axes[0].patches) == 2


def counts_of(size: int) -> pd.DataFrame:
    """Of each label group 5 photos are right and 1 is taken for the next one."""
    values = np.eye(size, dtype=int) * 5 + np.roll(np.eye(size, dtype=int), 1, axis=1)
    names = [f"group {n} $x_{n}" for n in range(size)]
    return pd.DataFrame(values, index=pd.Index(names, name="true"), columns=names)


@pytest.mark.drawn
@pytest.mark.slow
def test_21_label_groups_are_named_and_counted() -> None:
    figure = confusion_figure(counts_of(21), "A title")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts].count("5") == 21
    assert [text.get_text() for text in axes.texts].count("1") == 21
    assert axes.get_yticklabels()[20].get_text() == "group 20 $x_20"
    assert size_of(figure)[0] < 1000


@pytest.mark.drawn
def test_500_label_groups_are_dots_that_can_be_seen() -> None:
    figure = confusion_figure(counts_of(500), "A title")
    (axes,) = figure.axes
    right, wrong = axes.collections
    assert len(right.get_offsets()) == len(wrong.get_offsets()) == 500
    # In points squared: a cell would be a point and a half wide.
    assert min(wrong.get_sizes()) >= 9
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["right: 2,500 photos", "wrong: 500 photos"]
    assert size_of(figure)[0] < 1200


@pytest.mark.drawn
@pytest.mark.parametrize("size", [3, 500])
def test_scores_of_few_and_many_label_groups(size: int) -> None:
    labels = np.arange(size)
    report = class_report(labels, np.roll(labels, 1), [f"$group {n}" for n in range(size)])
    figure = f1_figure(report.head(size))
    assert len(figure.axes[0].patches) == (3 if size == 3 else 0)
    assert size_of(figure)[0] < 1000


WORLD = ["手机壳", "휴대폰", "ケース", "เสื้อยืด", "👟 shoes", "Café", "a\u200bb", "\ufeffx"]


@pytest.mark.drawn
@pytest.mark.fault
@pytest.mark.slow
def test_labels_that_the_font_lacks_are_numbered_and_the_page_is_the_key() -> None:
    """A box in place of a character is a warning of matplotlib, and warnings are errors here."""
    labels = np.arange(len(WORLD))
    counts = confusion(labels, np.roll(labels, 1), WORLD)
    figure = confusion_figure(counts, "")
    size_of(figure)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names[:6] == ["#0", "#1", "#2", "#3", "#4 shoes", "Café"]
    report = class_report(labels, np.roll(labels, 1), WORLD)
    size_of(f1_figure(report.head(len(WORLD))))
    page = page_of(facts(labels=labels, classes=WORLD))
    for number, label in enumerate(WORLD[:6]):
        assert f" {number} {label} 1 1 1 1 " in page.text


@pytest.mark.drawn
def test_photos_with_labels_that_the_font_lacks_name_their_row() -> None:
    table = pd.DataFrame(
        {"label_group": ["手机壳", "a"], "predicted": ["👟 shoes", "b"], "probability": [0.5, 0.4]}
    )
    figure = mistakes_figure(np.zeros((2, 8, 8, 3), np.uint8), table, np.array([1, 0]))
    size_of(figure)
    assert [axes.get_title() for axes in figure.axes[:2]] == [
        "b (40%)\nis a",
        "row 1:\nshoes (50%)\nis",
    ]


def size_of(figure: Figure) -> tuple[int, int]:
    """Drawing it is a part of the test."""
    picture = figure_picture(figure, "a figure")
    assert picture.source.startswith("data:image/png;base64,")
    return picture.width, picture.height


def test_numbers_and_percentages_are_aligned_right() -> None:
    frame = pd.DataFrame(
        {"n": [1, 2], "share": ["1.0%", "12.5%"], "range": ["1% to 2%", ""], "text": ["1%", "a"]}
    )
    found = dict(Table("", "", frame).columns)
    assert found == {"n": True, "share": True, "range": True, "text": False}
    assert not dict(Table("", "", frame.head(0).astype(str)).columns)["share"]
