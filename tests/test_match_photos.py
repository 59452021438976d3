"""Match: photos as a signal, by the embeddings of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import MakeCatalog, draw_photo, write_csv

from shopee_mlflow import MatchConfig, build_model, match
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.tracking.photo_embeddings import embed_files


def test_embeddings_have_length_one_and_are_zero_without_a_photo(tmp_path: Path) -> None:
    draw_photo(0, 0).save(tmp_path / "a.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    model = build_model("cnn", ["a", "b"], 64).eval()
    files = [tmp_path / "a.png", None, tmp_path / "broken.jpg"]
    found = embed_files(model, files, cache=False)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(embed_files(model, files), found)
    np.testing.assert_array_equal(embed_files(model, files), found)


@pytest.mark.slow
def test_photos_alone_are_matched_and_scored(make_catalog: MakeCatalog) -> None:
    folder = make_catalog(groups=12, each=3)
    rows = pd.read_csv(folder / "train.csv", dtype=str)
    if "posting_id" not in rows:
        rows.insert(0, "posting_id", [f"p{row}" for row in range(len(rows))])
    rows = rows[["posting_id", "image", "label_group"]]
    write_csv(folder / "train.csv", rows.columns, rows.to_numpy())
    found = match(MatchConfig(data=str(folder), model="cnn", image_size=64, out="found"))
    assert "ladder_photos" in found.scores
    assert "ladder_words" not in found.scores
    assert "photos" in found.tables["pairs.csv"]


@pytest.mark.fault
def test_a_model_without_photos_is_an_error(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ("posting_id", "title"), [("a", "rice"), ("b", "tea")])
    with pytest.raises(ConfigError, match="model=cnn: embeds photos, and no photo is found"):
        match(MatchConfig(data=str(tmp_path / "train.csv"), model="cnn"))
