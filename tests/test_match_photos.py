"""Match: photos as a signal, by the embeddings of a model."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import MakeCatalog, draw_photo, write_csv
from small_run import as_base64

from shopee_mlflow import MatchConfig, build_model, match
from shopee_mlflow.errors import CatalogError, ConfigError
from shopee_mlflow.tracking.matcher_files import load_matcher
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


def test_a_matcher_with_photos_is_registered_and_matches_photos(make_catalog: MakeCatalog) -> None:
    folder = make_catalog(groups=12, each=3)
    found = match(
        MatchConfig(data=str(folder), model="cnn", image_size=64, register=True, out="found")
    )
    (made,) = mlflow.MlflowClient().search_model_versions(f"run_id = '{found.run_id}'")
    model = mlflow.pyfunc.load_model(f"models:/shopee-matcher/{made.version}")
    photo = as_base64(sorted((folder / "train_images").iterdir())[0])
    raw = load_matcher(found.run_id)
    title = raw.index["title"][0]
    answer = model.predict(pd.DataFrame({"image": [photo, "no photo"], "title": [title, title]}))
    name = raw.index["posting_id"][0]
    assert name in json.loads(answer["matches"][0])
    assert answer["error"][0] is None
    assert "no base64 text" in answer["error"][1]
    grown = raw.add(pd.DataFrame({"posting_id": ["late"], "image": [photo]}))
    assert grown.pool.postings.photos is not None
    np.testing.assert_allclose(
        grown.pool.postings.photos[-1], grown.pool.postings.photos[0], atol=1e-5
    )
    again = match(MatchConfig(data=str(folder), matcher=found.run_id, out="found"))
    assert "photos" in again.tables["pairs.csv"]
    with pytest.raises(CatalogError, match="image of bad: .*no photo"):
        raw.add(pd.DataFrame({"posting_id": ["bad"], "image": ["no photo"]}))


@pytest.mark.fault
def test_a_model_without_photos_is_an_error(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ("posting_id", "title"), [("a", "rice"), ("b", "tea")])
    with pytest.raises(ConfigError, match="model=cnn: embeds photos, and no photo is found"):
        match(MatchConfig(data=str(tmp_path / "train.csv"), model="cnn"))
