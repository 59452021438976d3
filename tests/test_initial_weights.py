"""The option ``weights``: models of the store, folders, and label groups that both models know."""

from __future__ import annotations

import logging
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from small_run import SmallRun, small_run

from shopee_mlflow import TrainConfig, build_model, train
from shopee_mlflow.config import resolve
from shopee_mlflow.errors import ConfigError, ModelError
from shopee_mlflow.modeling.initial_weights import InitialWeights, weights_of_model
from shopee_mlflow.modeling.models import ProductClassifier
from shopee_mlflow.tracking.flavor import save_in_folder, save_model
from shopee_mlflow.tracking.registry import CHALLENGER, CHAMPION, decide
from shopee_mlflow.tracking.runs import open_run
from shopee_mlflow.training.job import log_weights_run
from shopee_mlflow.training.seen_photos import find_seen
from shopee_mlflow.training.weights_source import initial_weights

SMALL = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.getbasetemp())


def head_rows(model: ProductClassifier) -> dict[str, torch.Tensor]:
    """Label group -> its row of the last layer, bias included."""
    *_, weight, bias = model.head.parameters()
    rows = torch.cat([weight, bias[:, None]], dim=1).detach()
    return dict(zip(model.classes, rows, strict=True))


@pytest.fixture(scope="module")
def trained() -> ProductClassifier:
    torch.manual_seed(4)
    return build_model(SMALL, ["a", "b", "c"], 64)


@pytest.mark.parametrize(
    "classes", [["c", "a", "b"], ["b", "new", "a"], ["b"], ["x", "a", "y", "z"], ["x", "y"]]
)
def test_known_label_groups_keep_their_rows_of_the_head(
    trained: ProductClassifier, caplog: pytest.LogCaptureFixture, classes: list[str]
) -> None:
    weights = weights_of_model(trained, "models:/shop/1")
    torch.manual_seed(8)
    fresh = head_rows(build_model(SMALL, classes, 64))
    torch.manual_seed(8)
    model = build_model(SMALL, classes, 64, weights)
    before, after = head_rows(trained), head_rows(model)
    for name in classes:
        torch.testing.assert_close(after[name], before.get(name, fresh[name]))
    torch.testing.assert_close(model.backbone.state_dict(), trained.backbone.state_dict())
    known = len(set(classes) & set("abc"))
    assert f"{known} of {len(classes)} label groups keep their row of the head" in caplog.text


def test_equal_label_groups_give_an_equal_model_without_a_word(
    trained: ProductClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    again = build_model(SMALL, ["a", "b", "c"], 64, weights_of_model(trained, "here"))
    torch.testing.assert_close(again.state_dict(), trained.state_dict())
    assert caplog.text == ""


def test_a_model_of_another_architecture_is_named(trained: ProductClassifier) -> None:
    weights = weights_of_model(trained, "models:/shop/1")
    with pytest.raises(ModelError, match=f"architecture {SMALL}, not resnet18. Set model={SMALL}"):
        build_model("resnet18", ["a"], 64, weights)


def test_the_same_architecture_has_several_names(trained: ProductClassifier) -> None:
    weights = weights_of_model(trained, "here")
    again = build_model(f"{SMALL}_pretrained", ["a", "b", "c"], 64, weights)
    torch.testing.assert_close(again.state_dict(), trained.state_dict())


@pytest.mark.slow
def test_a_run_a_model_uri_a_logged_model_and_a_folder_name_the_same_weights(
    run: SmallRun, tmp_path: Path
) -> None:
    save_in_folder(run.result.model, tmp_path / "folder")
    names = [run.result.run_id, f"runs:/{run.result.run_id}", run.uri, run.result.model_id]
    loaded = [initial_weights(str(name)) for name in (*names, tmp_path / "folder")]
    assert all(isinstance(each, InitialWeights) for each in loaded)
    found = [each for each in loaded if each]
    assert len({each.digest() for each in found}) == 1
    assert {tuple(each.classes) for each in found} == {tuple(run.result.dataset.classes)}
    assert [each.run_id for each in found] == [run.result.run_id] * 4 + [None]
    assert initial_weights("auto") is None


@pytest.mark.slow
def test_a_program_cannot_be_trained(trained: ProductClassifier, tmp_path: Path) -> None:
    from mlflow.models import Model

    save_model(str(tmp_path / "pt2"), Model(), trained, "pt2")
    with pytest.raises(ModelError, match="which cannot be trained"):
        initial_weights(str(tmp_path / "pt2"))


@pytest.mark.parametrize("name", ["models:/nothing@champion", "0" * 32, f"m-{'0' * 32}"])
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match=f"weights={name}: cannot be used"):
        initial_weights(name)


def test_a_wrong_name_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    TrainConfig(weights="models:/shopee-classifier@champion")
    TrainConfig(weights="0123456789abcdef" * 2)
    with pytest.raises(ConfigError, match=r"no such file.*or by the id of their run"):
        TrainConfig(weights=str(tmp_path / "gone.pth"))
    with pytest.raises(ConfigError, match="holds no MLmodel file"):
        TrainConfig(weights=str(tmp_path))


