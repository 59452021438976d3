"""The command line: exit codes, error messages, and both spellings of options."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
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
    words = " ".join(text.split())
    assert "optimization algorithm; one of sgd, adamw [sgd]" in words
    headings = [line for line in text.splitlines() if line and line[0] != " " and line[-1] == ":"]
    assert headings == [
        *("Data:", "Model:", "Training:", "Evaluation:", "MLflow:", "Running:", "Options:")
    ]
    assert words.index("Examples: shopee-mlflow train") < words.index("Data: --data")
    assert words.index("--lr FLOAT") < words.index("--clip-norm") < words.index("--workers")


def test_help_is_about_a_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("train", "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 100
    assert len(lines) < 100


def test_commands_are_in_the_order_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    lines = [line.split(maxsplit=1) for line in text.partition("Commands:\n")[2].splitlines()]
    assert [name for name, _ in lines] == [
        *("sample", "explore", "train", "tune", "cross-validate", "evaluate", "compare", "predict"),
        *("match", "register", "export", "experiments", "clear-cache"),
    ]
    assert [help for _, help in lines if help.endswith("...")] == [], "one line is enough"


@pytest.mark.parametrize(
    ("command", "typed", "proposed"),
    [
        ("train", "learning-rate", "lr"),
        ("train", "learning_rat", "lr"),
        ("train", "lernrate", "lr"),
        ("train", "batch", "batch_size"),
        ("train", "bs", "batch_size"),
        ("train", "Epoch", "epochs"),
        ("train", "wd", "weight_decay"),
        ("train", "arch", "model"),
        ("train", "backbone", "model"),
        ("train", "img-size", "image_size"),
        ("train", "gpu", "device"),
        ("train", "optim", "optimizer"),
        ("train", "pretrained", "weights"),
        ("train", "num-workers", "workers"),
        ("train", "early-stopping", "patience"),
        ("train", "random-state", "seed"),
        ("tune", "trials", "n_trials"),
        ("tune", "n_jobs", "jobs"),
        ("predict", "topk", "top_k"),
        ("predict", "photos", "source"),
        ("compare", "run-ids", "runs"),
        ("register", "run-id", "run"),
    ],
)
def test_an_option_of_another_name_is_proposed(
    command: str, typed: str, proposed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, f"--{typed}", "3") == 2
    error = capsys.readouterr().err
    assert error.rstrip().endswith(f"no such option. Did you mean {proposed}?")


@pytest.mark.parametrize(
    ("typed", "proposed"),
    [
        ("convnext_tinny", ["convnext_tiny"]),
        ("efficientnet-b0", ["efficientnet_b0"]),
        ("resnet", ["resnet18", "resnet34", "resnet50"]),
    ],
)
def test_the_nearest_architecture_is_proposed(
    typed: str, proposed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--model", typed) == 2
    error = capsys.readouterr().err
    assert sorted(error.strip().partition("Did you mean ")[2].rstrip("?").split(" or ")) == proposed


@pytest.mark.fault
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--freeze", "featres.6", "--model", "effnet"], "there. Did you mean features.6? Allowed"),
        (["--weights", "weights.pth", "--model", "effnet"], "weights=weights.pth: 359 keys do not"),
        (["--device", "cuda:9", "--model", "cnn"], "device=cuda:9: this machine has"),
        (["--model", "vit_b_16", "--image-size", "100"], "cannot be built for image_size=100"),
    ],
)
@pytest.mark.parametrize("command", ["train", "tune"])
def test_mistakes_are_found_before_photos_are_read_and_a_run_is_opened(
    command: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, "weights.pth")
    Path("space.yaml").write_text("space:\n  lr: [0.1, 0.2]\n")
    given = {"train": ["train"], "tune": ["tune", "--config", "space.yaml"]}[command]
    Path("empty").mkdir(exist_ok=True)
    Path("empty/train.csv").write_text("image,label_group\n")  # refused when it is read
    experiment = f"mistakes of {command}, {arguments}"
    assert run(*given, "--data", "empty", "--experiment", experiment, *arguments) == 2
    assert message in capsys.readouterr().err
    assert mlflow.get_experiment_by_name(experiment) is None


@pytest.mark.parametrize(
    ("chosen", "count"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_waiting_threads_release_their_cores_unless_the_user_decides(
    chosen: dict[str, str],
    count: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert run("train", "--data", "not there") == 2
    assert os.environ.get("GOMP_SPINCOUNT") == count
    assert ("(GOMP_SPINCOUNT=1000)" in capsys.readouterr().out) == (not chosen)


@pytest.mark.slow
def test_each_command_says_what_it_begins_with_before_heavy_imports() -> None:
    code = """if True:
        import sys
        from shopee_mlflow import cli, loading

        def say(*lines):
            heavy = {"torch", "mlflow", "pandas", "optuna", "matplotlib"} & set(sys.modules)
            print(lines[0], sorted(heavy))
            sys.exit(0)

        cli.say = loading.say = say
        for line in (
            "explore", "train", "train --nproc 2", "tune", "evaluate --model models:/a/1",
            "compare", "predict --model models:/a/1 --source b", "register --run c",
            "export --model models:/a/1", "experiments",
        ):
            try:
                cli.main(line.split())
            except SystemExit:
                pass
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[1] == "loading torch and MLflow, then the model []"
    assert len(lines) == 10
    assert all(line.endswith(" []") for line in lines), lines


