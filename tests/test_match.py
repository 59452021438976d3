"""Match: tables, a page and a run, with labels and without."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import write_csv
from html_page import read_page

from shopee_mlflow import MatchConfig, cli, match
from shopee_mlflow.errors import CatalogError, ConfigError, TrackingError
from shopee_mlflow.matching import matcher
from shopee_mlflow.matching.postings import check_postings
from shopee_mlflow.matching.weighted_sum import WeightedSum
from shopee_mlflow.tracking.matcher_files import load_matcher
from shopee_mlflow.verbs.match import MatchResult

HEADER = ("posting_id", "image", "image_phash", "title", "label_group")
GOODS = ("rice", "serum", "shoes", "lamp", "phone", "soap", "bag", "tea", "towel", "chair")
BRANDS = ("alba", "borin", "cetra", "dovan", "elmo", "farid")
FILLERS = ("original", "murah", "promo", "ready", "new", "best")


def write_shop(folder: Path, *, labels: bool = True, prefix: str = "p", seed: int = 0) -> Path:
    """A CSV of 60 products with 2 to 4 postings each, whose titles share brand and goods."""
    random = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    rows = []
    for product, (brand, goods) in enumerate((b, g) for b in BRANDS for g in GOODS):
        for number in range(2 + product % 3):
            words = [brand, goods, f"type{product}", *random.choice(FILLERS, 2)]
            title = " ".join(random.permutation(words))
            group = f"g{product}" if labels else ""
            rows.append((f"{prefix}{product}_{number}", f"{product}.jpg", "", title, group))
    write_csv(folder / "train.csv", HEADER, rows)
    return folder / "train.csv"


@dataclass(frozen=True)
class Matched:
    """A shop that has been matched, the result, and the folder of its tables."""

    shop: Path
    result: MatchResult
    out: Path


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> Matched:
    """Tests share it, since matching takes a second; they change neither its files nor its run."""
    base, folder = tmp_path_factory.getbasetemp(), tmp_path_factory.mktemp("matched")
    shop, out = write_shop(folder / "<b>shop"), folder / "found"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOPEE_MLFLOW_CACHE", str(base / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{base}/mlflow.db")
        patch.chdir(folder)
        return Matched(shop, match(MatchConfig(data=str(shop), out=str(out))), out)


def copied_matcher(matched: Matched, folder: Path) -> Path:
    """The files of its matcher, for tests that change them."""
    files = mlflow.artifacts.download_artifacts(f"runs:/{matched.result.run_id}/matcher")
    return Path(shutil.copytree(files, folder))


@pytest.mark.slow
def test_matches_pairs_groups_and_a_score(matched: Matched) -> None:
    result = matched.result
    files = {file.name for file in matched.out.iterdir()}
    assert files == {"report.html", "matches.csv", "pairs.csv", "groups.csv", "ladder.csv"}
    assert result.scores["match_f1"] > 0.9
    assert result.scores["match_f1_low"] <= result.scores["match_f1"]
    assert result.scores["ladder_self"] < 0.6
    run = mlflow.get_run(result.run_id)
    assert run.data.tags["kind"] == "match"
    assert run.data.metrics == pytest.approx(result.scores)
    logged = Path(mlflow.artifacts.download_artifacts(run_id=result.run_id, artifact_path="match"))
    for name in files:
        assert (logged / name).read_bytes() == (matched.out / name).read_bytes()


@pytest.mark.slow
def test_each_posting_matches_itself_first(matched: Matched) -> None:
    found = matched.result.tables["matches.csv"]
    assert list(found.columns) == ["posting_id", "matches"]
    assert found["posting_id"].tolist() == pd.read_csv(matched.shop)["posting_id"].tolist()
    for name, matches in zip(found["posting_id"], found["matches"], strict=True):
        ids = matches.split(" ")
        assert ids[0] == name
        assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_pairs_say_why_and_whether_the_labels_agree(matched: Matched) -> None:
    pairs = matched.result.tables["pairs.csv"]
    assert set(pairs["why"]) <= {"title", "neighbours"}
    assert pairs["probability"].between(0, 1).all()
    same = pairs["posting_id"].str.split("_").str[0] == pairs["match"].str.split("_").str[0]
    assert (pairs["same_group"] == np.where(same, "yes", "no")).all()


@pytest.mark.fault
def test_without_labels_there_are_matches_and_no_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_shop(tmp_path / "shop", labels=False)
    result = match(MatchConfig(data=str(file), out="found"))
    assert result.scores == {}
    assert "without a score" in capsys.readouterr().out
    assert "same_group" not in result.tables["pairs.csv"]
    assert "ladder.csv" not in result.tables
    assert result.tables["matches.csv"]["matches"].str.contains(" ").mean() > 0.5


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.slow
def test_a_submission_names_the_postings_of_its_table_alone(tmp_path: Path, labels: bool) -> None:
    file = write_shop(tmp_path / "shop", labels=labels)
    other = write_shop(tmp_path / "other", labels=False, prefix="t", seed=1)
    match(MatchConfig(data=str(file), test_csv=str(other), out="found"))
    with (tmp_path / "found" / "submission.csv").open(newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows[0] == ["posting_id", "matches"]
    assert [row[0] for row in rows[1:]] == pd.read_csv(other)["posting_id"].tolist()
    named = {name for row in rows[1:] for name in row[1].split(" ")}
    assert named == {row[0] for row in rows[1:]}


@pytest.mark.slow
def test_the_page_shows_the_ladder_and_pairs(matched: Matched) -> None:
    text = matched.result.report.read_text(encoding="utf-8")
    page = read_page(text)
    assert "<b>shop" not in text
    for words in ("TF-IDF of words", "Surest matches", "Least sure matches", "Wrong matches"):
        assert words in text
    assert page is not None


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        match(MatchConfig(data=str(write_shop(tmp_path / "shop")), out="found"))


@pytest.mark.slow
def test_a_mistake_leaves_no_run(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ("posting_id", "label_group"), [("a", "g"), ("b", "g")])
    before = len(mlflow.search_runs(search_all_experiments=True))
    with pytest.raises(CatalogError, match="nothing to match by"):
        match(MatchConfig(data=str(tmp_path / "train.csv")))
    assert len(mlflow.search_runs(search_all_experiments=True)) == before


@pytest.mark.parametrize("option", ["largest_groups=5", "min_group=3", "split=random"])
def test_options_without_effect_are_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["match", f"--{option}"])
    assert ended.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.slow
def test_the_matcher_is_registered_and_matches_new_postings(tmp_path: Path) -> None:
    file = write_shop(tmp_path / "shop")
    run_id = match(MatchConfig(data=str(file), register=True, out="found")).run_id
    (made,) = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    assert made.name == "shopee-matcher"
    model = mlflow.pyfunc.load_model(f"models:/shopee-matcher/{made.version}")
    found = model.predict(pd.DataFrame({"title": ["promo alba rice type0", "unheard thing"]}))
    ids, scores = json.loads(found["matches"][0]), json.loads(found["scores"][0])
    assert {name.split("_")[0] for name in ids} == {"p0"}
    assert scores == sorted(scores, reverse=True)
    assert json.loads(found["matches"][1]) == []
    grown = model.get_raw_model()
    added = grown.add(pd.DataFrame({"posting_id": ["n1"], "title": ["unheard thing of tin"]}))
    again = added.predict(pd.DataFrame({"title": ["unheard thing of tin"]}))
    assert json.loads(again["matches"][0]) == ["n1"]


@pytest.mark.fault
def test_ids_of_new_postings_are_new(matched: Matched) -> None:
    matcher = load_matcher(matched.result.run_id)
    there = pd.DataFrame({"posting_id": ["p0_0", "n1"], "title": ["alba rice", "other"]})
    for call in (matcher.add, matcher.predict):
        with pytest.raises(CatalogError, match="1 of 2 postings are in the index already, .*p0_0"):
            call(there)
        with pytest.raises(CatalogError, match="repeat an earlier one, such as 'n2'"):
            call(pd.DataFrame({"posting_id": ["n2", "n2"], "title": ["other", "third"]}))


def test_what_cannot_be_registered_is_refused(tmp_path: Path) -> None:
    file = write_shop(tmp_path / "shop", labels=False)
    with pytest.raises(ConfigError, match="register=true: needs label groups"):
        match(MatchConfig(data=str(file), register=True, out="found"))


def test_a_call_does_not_match_the_index_again(
    matched: Matched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And finds what matching all postings together finds."""
    loaded = load_matcher(matched.result.run_id)
    new = pd.read_csv(write_shop(tmp_path / "new", prefix="n", seed=1), dtype=str)
    new = new[["posting_id", "title"]].sample(30, random_state=0).reset_index(drop=True)
    pool = pd.concat([loaded.index, new], ignore_index=True).fillna("")
    whole = loaded.matcher.match(check_postings(pool))
    names = pool["posting_id"].to_numpy()
    expected: dict[str, set[str]] = {name: set() for name in new["posting_id"]}
    for pair in np.flatnonzero(whole.chosen & (whole.pairs.query >= len(loaded.index))):
        expected[names[whole.pairs.query[pair]]].add(names[whole.pairs.match[pair]])

    for module in ("matcher", "pool"):
        monkeypatch.setattr(f"shopee_mlflow.matching.{module}.candidates", None)
    found = loaded.predict(new)
    sets = [set(json.loads(each)) for each in found["matches"]]
    agree = [mine == theirs for mine, theirs in zip(sets, expected.values(), strict=True)]
    assert np.mean(agree) > 0.8
    assert all(sets)