def test_digests_differ_with_any_value(trained: ProductClassifier) -> None:
    one = weights_of_model(trained, "here")
    changed = {name: value.clone() for name, value in one.state.items()}
    key = next(name for name, value in changed.items() if value.is_floating_point())
    changed[key].view(-1)[0] += 1
    assert InitialWeights(changed, "here").digest() != one.digest()


def test_what_a_checkpoint_held_is_said_once(
    trained: ProductClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {f"module.{key}": value for key, value in trained.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "lightning.ckpt")
    with caplog.at_level(logging.INFO):
        again = build_model(SMALL, ["a", "b", "c"], 64, tmp_path / "lightning.ckpt")
    torch.testing.assert_close(again.state_dict(), trained.state_dict())
    assert caplog.text.count("read from 'state_dict'; prefix 'module.' removed") == 1


def options_of(run: SmallRun, **changed: object) -> dict[str, str]:
    options = {"data": run.shop, "model": "cnn", "image_size": 32, "epochs": 1, "batch_size": 8}
    return {name: str(value) for name, value in {**options, **changed}.items()}


@pytest.mark.fault
@pytest.mark.slow
def test_test_photos_that_the_weights_have_seen_are_counted_over_all_earlier_runs(
    run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_of(run, weights=run.result.run_id)
    same = train(resolve(TrainConfig, options))
    logged = mlflow.get_run(same.run_id).data.tags
    assert logged["weights_run"] == run.result.run_id
    assert logged["test_photos_seen_by_weights"] == "0"
    assert "WARNING" not in capsys.readouterr().out

    splits = run.result.dataset.frame.set_index("image")["split"]
    other = train(resolve(TrainConfig, {**options, "split_seed": "5"}))
    tests = other.dataset.frame.loc[other.dataset.rows("test"), "image"]
    seen = int((splits[tests] != "test").sum())
    assert seen > 0
    assert f"{seen} of {len(tests)} test photos were in the train or val split" in (
        capsys.readouterr().out
    )
    again = train(resolve(TrainConfig, {**options, "weights": other.run_id, "split_seed": "5"}))
    assert mlflow.get_run(again.run_id).data.tags["test_photos_seen_by_weights"] == str(seen)

    facts = {"data_digest": "d", "test_accuracy": "0.1"}
    tags = [ModelVersionTag(name, value) for name, value in facts.items()]
    champion, candidate = ModelVersion("shop", "1", 0, tags=tags), {**facts, "test_accuracy": "0.9"}
    assert decide(candidate, champion, promote=False)[0] == CHAMPION
    alias, reason = decide({**candidate, "test_photos_seen_by_weights": "3"}, champion, False)
    assert alias == CHALLENGER
    assert "have seen 3 of the test photos" in reason
    alias, reason = decide({**candidate, "test_photos_seen_by_weights": "unknown"}, champion, False)
    assert alias == CHALLENGER
    assert "it is unknown whether the weights" in reason
    high = [*tags, ModelVersionTag("test_photos_seen_by_weights", "3")]
    alias, reason = decide(candidate, ModelVersion("shop", "1", 0, tags=high), promote=False)
    assert alias == CHALLENGER
    assert "of the champion (version 1), the test accuracy is not comparable" in reason
    alias, reason = decide({**candidate, "test_photos_seen_by_weights": "3"}, None, False)
    assert (alias, "have seen 3 of the test photos" in reason) == (CHAMPION, True)


def test_an_earlier_run_that_is_gone_hides_no_photo_of_the_later_one(
    run: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run.result.dataset
    train_photos = data.frame.loc[data.rows("train")]
    client = mlflow.MlflowClient()
    client.set_tag(run.result.run_id, "weights_run", "0" * 32)
    try:
        seen = find_seen(train_photos, run.result.run_id)
        assert seen.mask.all()
        assert "0" * 32 in seen.unknown
        with open_run("another") as log:
            log_weights_run(log, train_photos, "0" * 32)
    finally:
        client.delete_tag(run.result.run_id, "weights_run")
    logged = mlflow.get_run(log.run_id).data.tags
    assert logged["test_photos_seen_by_weights"] == "unknown"
    assert "WARNING: it cannot be checked whether run 000" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["uri", "run"])
@pytest.mark.slow
def test_a_model_to_start_from_is_loaded_once(
    run: SmallRun, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Loading may download gigabytes."""
    loaded, load = [], mlflow.pytorch.load_model

    def count(uri: str, *args: object, **kwargs: object) -> torch.nn.Module:
        loaded.append(uri)
        return load(uri, *args, **kwargs)

    weights = run.uri if name == "uri" else run.result.run_id
    monkeypatch.setattr(mlflow.pytorch, "load_model", count)
    train(resolve(TrainConfig, options_of(run, weights=weights, register="false")))
    assert len(loaded) == 1
