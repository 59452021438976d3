"""Tracking and artifact stores that fail, are created, or may only be read."""

from __future__ import annotations

import errno
import os
import re
import sys
import tempfile
import threading
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import MakeCatalog
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from small_run import SmallRun, small_run
from warm_process import WarmProcess

from shopee_mlflow import cli, train
from shopee_mlflow.config import TrainConfig, resolve
from shopee_mlflow.errors import ReadOnlyStoreError, TrackingError
from shopee_mlflow.tracking import registry, store
from shopee_mlflow.tracking.finding import read_manifest, unquoted
from shopee_mlflow.tracking.runs import open_run, open_run_if_writable

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


class ExpiredTokenErrorError(Exception):
    """An error of an artifact store's own package."""


ExpiredTokenErrorError.__module__ = "botocore.exceptions"


@pytest.fixture
def no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "1")  # so that it is restored
    monkeypatch.delenv(TIMEOUT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


@pytest.mark.usefixtures("no_timeout")
def test_transfers_have_the_time_that_mlflow_allows() -> None:
    store.quieten()
    assert mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 20
    with store.artifact_errors("a file"):
        assert mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 120
    assert mlflow.environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 20


@pytest.mark.usefixtures("no_timeout")
@pytest.mark.parametrize("seconds", ["20", "300"])
def test_a_timeout_set_by_the_user_holds_for_transfers(
    seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIMEOUT, seconds)
    store.quieten()
    with store.artifact_errors("a file"):
        assert os.environ[TIMEOUT] == seconds
    assert os.environ[TIMEOUT] == seconds


@pytest.mark.fault
@pytest.mark.parametrize(
    "error", [ExpiredTokenErrorError("The token has expired.\nmore"), ModuleNotFoundError("boto3")]
)
def test_errors_of_other_packages_become_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(*_: object) -> None:
        raise error

    monkeypatch.setattr(MlflowClient, "log_artifact", upload)

    def log_a_file() -> None:
        with open_run("fails") as log:
            log.log_text("text", "file.txt")

    with pytest.raises(TrackingError) as caught:
        log_a_file()
    message = str(caught.value)
    assert message.endswith(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    assert "\n" not in message


def test_our_own_mistakes_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), store.artifact_errors("a file"):
        raise ZeroDivisionError


@pytest.mark.fault
def test_an_artifact_folder_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "artifacts"
    MlflowClient().create_experiment("unwritable", artifact_location=place.as_uri())
    begun: list[str] = []

    def begin() -> None:
        with open_run("fails", "unwritable") as log:
            begun.append(log.run_id)

    with pytest.raises(TrackingError, match=f"artifacts .* in {place}.*cannot be written"):
        begin()
    assert begun == []
    (found,) = mlflow.search_runs(experiment_names=["unwritable"], output_format="list")
    assert found.info.status == "FAILED"


@pytest.mark.fault
@pytest.mark.parametrize("command", ["train", "cross-validate", "tune"])
def test_artifacts_are_checked_before_the_photos_are_read(
    command: str,
    tmp_path: Path,
    make_catalog: MakeCatalog,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "artifacts"
    experiment = f"unwritable-{command}"
    MlflowClient().create_experiment(experiment, artifact_location=place.as_uri())
    options = ["--data", str(make_catalog()), "--experiment", experiment, "--model", "cnn"]
    with pytest.raises(SystemExit) as ended:
        cli.main([command, *options])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert f"stored in {place}, which cannot be written" in printed.err
    assert "reading the catalogue" not in printed.out + printed.err
    assert mlflow.search_runs(experiment_names=[experiment], output_format="list") == []


@pytest.mark.fault
def test_artifacts_of_an_experiment_that_is_yet_to_be_created_are_checked(
    tmp_path: Path, make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_catalog()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    config = resolve(TrainConfig, {"data": str(data), "experiment": "new", "model": "cnn"})
    with pytest.raises(TrackingError, match=f"in {tmp_path}/mlruns, which cannot be written"):
        train(config)
    assert mlflow.get_experiment_by_name("new") is None


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (MlflowException("Failed to copy: [Errno 28] No space left on device"), True),
        (chained(MlflowException("the code cannot be copied"), FULL), True),
        (chained(RuntimeError("unexpected pos 704"), RuntimeError("iostream error")), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.EFBIG, "File too large"), False),
        (ValueError("iostream error"), False),
    ],
    ids=["disk", "quota", "mlflow", "cause", "torch", "permission", "file", "value"],
)
def test_a_full_disk_is_one_sentence_with_the_temporary_folder(
    error: Exception, full: bool
) -> None:
    expected = TrackingError if full else type(error)
    with pytest.raises(expected) as caught, open_run("full"):
        raise error
    said = f"No space left on (the disk|a disk of .* server)\\. .* in {tempfile.gettempdir()};"
    assert bool(re.match(said, str(caught.value))) == full


