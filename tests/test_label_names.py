"""Readable names of label groups: where they come from and where they are shown."""

from __future__ import annotations

import csv
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from small_run import SmallRun, small_run

from shopee_mlflow.modeling.label_names import label_names
from shopee_mlflow.modeling.metrics import with_label_names
from shopee_mlflow.reports.figure_text import group_names
from shopee_mlflow.tracking.registry import load_classifier
from shopee_mlflow.verbs.predict import predict


def names_of(rows: list[tuple[str, ...]], columns: str, classes: str = "1 2") -> list[str]:
    return label_names(pd.DataFrame(rows, columns=columns.split(), dtype=str), classes.split())


def test_the_most_typical_title_names_a_group() -> None:
    titles = ["red apple 1 kg", "CHEAP!!! fresh red apple sale", "red apple"]
    rows = [("1", title) for title in titles] + [("2", "pear"), ("2", ""), ("2", "green pear")]
    assert names_of(rows, "label_group title") == ["red apple", "pear"]
    assert names_of(rows[::-1], "label_group title") == ["red apple", "pear"]


def test_a_column_of_names_comes_first() -> None:
    rows = [("1", "Apples", "x"), ("1", "Apples", "x"), ("1", "Pears", "x"), ("2", "", "a title")]
    assert names_of(rows, "label_group label_name title") == ["Apples", "a title"]


def test_a_group_without_either_is_called_by_its_label() -> None:
    assert names_of([("1", "★"), ("2", "")], "label_group title") == ["1", "2"]
    assert names_of([("1",), ("2",)], "label_group") == ["1", "2"]


def test_names_are_short_and_in_one_line() -> None:
    long = "word " * 30
    escaped = r"\xe2\x9d\xa4 heart" + "\nand \ufffd more"
    rows = [("1", long), ("2", escaped)]
    first, second = names_of(rows, "label_group title")
    assert first == "word " * 10 + "word word…"
    assert second == "❤ heart and more"
    assert names_of([("1", "x" * 99), ("2", "y")], "label_group title")[0] == "x" * 59 + "…"


def test_names_in_figures_differ() -> None:
    long = "the same long beginning of a title, then A"
    assert group_names(["pear", "pear", long, long[:-1] + "B"], range(4)) == [
        *("#0 pear", "#1 pear", "#2 the same long begi…", "#3 the same long begi…"),
    ]


def test_a_report_has_names_only_if_they_say_more() -> None:
    report = pd.DataFrame({"label_group": ["1", "2", "macro avg"], "support": [1, 2, 3]})
    assert with_label_names(report, ["1", "2"]) is report
    assert with_label_names(report, ()) is report
    assert with_label_names(report, ["A", "B"])["label_name"].tolist() == ["A", "B", ""]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


def test_the_model_carries_its_names(run: SmallRun, tmp_path: Path) -> None:
    names = [f"Rp 5$ off $ {group}" for group in range(3)]
    loaded = load_classifier(run.uri)
    assert loaded.classes == [f"$group{group}$" for group in range(3)]
    assert loaded.label_names == names
    by_label = dict(zip(loaded.classes, names, strict=True))

    predict(run.uri, str(run.photos[0]), tmp_path / "out.csv", top_k=2)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["label_name"] == by_label[row["label_group"]]
    assert row["label_name_2"] == by_label[row["label_group_2"]]

    model = mlflow.pyfunc.load_model(run.uri)
    answer = model.predict(pd.DataFrame({"image": [str(run.photos[0]), "gone.png"]}))
    assert answer["label_name"].tolist() == [row["label_name"], None]
    outputs = model.metadata.signature.outputs
    assert outputs is not None
    assert "label_name" in outputs.input_names()


def test_the_report_shows_names_beside_labels(run: SmallRun) -> None:
    client = mlflow.MlflowClient()
    file = client.download_artifacts(run.result.run_id, "test/report.csv")
    table = pd.read_csv(file, keep_default_na=False)
    assert table["label_name"].tolist()[:3] == [f"Rp 5$ off $ {group}" for group in range(3)]
    page = Path(client.download_artifacts(run.result.run_id, "report.html")).read_text("utf-8")
    assert "Rp 5$ off $ 0 ($group0$)" in page
