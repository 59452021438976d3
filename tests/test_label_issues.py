"""Labels that a cross-validation disputes: found, listed, reviewed and given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import MakeCatalog

from shopee_mlflow import cross_validate, load_dataset
from shopee_mlflow.config import CrossValidateConfig, resolve
from shopee_mlflow.reports.label_review import LabelIssue, LabelReview
from shopee_mlflow.tracking.mlflow_run_log import read_table

CrossValidate = Callable[..., Any]


@pytest.fixture
def shop(make_catalog: MakeCatalog) -> Path:
    """Three groups of plain colours, with one wrong label and one that looks like a formula."""
    folder = make_catalog(groups=3, each=10)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    table.loc[table["image"] == "g0n4.png", "label_group"] = "group2"
    table["label_group"] = table["label_group"].replace("group0", "=group0")
    table.to_csv(folder / "train.csv", index=False)
    return folder


@pytest.fixture
def cross_validated(shop: Path, tmp_path: Path) -> CrossValidate:
    """A function from options to a cross-validation that learns the colours."""

    def run(**options: Any) -> Any:
        values = {"model": "cnn", "image_size": 32, "epochs": 25, "batch_size": 4, "folds": 2}
        values |= {"lr": 0.01, "augment": "none", "data": str(shop), "experiment": tmp_path.name}
        return cross_validate(resolve(CrossValidateConfig, {**values, **options}))

    return run


@pytest.mark.slow
def test_a_wrong_label_is_found_reviewed_and_given_back(
    cross_validated: CrossValidate, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = cross_validated()
    issue = first.label_issues.iloc[0]
    assert (issue["image"], issue["label_group"]) == ("g0n4.png", "group2")
    assert (issue["action"], issue["new_label_group"]) == ("", "=group0")
    assert issue["given_probability"] < 0.5 < issue["new_probability"]
    assert issue["title"] == "title 0"
    predictions = first.predictions.set_index("image")
    wrong = predictions.index[predictions["label_group"] != predictions["predicted"]]
    assert set(first.label_issues["image"]) == set(wrong)
    assert first.label_issues["given_probability"].is_monotonic_increasing
    fold = predictions["fold"]
    for number in (1, 2, 3):
        near = issue[f"nearest_{number}"]
        assert near.startswith("g0n")
        assert issue[f"nearest_{number}_label_group"] == "=group0"
        assert fold[near] != issue["fold"] == fold["g0n4.png"]
    assert f"disputed labels: {len(first.label_issues)}, listed" in capsys.readouterr().out
    page = mlflow.artifacts.load_text(f"runs:/{first.run_id}/report.html")
    assert "Labels to review" in page
    assert f"dispute {len(first.label_issues)} of 30 labels" in page

    # The file as it was logged, with one cell filled in.
    table = read_table(first.run_id, "cv/label_issues.csv")
    table.loc[table["image"] == "g0n4.png", "action"] = "relabel"
    file = shop / "reviewed.csv"
    table.to_csv(file, index=False)
    second = cross_validated(corrections=str(file))
    frame = load_dataset(str(shop), image_size=32, corrections=str(file)).frame
    assert dict(zip(frame["image"], frame["label_group"], strict=True))["g0n4.png"] == "=group0"
    digests = {mlflow.get_run(result.run_id).data.tags["data_digest"] for result in (first, second)}
    assert len(digests) == 2
    assert list(read_table(second.run_id, "data/corrections.csv")["image"]) == ["g0n4.png"]

    # The next list has the corrections, so that it replaces the first one.
    listed = second.label_issues
    assert listed.iloc[0][["image", "label_group", "action", "new_label_group"]].tolist() == [
        *("g0n4.png", "group2", "relabel", "=group0")
    ]
    assert (listed["image"] == "g0n4.png").sum() == 1
    again = read_table(second.run_id, "cv/label_issues.csv")
    again.to_csv(file, index=False)
    repeated = load_dataset(str(shop), image_size=32, corrections=str(file)).frame
    pd.testing.assert_frame_equal(repeated, frame)


@pytest.mark.slow
def test_nearest_photos_come_from_any_frozen_stage(cross_validated: CrossValidate) -> None:
    issues = [
        cross_validated(
            model="mnasnet0_5", freeze=freeze, epochs=1, lr=1e-4, clip_norm=1.0
        ).label_issues
        for freeze in ("none", "layers.8", "backbone")
    ]
    columns = ["nearest_1", "nearest_2", "nearest_3"]
    for table in issues:
        assert (table[columns] != "").all().all()


def test_the_review_says_what_is_disputed() -> None:
    photo = np.zeros((8, 8, 3), np.uint8)
    issue = LabelIssue(["a.png"], ["<b>"], [photo], "<i>", 0.1, "c", 0.9)
    review = LabelReview([issue], 1, 2, 30, {"<b>": "<b>", "c": "a cat"})
    (gallery,) = review.galleries
    assert gallery.title == "1. <b>, or a cat (c)?"
    assert list(gallery.tiles[0].lines) == [
        "given <b> (10%)",
        "proposed a cat (c) (90%)",
        "<i>",
        "a.png",
    ]
    assert "dispute 1 of 30 labels. The corrections name 2 others." in review.text
    assert LabelReview([], 0, 0, 30, {}).text == "The predictions of the folds dispute no label."