@pytest.mark.fault
def test_a_full_disk_outside_a_run_ends_the_command_in_words(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/photos/cache")

    data = str(make_catalog())
    monkeypatch.setattr("shopee_mlflow.training.job.load_dataset", refuse)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--data", data, "--model", "cnn"])
    assert ended.value.code == 2
    assert "Error: No space left on the disk of /photos/cache. " in capsys.readouterr().err


@pytest.mark.fault
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_weights_that_do_not_fit_on_the_disk_raise_the_systems_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a path, torch raises an error of its own."""
    with Path("/dev/full").open("wb", buffering=0) as stream:
        monkeypatch.setattr(Path, "open", lambda *_: stream)
        with pytest.raises(TrackingError, match="No space left"), open_run("full") as log:
            log.log_weights({"logits": torch.zeros(1000)}, "logits.pt")


@pytest.mark.fault
def test_a_missing_package_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(TrackingError, match=r"s3://bucket/x, .* pip install boto3"):
        store.check_artifacts("s3://bucket/x")
    store.check_artifacts("mlflow-artifacts:/1/2")


def test_a_read_only_store_is_one_sentence() -> None:
    text = "(sqlite3.OperationalError) attempt to write a readonly database\n[SQL: INSERT ...]"
    message = str(store.store_error(MlflowException(text)))
    assert message.endswith("can read it, but not write to it")
    assert "\n" not in message


@pytest.mark.fault
@pytest.mark.parametrize("code", [None, PERMISSION_DENIED])
def test_an_evaluation_needs_no_right_to_write(
    code: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = "you may not" if code else "attempt to write a readonly database"

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException(text, error_code=code) if code else MlflowException(text)

    monkeypatch.setattr(mlflow, "start_run", refuse)
    with open_run_if_writable("evaluate", "shopee") as log:
        assert log.run_id == "none"
        log.log_metrics({"test_accuracy": 0.5})
    assert "not logged" in caplog.text
    with pytest.raises(ReadOnlyStoreError), open_run("trains"):
        pass


@pytest.mark.fault
def test_the_artifact_store_is_named_when_it_fails_and_not_the_tracking_store() -> None:
    class ExpiredTokenError(Exception):
        """As of a package of an artifact store."""

    ExpiredTokenError.__module__ = "boto3.exceptions"
    with (
        pytest.raises(MlflowException) as caught,
        store.artifact_errors("a.csv could not be stored"),
    ):
        raise ExpiredTokenError("the token has expired\nof the bucket")
    assert str(store.store_error(caught.value)) == (
        "The artifact store failed: a.csv could not be stored: "
        "ExpiredTokenError: the token has expired"
    )


def test_a_store_that_fails_in_another_way_is_no_read_only_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MlflowException("connection refused")

    monkeypatch.setattr(mlflow, "start_run", fail)
    with pytest.raises(TrackingError, match="refused"), open_run_if_writable("e", "shopee"):
        pass


def test_the_statement_of_a_database_error_is_not_shown() -> None:
    error = MlflowException("(OperationalError) no disk\n[SQL: INSERT ...]\n(Background ...)")
    assert str(store.store_error(error)).endswith("failed: (OperationalError) no disk")


def measured() -> bool:
    """Whether MLflow is measuring the machine for a run now."""
    return any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("variable", "measures"), [(None, False), ("false", False), ("true", True)]
)
def test_system_metrics_are_off_unless_mlflows_variable_is_set(
    variable: str | None, measures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    if variable:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", variable)
    with open_run("short"):
        assert measured() == measures


@pytest.mark.fault
def test_a_parameter_of_another_tool_may_hold_an_apostrophe(run: SmallRun) -> None:
    remark = "the client's photos"
    MlflowClient().log_param(run.result.run_id, "remark", remark)
    _, params = read_manifest(run.result.run_id)
    assert params["remark"] == remark
    assert params["model"] == "cnn"
    assert unquoted("'a b'") == "a b"


@pytest.mark.fault
def test_a_path_that_is_no_logged_model_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "film.mp4").write_bytes(b"film")
    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", lambda *_, **__: None)
    for uri, said in (
        ("holiday", "the folder has no file MLmodel"),
        (f"file://{tmp_path}/holiday", "the folder has no file MLmodel"),
        ("holiday/film.mp4", "it is no folder of a logged model"),
        ("/dev/zero", "it is no folder of a logged model"),
        ("nowhere", "there is no such folder"),
    ):
        with pytest.raises(TrackingError, match=f"model={uri}: {said}"):
            registry.load_classifier(uri)


@pytest.mark.fault
@pytest.mark.slow
def test_loading_a_model_leaves_no_copy_and_writes_nothing_into_the_store(
    run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "no-copies"
    registry.register_model(run.result.run_id, name)
    model_folder = Path(mlflow.artifacts.download_artifacts(run.uri))
    before = sorted(model_folder.rglob("*"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    local = LocalArtifactRepository.download_artifacts

    def download(
        self: LocalArtifactRepository, artifact_path: str, dst_path: str | None = None
    ) -> str:
        """Copy the store's files, as if they were on a server."""
        is_copy = str(tmp_path) in self._artifact_dir
        function = local if is_copy else ArtifactRepository.download_artifacts
        return str(function(self, artifact_path, dst_path))

    monkeypatch.setattr(LocalArtifactRepository, "download_artifacts", download)
    for uri in (run.uri, f"models:/{name}@champion"):
        assert registry.load_classifier(uri).image_size == 32
    registry.register_model(run.result.run_id, name)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(model_folder.rglob("*")) == before


OPEN = """
from shopee_mlflow.tracking.runs import open_run
with open_run("first") as log:
    print(log.run_id)
"""


@pytest.mark.fault
@pytest.mark.slow
def test_three_first_runs_create_a_database_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/new.db"
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    (tmp_path / "first_run.py").write_text(OPEN)
    started = [WarmProcess("first_run", env=env, cwd=tmp_path) for _ in range(3)]
    said = [process.communicate(60)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = mlflow.search_runs(experiment_names=["shopee"], output_format="list")
    assert [one.info.status for one in found] == ["FINISHED"] * 3


@pytest.mark.fault
@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (
            "postgresql+psycopg2://ann:S3CRET@h/x",
            r"ann:\*\*\*@h/x needs the Python package psycopg2",
        ),
        ("mysql+nothing://ann:S3CRET@h/x", r"ann:\*\*\*@h/x is no valid address"),
        ("mssql", "The tracking store mssql is no valid address"),
    ],
)
def test_a_database_without_its_package_is_an_error_in_words(
    uri: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=said) as caught, open_run("nowhere"):
        pass
    assert "S3CRET" not in str(caught.value)


@pytest.mark.fault
def test_a_lock_that_cannot_be_created_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_connected", set())
    lock = tmp_path / "mlflow.db.lock"
    database = mlflow.get_tracking_uri().removeprefix("sqlite:///")
    (tmp_path / "mlflow.db").hardlink_to(database)
    lock.symlink_to(tmp_path / "gone" / "x.lock")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    store.connect()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("folder", "folder is not a readable file"),
        pytest.param(
            "/proc/mlflow.db",
            "No such file",
            marks=pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc"),
        ),
    ],
)
def test_a_database_that_cannot_be_created_is_an_error_at_once(
    file: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / file}")
    with pytest.raises(TrackingError, match=said), open_run("nowhere"):
        pass


@pytest.mark.fault
@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_a_store_in_memory_is_told_to_end_with_the_process(
    uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(store, "_connected", set())
    store.connect()
    assert "is in memory: runs are lost with this process" in caplog.text
    assert list(tmp_path.iterdir()) == []