@pytest.mark.slow
def test_training_prints_what_it_did(
    make_catalog: MakeCatalog, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "cnn", "--image_size", "32", "--epochs", "2", "--batch-size", "8"]
    assert run("train", "--data", str(make_catalog()), *arguments) == 0
    out = capsys.readouterr().out
    assert "24 rows in the catalogue" in out
    assert "test photos have a copy in train (equal bytes, or phashes up to 4 bits apart)" in out
    assert "epoch 2/2" in out
    assert "(the last one marked with *): val_accuracy" in out
    assert "test accuracy" in out
    assert "95 % interval" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--zzz", "3"],
            "zzz: no such option. The options are: accumulate",
        ),
        (["train", "--batchsize", "3"], "Did you mean batch_size?"),
        (["train", "--lr", "0", "--split", "x"], "2 problems in the options"),
        (["train", "--config", "gone.yaml"], "config=gone.yaml: cannot be read"),
        (["train", "--model", "resnet5"], "no such architecture. Did you mean resnet50?"),
        (["train", "--model", "zzz"], "model=zzz: no such architecture. Use cnn, effnet"),
        (["train", "--data", "gone", "--model", "cnn"], "data=gone: no such file or folder"),
        (["train", "--device", "tpu"], "device=tpu: must be auto, cpu, cuda"),
        (["train", "--nesterov"], "nesterov: needs a value, as in --nesterov true"),
        (["train", "--nesterov", "--lr", "3"], "nesterov: needs a value, as in --nesterov true"),
        (["train", "-P", "lr=3"], "P: is an option of mlflow run; here write --name value"),
        (["train", "--epochs"], "epochs: needs a value, as in --epochs VALUE"),
        (["predict", "--top_k"], "top_k: needs a value, as in --top_k VALUE"),
        (["train", "shop"], "shop: belongs to no option: write --data shop"),
        (["compare", "a,b"], "a,b: belongs to no option: write --runs a,b"),
        (["compare", "a", "b"], "a b: belongs to no option: write --runs a,b"),
        (["clear-cache", "now"], "now: belongs to no option\n"),
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


@pytest.mark.slow
def test_sample_prints_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "shop"
    assert run("sample", "--px", "64", "--out", str(folder)) == 0
    assert capsys.readouterr().out.strip().endswith(str(folder))
    assert (folder / "train.csv").is_file()


def test_clear_cache_says_what_it_freed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("clear-cache") == 0
    assert "MiB freed in" in capsys.readouterr().out


@pytest.mark.slow
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
    assert list(runs["status"]) == ["FINISHED", "FINISHED"], "a mistake opens no run"
    children = runs[runs["tags.mlflow.parentRunId"].notna()]
    assert set(children["tags.mlflow.runName"]) == {"good"}


def test_python_m_is_the_same_program() -> None:
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
