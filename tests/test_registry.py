"""The registry: which model becomes the champion, and errors of its requests."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from small_run import SmallRun, small_run

from shopee_mlflow import cli, train
from shopee_mlflow.config import TrainConfig, resolve
from shopee_mlflow.errors import ConfigError, TrackingError
from shopee_mlflow.tracking import flavor, registry
from shopee_mlflow.tracking.registry import load_classifier, register_model
from shopee_mlflow.tracking.runs import open_run
from shopee_mlflow.tracking.store import quieten


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def name() -> str:
    """Of a registered model that no other test knows."""
    return f"classifier-{uuid.uuid4().hex[:8]}"


def logged(run: SmallRun, accuracy: float | None, digest: str = "d1") -> str:
    """A run with the same model and other results."""
    with open_run("stand-in", "registry") as log:
        scores = {} if accuracy is None else {"test_accuracy": accuracy}
        log.log_metrics(scores)
        log.log_tags({"data_digest": digest, "git_commit": "abc", "classes": "3"})
        log.log_model(run.result.model, scores)
    return log.run_id


def aliases(name: str) -> dict[str, str]:
    return {k: str(v) for k, v in MlflowClient().get_registered_model(name).aliases.items()}


def test_the_first_model_is_the_champion(run: SmallRun, name: str) -> None:
    result = register_model(run.result.run_id, name)
    assert (result.alias, result.version) == ("champion", "1")
    assert result.reason == "there was no champion"
    assert aliases(name) == {"champion": "1"}
    version = MlflowClient().get_model_version(name, "1")
    truth = mlflow.get_run(run.result.run_id).data
    for tag in ("data_digest", "git_commit", "classes"):
        assert version.tags[tag] == truth.tags[tag]
    for metric in ("test_accuracy", "test_accuracy_low", "best_val_accuracy"):
        assert float(version.tags[metric]) == truth.metrics[metric]
    assert version.description.startswith(truth.tags["mlflow.note.content"])
    for words in (
        "- output: 3 label groups",
        "- alias when registered: there was no",
        "report.html](#/",
    ):
        assert words in version.description
    card = MlflowClient().get_registered_model(name).description
    assert f"models:/{name}@champion" in card
    loaded = mlflow.pytorch.load_model(result.uri)
    assert loaded.classes == run.result.dataset.classes


def test_a_persons_description_of_the_model_stays(run: SmallRun, name: str) -> None:
    MlflowClient().create_registered_model(name, description="ours")
    register_model(run.result.run_id, name)
    assert MlflowClient().get_registered_model(name).description == "ours"


@pytest.mark.slow
def test_the_champion_moves_for_a_better_one_only(run: SmallRun, name: str) -> None:
    register_model(logged(run, 0.80), name)
    better = register_model(logged(run, 0.85), name)
    assert better.alias == "champion"
    assert "test accuracy 85.0% is higher than 80.0% of version 1" in better.reason
    assert aliases(name) == {"champion": "2"}
    for accuracy in (0.85, 0.7):
        result = register_model(logged(run, accuracy), name)
        assert result.alias == "challenger"
        assert f"{accuracy:.1%} is not higher than 85.0% of the champion" in result.reason
        assert "promote=true" in result.reason
        assert aliases(name) == {"champion": "2", "challenger": result.version}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracy", "digest", "reason"),
    [
        (0.99, "d2", "their splits differ (data_digest d2 and d1)"),
        (None, "d1", "one of them has no test accuracy"),
    ],
)
def test_what_cannot_be_compared_is_a_challenger(
    run: SmallRun, name: str, accuracy: float | None, digest: str, reason: str
) -> None:
    register_model(logged(run, 0.8), name)
    result = register_model(logged(run, accuracy, digest), name)
    assert result.alias == "challenger"
    assert reason in result.reason
    assert "promote=true" in result.reason
    assert aliases(name)["champion"] == "1"


@pytest.mark.slow
def test_a_person_may_insist(run: SmallRun, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    register_model(logged(run, 0.8), name)
    worse = logged(run, 0.1, "d2")
    cli.main(["register", "--run", worse, "--name", name, "--promote", "true"])
    out = capsys.readouterr().out
    reason = "promote=true; the champion was version 1"
    assert f"registered {name} version 2 as champion: {reason}" in out
    assert f"mlflow.pytorch.load_model('models:/{name}@champion')" in out
    assert aliases(name) == {"champion": "2"}


def test_a_run_without_a_model_and_an_unknown_run_are_refused(name: str) -> None:
    with open_run("empty", "registry") as log:
        pass
    with pytest.raises(TrackingError, match=f"run {log.run_id} has logged no model"):
        register_model(log.run_id, name)
    with pytest.raises(TrackingError, match="^run=0000: no such run in sqlite:.*not found.*32 hex"):
        register_model("0000", name)
    with pytest.raises(MlflowException, match="not found"):
        MlflowClient().get_registered_model(name)


def test_a_model_of_another_kind_is_refused(name: str) -> None:
    with mlflow.start_run() as other:
        info = mlflow.pytorch.log_model(
            torch.nn.Linear(1, 1),
            name="model",
            serialization_format="pickle",
            pip_requirements=["torch"],
        )
    with pytest.raises(TrackingError, match="not a model of this project"):
        load_classifier(info.model_uri)
    with pytest.raises(TrackingError, match="not a model of this project"):
        register_model(other.info.run_id, name)
    assert not MlflowClient().search_registered_models(f"name = '{name}'")


@pytest.mark.parametrize(
    "uri",
    [
        "models:/no-such-name@champion",
        "models:/{name}@no-such-alias",
        "models:/{name}/99",
        "models:/m-00000000000000000000000000000000",
        "runs:/00000000000000000000000000000000/model",
        "no/such/folder",
        "nonsense:/x",
    ],
)
def test_an_unknown_model_is_an_error_that_names_it(run: SmallRun, name: str, uri: str) -> None:
    register_model(run.result.run_id, name)
    asked = uri.format(name=name)
    words = "no such folder" if uri == "no/such/folder" else "cannot be loaded from sqlite"
    with pytest.raises(TrackingError, match=words) as caught:
        load_classifier(asked)
    assert f"model={asked}:" in str(caught.value)
    assert "models:/shopee-classifier@champion" in str(caught.value)


def test_the_id_of_a_run_is_no_model_and_its_model_is_named(run: SmallRun) -> None:
    run_id = run.result.run_id
    with pytest.raises(TrackingError, match=f"the model of this run is runs:/{run_id}/model"):
        load_classifier(run_id)


def test_a_damaged_model_is_an_error(run: SmallRun, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts(run.uri), folder)
    weights = folder / "data" / "model.pth"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(TrackingError, match="is damaged"):
        load_classifier(str(folder))


def test_pickle_forbidden_is_an_error_that_says_so(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    with pytest.raises(TrackingError, match="MLflow refuses to load it.*pickle"):
        load_classifier(run.uri)


@pytest.mark.slow
def test_a_model_that_changed_on_its_way_never_becomes_champion(
    run: SmallRun, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_model(logged(run, 0.5), name)
    better = logged(run, 0.9)
    right = flavor._probe_logits
    # The model in the run is as it was; what the registry gives back is not.
    answers = iter([right, lambda model, side: [[9.0] * 3] * 2])
    monkeypatch.setattr(flavor, "_probe_logits", lambda model, side: next(answers)(model, side))
    with pytest.raises(TrackingError, match="computes other logits than before it was saved"):
        register_model(better, name)
    assert aliases(name) == {"champion": "1"}
    refused = MlflowClient().get_model_version(name, "2")
    assert "other logits" in refused.tags["refused"]


@pytest.mark.fault
@pytest.mark.slow
def test_a_registry_that_fails_in_the_middle_loses_nothing(
    run: SmallRun, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_model(logged(run, 0.5), name)
    better = logged(run, 0.9)

    def refuse(*args: Any) -> None:
        raise MlflowException("the server has gone away.")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", refuse)
        with pytest.raises(TrackingError, match="gone away. No alias has moved") as caught:
            register_model(better, name)
    assert better in str(caught.value)
    assert aliases(name) == {"champion": "1"}
    assert register_model(better, name).alias == "champion"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_silent_server_is_told_of_in_time(
    silent_server: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    for refused in (
        lambda: load_classifier(f"models:/{name}@champion"),
        lambda: register_model("0" * 32, name),
    ):
        started = time.monotonic()
        with pytest.raises(TrackingError, match="imed out"):
            refused()
        assert time.monotonic() - started < 20


def test_bounds_are_set_only_where_the_user_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    # Set first, so that it is put back as it was.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    quieten()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) < 7


@pytest.mark.slow
def test_training_registers_when_its_run_has_ended(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = []

    def note(run_id: str, *args: Any, **options: Any) -> registry.Registration:
        states.append(mlflow.get_run(run_id).info.status)
        return register_model(run_id, *args, **options)

    monkeypatch.setattr("shopee_mlflow.verbs.register.register_model", note)
    options = {"data": str(run.shop), "model": "cnn", "image_size": 32, "epochs": 1}
    result = train(resolve(TrainConfig, {**options, "register": "true", "promote": "true"}))
    assert states == ["FINISHED"]
    version = registry.find_version(MlflowClient(), registry.REGISTERED_NAME, "champion")
    assert version is not None
    assert version.run_id == result.run_id
    assert "registered shopee-classifier version" in capsys.readouterr().out


def test_promote_without_register_is_refused() -> None:
    with pytest.raises(ConfigError, match="promote=true: needs register=true"):
        resolve(TrainConfig, {"promote": "true"})