ELSEWHERE = """
import sys
class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "torchvision", "optuna", "matplotlib", "faiss"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
print(model.predict(pandas.DataFrame({"title": ["promo alba rice type0"]}))["matches"][0])
"""


@pytest.mark.slow
def test_a_matcher_of_titles_needs_no_torch(matched: Matched, tmp_path: Path) -> None:
    folder = mlflow.artifacts.download_artifacts(f"runs:/{matched.result.run_id}/matcher")
    requirements = (Path(folder) / "requirements.txt").read_text()
    assert "torch" not in requirements
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", ELSEWHERE, folder]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["p0_0", "p0_1"]


@pytest.mark.fault
@pytest.mark.slow
def test_a_given_matcher_says_how_the_postings_have_changed(
    matched: Matched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, chosen = write_shop(tmp_path / "shop"), matched.result
    same = match(MatchConfig(data=str(file), matcher=chosen.run_id, out="found"))
    out = capsys.readouterr().out
    assert "its index holds these postings" in out
    assert "The label groups are not scored" in out
    assert same.scores == {}
    rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    rows.loc[0, "title"] = "another title"
    extra = rows[-1:].assign(posting_id="extra")
    changed = pd.concat([rows[:-2], extra])
    write_csv(file, changed.columns, changed.to_numpy())
    again = match(MatchConfig(data=str(file), matcher=chosen.run_id, register=True, out="found"))
    out = capsys.readouterr().out
    assert "differ from the 180 of its index: 1 new, 2 missing, 1 changed" in out
    assert "The label groups are not scored" in out
    assert again.tables["matches.csv"]["posting_id"].tolist() == changed["posting_id"].tolist()
    assert "extra" in load_matcher(again.run_id).index["posting_id"].tolist()
    assert "extra" not in load_matcher(chosen.run_id).index["posting_id"].tolist()


@pytest.mark.fault
def test_an_index_that_was_edited_is_refused(matched: Matched, tmp_path: Path) -> None:
    folder = copied_matcher(matched, tmp_path / "matcher")
    index = folder / "data" / "matcher" / "index.csv"
    index.write_text(index.read_text() + "late,a late posting,\n")
    with pytest.raises(TrackingError, match=r"181 postings instead of 180; 1 rows are new") as told:
        load_matcher(str(folder))
    assert "Restore the file first" in str(told.value)


@pytest.mark.fault
@pytest.mark.slow
def test_a_matcher_of_an_earlier_version_is_loaded(matched: Matched, tmp_path: Path) -> None:
    """It has no likely pairs, and names another module that loads it."""
    folder = copied_matcher(matched, tmp_path / "matcher")
    (folder / "data" / "matcher" / "pairs.npz").unlink()
    about = (folder / "MLmodel").read_text().replace("matcher_files", "posting_matcher")
    (folder / "MLmodel").write_text(about)
    new = pd.DataFrame({"title": ["promo alba rice type0"]})
    expected = load_matcher(matched.result.run_id).predict(new)
    for loaded in (load_matcher(str(folder)), mlflow.pyfunc.load_model(str(folder))):
        pd.testing.assert_frame_equal(loaded.predict(new), expected)
    # Pickles of earlier versions name this place.
    assert vars(matcher)["WeightedSum"] is WeightedSum


@pytest.mark.fault
@pytest.mark.parametrize(
    "option", ["validation_share=0.2", "near_bits=2", "split_seed=1", "image_size=64", "resize=pad"]
)
def test_options_without_effect_on_a_given_matcher_are_refused(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["match", "--matcher=models:/shopee-matcher/1", f"--{option}"])
    assert ended.value.code == 2
    assert f"{option}: no effect with matcher=models:/shopee-matcher/1" in capsys.readouterr().err
    name = option.split("=")[0]
    MatchConfig(matcher="models:/shopee-matcher/1", **{name: getattr(MatchConfig(), name)})


@pytest.mark.fault
def test_what_is_no_matcher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a matcher has its own model"):
        MatchConfig(matcher="models:/shopee-matcher/1", model="cnn")
    (tmp_path / "folder").mkdir()
    for name, words in (("models:/no-such/1", "cannot be loaded"), ("folder", "is no matcher")):
        with pytest.raises(TrackingError, match=words):
            match(MatchConfig(data=str(write_shop(tmp_path / "shop")), matcher=name))
