"""The command line: exit codes, error messages, and both spellings of options."""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import pytest
from conftest import MakeCatalog

from shopee_mlflow import cli
from shopee_mlflow.config import TrainConfig, as_params


def run(*arguments: str) -> int:
    """The exit code of a command."""
    try:
        cli.main(list(arguments))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--help") == 0
    text = capsys.readouterr().out
    for name in as_params(TrainConfig()):
        assert f"--{name.replace('_', '-')}" in text
    assert "one of leak_free, random" in text.replace("\n", " ").replace("  ", " ")


def test_training_prints_what_it_did(
    make_catalog: MakeCatalog, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "cnn", "--image_size", "32", "--epochs", "2", "--batch-size", "8"]
    assert run("train", "--data", str(make_catalog()), *arguments) == 0
    out = capsys.readouterr().out
    assert "24 rows in the catalogue" in out
    assert "test photos have a copy in train" in out
    assert "epoch 2/2" in out
    assert "test accuracy" in out
    assert "95 % interval" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--lernrate", "3"],
            "lernrate: no such option. The options are: accumulate",
        ),
        (["train", "--batchsize", "3"], "Did you mean batch_size?"),
        (["train", "--lr", "0", "--split", "x"], "2 problems in the options"),
        (["train", "--config", "gone.yaml"], "config=gone.yaml: cannot be read"),
        (["train", "--model", "resnet5"], "model=resnet5: no such architecture. Did you mean resn"),
        (["train", "--data", "gone", "--model", "cnn"], "data=gone: no such file or folder"),
        (["train", "--device", "tpu"], "device=tpu: must be auto, cpu, cuda"),
        (["trian"], "No such command"),
        (["sample", "--px", "5"], "64"),
    ],
)
def test_mistakes_end_with_2_and_a_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_interruption_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt("SIGINT received")

    monkeypatch.setattr("shopee_mlflow.verbs.train.train", interrupted)
    assert run("train", "--model", "cnn") == 130
    assert "stopped: SIGINT received" in capsys.readouterr().err


def test_a_mistake_under_mlflow_run_is_left_in_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow.start_run() as made:
        pass
    client = mlflow.MlflowClient()
    client.update_run(made.info.run_id, "RUNNING")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    assert run("train", "--epochs", "none") == 2
    ended = client.get_run(made.info.run_id)
    assert ended.info.status == "FAILED"
    assert "epochs=none: must be a whole number" in ended.data.tags["failure"]


def test_sample_prints_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shop"
    assert run("sample", "--px", "64", "--out", str(folder)) == 0
    assert capsys.readouterr().out.strip().endswith(str(folder))
    assert (folder / "train.csv").is_file()


def test_clear_cache_says_what_it_freed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("clear-cache") == 0
    assert "MiB freed in" in capsys.readouterr().out


def test_experiments_compares_and_goes_on_after_a_failure(
    make_catalog: MakeCatalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.yaml").write_text("model: cnn\n")
    (tmp_path / "bad.yaml").write_text("model: cnn\nfreeze: nowhere\n")
    code = run(
        *("experiments", "--files", f"{tmp_path}/bad.yaml,{tmp_path}/good.yaml"),
        *("--data", str(make_catalog()), "--image-size", "32", "--epochs", "1"),
        *("--experiment", "comparison"),
    )
    assert code == 1
    out = capsys.readouterr().out
    assert "freeze=nowhere: cnn cannot be cut there" in out
    assert "95 % interval" in out
    runs = mlflow.search_runs(experiment_names=["comparison"])
    assert sorted(runs["status"]) == ["FAILED", "FINISHED", "FINISHED"]
    children = runs[runs["tags.mlflow.parentRunId"].notna()]
    assert set(children["tags.mlflow.runName"]) == {"good", "bad"}


def test_python_m_is_the_same_program() -> None:
    import subprocess

    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "shopee_mlflow", "train", "--epochs", "0"],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 2
    assert "epochs=0: must be a whole number at least 1" in done.stderr


def test_only_train_shares_its_work_among_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert run("tune", "--n-trials", "1") == 2
    assert "2 processes, and tune would do the same in each" in capsys.readouterr().err
    assert run("clear-cache") == 2
    assert "jobs" not in capsys.readouterr().err
    # A cluster sets this for all that runs there.
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert run("clear-cache") == 0
