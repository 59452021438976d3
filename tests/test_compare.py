"""Compare: the page, its tables, and which differences it calls chance."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas as pd
import pytest
from html_page import read_page
from several_runs import made_run, trained_runs

from shopee_mlflow import cli, compare
from shopee_mlflow.errors import ConfigError, TrackingError
from shopee_mlflow.modeling.metrics import wilson_interval
from shopee_mlflow.tracking.names import TRIAL_TAG


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


def artifacts(run_id: str) -> set[str]:
    return {item.path for item in mlflow.MlflowClient().list_artifacts(run_id, "comparison")}


def code(*arguments: str) -> int:
    try:
        cli.main(["compare", *arguments])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.mark.drawn
@pytest.mark.slow
def test_trained_runs_side_by_side(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, fast, other_split = trained_runs(base)
    ids = (first.result.run_id, fast, other_split)
    capsys.readouterr()
    assert code("--runs", ",".join(ids), "--out", "side by side") == 0
    out = capsys.readouterr().out

    analyses = ["shopee-analysis"]
    found = mlflow.search_runs(experiment_names=analyses, max_results=1, output_format="list")[0]
    assert found.info.run_name == "compare 3 runs of shopee"
    assert found.data.tags["kind"] == "compare"
    assert found.info.status == "FINISHED"
    assert found.data.params["runs"] == ",".join(ids)
    assert artifacts(found.info.run_id) == {
        "comparison/report.html",
        "comparison/comparison.csv",
        "comparison/pairs.csv",
    }
    folder = tmp_path / "side by side"
    assert {file.name for file in folder.iterdir()} == {
        "report.html",
        "comparison.csv",
        "pairs.csv",
    }

    table = pd.read_csv(folder / "comparison.csv")
    assert table["run"].tolist() == ["A", "B", "C"]
    assert table["run_id"].tolist() == list(ids)
    assert [name.split()[0] for name in table["name"]] == ["cnn", "fast", "cnn"]
    assert table["lr"].tolist() == ["auto", "0.05", "auto"]
    assert table["epochs"].tolist() == [4, 2, 1]
    assert table["split_seed"].tolist() == [0, 0, 1]
    assert not {"model", "seed", "run_name"} & set(table.columns)
    for row, run_id in zip(table.to_dict("records"), ids, strict=True):
        metrics = mlflow.get_run(run_id).data.metrics
        for name in ("test_accuracy", "test_accuracy_low", "test_accuracy_high", "best_epoch"):
            assert row[name] == pytest.approx(metrics[name]), name
    pairs = pd.read_csv(folder / "pairs.csv")
    assert pairs[["first", "second"]].to_numpy().tolist() == [["A", "B"]]

    digests = table["data_digest"].tolist()
    groups = f"their data_digest differs: A, B on {digests[0]}; C on {digests[2]}."
    assert groups in out
    page = read_page(folder / "report.html")
    assert groups in page.text
    assert "3 runs, chosen by their ids" in page.text
    assert "Test splits 2" in page.text
    assert "Highest test accuracy" not in page.text, "accuracies on different photos"
    assert found.data.tags["mlflow.note.content"].splitlines()[0] in out
    page.check_self_contained(pictures=3)


def test_a_difference_is_counted_by_photo(tmp_path: Path) -> None:
    """Of 20 photos the first alone gets 0 to 7 right, the second alone number 19."""
    first = made_run("counted", "good", [19], lr="1e-3")
    second = made_run("counted", "bad", range(8), lr="0.001", backwards=True)
    result = compare([second, first], out=tmp_path / "out")
    (pair,) = result.pairs.to_dict("records")
    assert (pair["first"], pair["second"]) == ("A", "B")
    assert (pair["only_first_right"], pair["only_second_right"]) == (1, 8)
    assert pair["p"] == pair["p_holm"] == pytest.approx(2 * (1 + 9) / 2**9)
    assert pair["differs"]
    assert result.words == [
        "B (good) is the better run.",
        "B (good) is better than A (bad): of 20 test photos, 8 are correct only with B and 1 only "
        "with A. Chance alone rarely gives so large a difference (p = 0.039).",
    ]
    assert result.runs["test_right"].tolist() == [12, 19]
    assert result.runs["test_accuracy_low"].tolist()[0] == wilson_interval(12, 20)[0]
    page = read_page(tmp_path / "out" / "report.html")
    assert "All options are the same." in page.text, "1e-3 and 0.001 are one value"
    assert "Highest test accuracy 95.0% (B)" in page.text
    assert "12 of 20" in page.text


def test_copies_of_a_photo_count_together(tmp_path: Path) -> None:
    """The first alone gets 8 photos right, of which 6 are copies for one run or the other."""
    one = made_run("copies", "good", sets=[0] * 4 + list(range(4, 20)))
    two = made_run(
        "copies", "bad", range(8), sets=[*range(3), 3, 3, 3, *range(6, 20)], backwards=True
    )
    pair = compare([one, two], out=tmp_path / "out").pairs.iloc[0]
    # Sets of 6, 1 and 1 photos.
    assert (pair["only_first_right"], pair["p"]) == (8, pytest.approx(2 / 2**3))
    old = made_run("copies", "old", range(8), sets=None)
    with_old = compare([one, old], out=tmp_path / "out")
    assert with_old.pairs["p"].tolist() == pytest.approx([2 / 2**5])
    assert len(with_old.words) == 2
    older = compare([made_run("copies", "older", sets=None), old], out=tmp_path / "out")
    assert older.pairs["p"].tolist() == pytest.approx([2 / 2**8])
    assert older.words[-1].startswith("Runs of earlier versions have not logged which photos are")
    assert "Copies of a photo count together" in read_page(tmp_path / "out/report.html").text


def test_many_pairs_are_held_to_a_stricter_measure(tmp_path: Path) -> None:
    """A is always right, B wrong on 9 photos, C on 6 others: p = 2/512, 2/64, and 9,949/16,384."""
    runs = [
        made_run("several", name, wrong)
        for name, wrong in (("best", []), ("nine", range(9)), ("six", range(9, 15)))
    ]
    result = compare(runs, out=tmp_path / "out")
    pairs = result.pairs.set_index(["first", "second"])
    found = pairs.loc[[("A", "B"), ("A", "C"), ("B", "C")]]
    p = [2 / 512, 2 / 64, 9949 / 16384]
    assert found["p"].tolist() == pytest.approx(p)
    assert found["p_holm"].tolist() == pytest.approx([3 * p[0], 2 * p[1], p[2]])
    assert found["differs"].tolist() == [True, False, False]
    assert result.words == [
        "1 of the 3 pairs of runs differs by more than chance explains; the others cannot be told "
        "apart with these test photos.",
        "A (best) is better than B (nine): of 20 test photos, 9 are correct only with A and 0 only "
        "with B. Chance alone rarely gives so large a difference (p = 0.012).",
        "A (best) and C (six): of 20 test photos, 6 are correct only with A and 0 only with C. "
        "Equally good models differ by this much in 3% of such tests (p = 0.031); among several "
        "pairs that may be chance (p = 0.062 by Holm).",
        "C (six) and B (nine): of 20 test photos, 9 are correct only with C and 6 only with B. "
        "Equally good models differ by this much in 61% of such tests (p = 0.61), so it may be "
        "chance.",
    ]


@pytest.mark.slow
def test_many_runs_in_few_words(tmp_path: Path) -> None:
    """28 runs: two that are always right, and 26 that are wrong on the same 15 photos."""
    runs = [made_run("many", f"run {n}", range(15) if n > 1 else []) for n in range(28)]
    result = compare(runs, out=tmp_path / "out")
    assert result.runs["run"].tolist()[-3:] == ["Z", "AA", "AB"]
    assert len(result.pairs) == 28 * 27 // 2
    assert result.words[0].startswith("52 of the 378 pairs of runs differ by more than")
    losers = ", ".join(result.runs["run"].tolist()[2:])
    assert f"A (run 0) is better than {losers} (p at most 0.0" in result.words[1]
    assert f"B (run 1) is better than {losers} (p at most 0.0" in result.words[2]
    assert result.words[3].startswith("Not told apart: A and B, C and D, ")
    assert result.words[3].endswith("and 286 more.")
    page = read_page(tmp_path / "out" / "report.html")
    assert "and 318 more rows" in page.text


def test_equal_answers_and_no_difference(tmp_path: Path) -> None:
    runs = [made_run("equal", name, [3, 4]) for name in ("one", "two")]
    words = compare(runs, out=tmp_path / "out").words
    assert words == [
        "These test photos do not tell which of A and B is better.",
        "A (one) and B (two) classify the same photos correctly.",
    ]


@pytest.mark.parametrize("digests", [("d1", "d2"), ("", "")])
def test_other_test_photos_are_not_compared(tmp_path: Path, digests: tuple[str, str]) -> None:
    """Without a digest nobody knows whether the photos are the same."""
    runs = [made_run("apart", name, digest=d) for name, d in zip("xy", digests, strict=True)]
    result = compare(runs, out=tmp_path / "out")
    assert result.pairs.empty
    assert result.words[0] == (
        "No two of these runs are known to have the same test photos, so none of them can be "
        "compared."
    )
    assert ("A on d1; B on d2" in " ".join(result.words)) == (digests[0] == "d1")
    assert pd.read_csv(tmp_path / "out" / "pairs.csv").empty


def test_the_same_digest_with_other_photos_is_an_error(tmp_path: Path) -> None:
    runs = [made_run("changed", "one"), made_run("changed", "two", photos=19)]
    with pytest.raises(TrackingError, match="the same data_digest, but their test predictions"):
        compare(runs, out=tmp_path / "out")
    assert mlflow.get_experiment_by_name("changed-analysis") is None


@pytest.mark.slow
def test_the_best_of_an_experiment_by_validation(tmp_path: Path) -> None:
    name = "contest"

    def run(run_name: str, val: float, test: float = 0.5, **about: str) -> str:
        ended = {"best_val_accuracy": val, "best_epoch": 1.0, "test_accuracy": test}
        return made_run(name, run_name, metrics=ended, **about)

    run("third", 0.7, test=0.99)
    second, first = run("second", 0.8), run("first", 0.9)
    run("failed", 0.99, status="FAILED")
    made_run(name, "an evaluation", metrics={"test_accuracy": 1.0})
    made_run(name, "a trial", metrics={"best_val_accuracy": 1.0}, tags={TRIAL_TAG: "3"})
    result = compare(experiment=name, best=2, out=tmp_path / "out")
    assert result.runs["run_id"].tolist() == [first, second]
    text = read_page(tmp_path / "out" / "report.html").text
    assert "The 2 runs of highest best_val_accuracy in the experiment contest" in text
    logged = mlflow.get_run(result.run_id)
    assert mlflow.get_experiment(logged.info.experiment_id).name == "contest-analysis"
    assert logged.data.params["best"] == "2"
    all_of_them = compare(experiment=name, best=50, out=tmp_path / "out").runs["name"].tolist()
    assert all_of_them == ["first", "second", "third"]


@pytest.mark.drawn
def test_trials_by_id_have_no_test_accuracy(tmp_path: Path) -> None:
    trials = [
        made_run("trials", f"trial {n}", metrics={"best_val_accuracy": 0.4, "best_epoch": 3.0},
                 tags={TRIAL_TAG: str(n)}, lr=lr)
        for n, lr in enumerate(("0.1", "0.2"))
    ]  # fmt: skip
    result = compare(trials, out=tmp_path / "out")
    assert result.words[0].startswith("No two of these runs are known to have the same test photos")
    assert result.words[1].endswith("such as trials of a search: A, B.")
    assert "test_accuracy" not in result.runs
    page = read_page(tmp_path / "out" / "report.html")
    assert page.text.count("not tested") == 2
    page.check_self_contained(pictures=2)


def test_a_search_counts_with_its_best_trial(tmp_path: Path) -> None:
    """Its run has the best options in a file, and the epochs in a table: its metrics have none."""
    training = made_run("search", "training", lr="0.5", batch_size="8")
    mlflow.set_experiment("search")
    with mlflow.start_run(run_name="search") as run:
        mlflow.log_params({"lr": "'0.001 to 0.1, log'", "n_trials": "20", "batch_size": "8"})
        mlflow.set_tags({"study": "s", "data_digest": "d1"})
        mlflow.log_metrics({"best_val_accuracy": 0.9, "best_epoch": 2.0, "test_accuracy": 1.0})
        mlflow.log_text("lr: 0.02\nmodel: cnn\n", "tune/best.yaml")
        text = "epoch,train_loss,val_loss,val_accuracy\n1,1,1,0.5\n2,0.5,0.6,0.9\n"
        mlflow.log_text(text, "training/history.csv")
        rows = "".join(f"{n}.jpg,a,a,0.9\n" for n in range(20))
        mlflow.log_text(f"image,label_group,predicted,probability\n{rows}", "test/predictions.csv")
    result = compare([training, run.info.run_id], out=tmp_path / "out")
    assert result.runs["lr"].tolist() == ["0.5", "0.02"]
    assert result.runs["model"].tolist() == ["", "cnn"]
    assert result.runs["epochs_trained"].tolist() == [3, 2]
    assert not {"n_trials", "batch_size"} & set(result.runs)


@pytest.mark.slow
def test_facts_that_are_no_options(tmp_path: Path) -> None:
    """Another commit may be why two runs differ; a run that does not tell its own, says nothing."""
    commits = ("1" * 40, "2" * 40, None)
    runs = [
        made_run("facts", f"run {n}", tags={"git_commit": c, "device": "cpu"} if c else {}, lr=lr)
        for n, (c, lr) in enumerate(zip(commits, ("0.1", "0.012345678912", "0.1"), strict=True))
    ]
    result = compare(runs, out=tmp_path / "out")
    assert result.runs["git_commit"].tolist() == [commits[0], commits[1], ""]
    assert "computed on" not in result.runs
    assert result.runs["lr"].tolist() == ["0.1", "0.012345678912", "0.1"]
    assert "git_commit" not in compare([runs[0], runs[2]], out=tmp_path / "x").runs
    text = read_page(tmp_path / "out" / "report.html").text
    assert f"run lr git_commit A 0.1 {commits[0]} B 0.01235 {commits[1]} C 0.1" in text


def test_names_show_what_differs(tmp_path: Path) -> None:
    names = ["cnn lr=0.1 epochs=3", "cnn lr=0.2 epochs=3", "cnn epochs=3"]
    result = compare([made_run("named", name) for name in names], out=tmp_path / "out")
    assert result.runs["name"].tolist() == ["cnn lr=0.1", "cnn lr=0.2", "cnn"]
    # What fewer runs share comes first, since a figure cuts the end of a name.
    names = ["cnn epochs=3 lr=0.1 ema=0.9", "cnn epochs=3 lr=0.1", "my lr=0.1 best run"]
    result = compare([made_run("cut", name) for name in names], out=tmp_path / "out")
    assert result.runs["name"].tolist() == ["cnn ema=0.9 epochs=3", "cnn epochs=3", "my best run"]


@pytest.mark.drawn
def test_names_of_strangers_are_text(tmp_path: Path) -> None:
    odd = ["<script>alert(1)</script>", r"$\no{$ _x"]
    runs = [made_run("strange", name, weights=name) for name in odd]
    compare(runs, out=tmp_path / "out")
    page = read_page(tmp_path / "out" / "report.html")
    page.check_self_contained(pictures=3)
    assert "<script>" in page.text


UNKNOWN = "0" * 32


@pytest.mark.slow
def test_runs_that_cannot_be_compared(tmp_path: Path) -> None:
    good, good_too = made_run("errors", "good"), made_run("errors", "good too")
    with pytest.raises(TrackingError, match=f"run={UNKNOWN}: no such run"):
        compare([good, UNKNOWN], out=tmp_path / "out")
    evaluation = made_run("errors", "evaluate", metrics={"test_accuracy": 1.0})
    with pytest.raises(TrackingError, match=r"\(evaluate, FINISHED\): is not a finished training"):
        compare([good, evaluation], out=tmp_path / "out")
    with pytest.raises(TrackingError, match="is a run of compare, not a training"):
        compare([good, compare([good, good_too], out=tmp_path / "out").run_id])
    with mlflow.start_run(run_name="untested") as run:
        mlflow.log_metrics({"best_val_accuracy": 0.5, "best_epoch": 1})
        mlflow.log_metrics({"val_accuracy": 0.5, "val_loss": 0.5}, step=1)
    with pytest.raises(TrackingError, match="untested, FINISHED.: has no test predictions"):
        compare([good, run.info.run_id], out=tmp_path / "out")


def test_calls_that_make_no_sense(tmp_path: Path) -> None:
    good = made_run("lonely", "good")
    mlflow.set_experiment("empty")
    (tmp_path / "file").write_text("")
    empty = tmp_path / "empty"
    cases: list[tuple[dict[str, object], str]] = [
        ({}, "runs, experiment: name one of the two"),
        ({"runs": [good, UNKNOWN], "experiment": "lonely"}, "name one of the two"),
        ({"runs": [good]}, f"runs={good}: a comparison needs at least two runs"),
        ({"runs": [good, f" {good}"]}, "needs at least two runs"),
        ({"experiment": "lonely", "best": 1}, "best=1: a comparison needs at least two"),
        ({"runs": [good, UNKNOWN], "out": tmp_path / "file"}, "out=.*file: cannot be written"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError, match=message):
            compare(**{"out": empty, **call})
    for experiment, message in (
        ("nowhere", "experiment=nowhere: no such experiment in .*; its experiments are: .*lonely"),
        ("empty", "experiment=empty: has no finished training"),
        ("lonely", "experiment=lonely: has 1 training run .* a comparison needs two"),
    ):
        with pytest.raises(TrackingError, match=message):
            compare(experiment=experiment, out=empty)


@pytest.mark.fault
@pytest.mark.parametrize("name", ["report.html", "comparison.csv", "notes.txt"])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str) -> None:
    runs = [made_run("folder", run) for run in ("one", "two")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("precious")
    with pytest.raises(ConfigError, match="out=.*mine: holds other files; name a new or empty"):
        compare(runs, out=tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == [name]
    assert (tmp_path / "mine" / name).read_text() == "precious"


@pytest.mark.slow
def test_an_earlier_comparison_is_replaced(tmp_path: Path) -> None:
    runs = [made_run("again", run) for run in ("one", "two", "three")]
    compare(runs[:2], out=tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    compare(runs, out=tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "comparison.csv")) == 3
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_mistakes_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "name one of the two"),
        (["--runs", UNKNOWN], "needs at least two runs"),
        (["--experiment", "nowhere"], "no such experiment"),
        (["--experiment", "nowhere", "--best", "1"], "1 is not in the range x>=2"),
    ):
        assert code(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
