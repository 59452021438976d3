"""Options: one spelling everywhere, and all problems reported at once."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import pytest

from shopee_mlflow.analysis_config import ExploreConfig, MatchConfig
from shopee_mlflow.cache_folder import cache_folder
from shopee_mlflow.config import CrossValidateConfig, TrainConfig, TuneConfig, as_params, resolve
from shopee_mlflow.data.dataset import load_dataset
from shopee_mlflow.data.photo_sources import find_photos
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.errors import CatalogError, ConfigError
from shopee_mlflow.options import expand_path


def test_defaults_are_allowed_by_their_own_rules() -> None:
    given = {name: value for name, value in as_params(TrainConfig()).items() if name != "config"}
    assert resolve(TrainConfig, given) == TrainConfig()


def test_the_command_line_goes_before_the_file_and_that_before_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.5\nepochs: 7\nmodel: cnn\n")
    config = resolve(TrainConfig, {"config": str(file), "epochs": "9"})
    assert (config.lr, config.epochs, config.model, config.batch_size) == (0.5, 9, "cnn", 32)
    assert config.config == str(file)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("momentum: 1.0\nlernrate: 3\n")
    given = {"config": str(file), "lr": "-1", "epochs": "many", "split": "fair", "augment": "maybe"}
    with pytest.raises(ConfigError) as caught:
        resolve(TrainConfig, given)
    text = str(caught.value)
    assert "6 problems" in text
    assert f"momentum=1.0: must be a number at least 0 and below 1 (in {file})" in text
    assert "lernrate: no such option." in text
    assert "lr=-1: must be a number above 0 and at most 100" in text
    assert "epochs=many: must be a whole number at least 1" in text
    assert "split=fair: must be one of leak_free, random" in text
    assert "augment=maybe: must be one of none, original, flip, crop" in text


def test_an_unknown_option_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match="batchsize: no such option. Did you mean batch_size?"):
        resolve(TrainConfig, {"batchsize": "3"})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 0.001),
        ("epochs", "50", 50),
        ("epochs", "50.0", 50),
        ("tta", "False", False),
        ("tta", "yes", True),
        ("model", " cnn ", "cnn"),
        ("seed", 3, 3),
        ("cache", False, False),
    ],
)
def test_values_of_every_kind_are_read(name: str, text: object, value: object) -> None:
    assert getattr(resolve(TrainConfig, {name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("epochs", "2.5"),
        ("epochs", True),
        ("epochs", None),
        ("epochs", "nan"),
        ("lr", "inf"),
        ("lr", "nan"),
        ("lr", [0.1, 0.2]),
        ("model", ""),
        ("seed", "-1"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(name: str, text: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.*must be"):
        resolve(TrainConfig, {name: text})


def test_a_number_without_a_point_in_yaml_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "exp.yaml"
    file.write_text("lr: 1e-3\n")  # YAML 1.1 reads this as text
    assert resolve(TrainConfig, {"config": str(file)}).lr == 0.001


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "must hold lines of 'option: value'"),
        ("a: [1", "is not valid YAML"),
        ("config: other.yaml\n", "may not name another config file"),
        ("model: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_a_clear_error(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve(TrainConfig, {"config": str(file)})


def alias_bomb(levels: int) -> str:
    """Each line names the one before ten times: 10 ** levels values in all."""
    lines = ["x0: &x0 [" + ",".join("l" * 10) + "]"]
    for level in range(1, levels):
        lines.append(f"x{level}: &x{level} [" + ",".join([f"*x{level - 1}"] * 10) + "]")
    return "\n".join([*lines, f"lr: *x{levels - 1}", ""])


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (alias_bomb(9), r"is not valid YAML: aliases \(\*x0\) are not supported"),
        ("lr: &a [*a]\n", "aliases"),
        ("base: &b {lr: 1}\n<<: *b\n", "aliases"),
        ("lr: " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("# " + "x" * 70_000 + "\nlr: 1\n", "is larger than 65,536 bytes"),
        ("seed: " + "9" * 5000, "is not valid YAML"),
        ("seed: 2026-02-31", "is not valid YAML"),
        ("lr: 1\0", "is not valid YAML"),
    ],
    ids=["bomb", "itself", "merge", "deep", "large", "digits", "date", "nul"],
)
@pytest.mark.slow
def test_a_hostile_file_is_a_short_error(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(TrainConfig, {"config": str(file)})
    assert len(str(caught.value)) < 1000


def test_an_anchor_that_nothing_repeats_is_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "anchor.yaml"
    file.write_text("lr: &rate 0.5\n")
    assert resolve(TrainConfig, {"config": str(file)}).lr == 0.5


def test_a_missing_file_says_from_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.yaml: cannot be read .* relative to"):
        resolve(TrainConfig, {"config": "nowhere.yaml"})


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="warmup_epochs=9.0: must be at most epochs=3"):
        resolve(TrainConfig, {"epochs": 3, "warmup_epochs": 9})
    with pytest.raises(ConfigError, match="weights=gone.pth: no such file"):
        resolve(TrainConfig, {"weights": "gone.pth"})
    with pytest.raises(ConfigError, match="the built-in sample has its own"):
        resolve(DataConfig, {"images": "photos"})


def test_params_have_one_spelling() -> None:
    params = as_params(TrainConfig(lr=1e-3, augment="none"))
    assert params["lr"] == "0.001"
    assert params["augment"] == "none"
    assert params["weight_decay"] == "0.0001"
    assert list(params) == [field.name for field in dataclasses.fields(TrainConfig)]


def test_the_contract_names_are_there() -> None:
    contract = (
        "model data largest_groups split image_size augment epochs batch_size lr momentum "
        "weight_decay freeze weights seed device config"
    )
    assert set(contract.split()) <= set(as_params(TrainConfig()))


def test_python_is_checked_like_the_command_line() -> None:
    with pytest.raises(ConfigError, match="2 problems") as caught:
        TrainConfig(split="leak-free", epochs=0)
    assert "split=leak-free: must be one of leak_free, random" in str(caught.value)


@pytest.mark.parametrize(
    "cls",
    [DataConfig, ExploreConfig, MatchConfig, TrainConfig, TuneConfig, CrossValidateConfig],
)
def test_an_unknown_option_in_python_names_the_nearest(cls: type[DataConfig]) -> None:
    config = cls(workers=5)
    for unknown in (lambda: cls(largest_group=5), lambda: dataclasses.replace(config, splits=1)):
        with pytest.raises(ConfigError, match=r"Did you mean (largest_groups|split)\?"):
            unknown()
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_an_option_goes_before_a_synonym_of_another() -> None:
    with pytest.raises(ConfigError, match=r"fold: no such option\. Did you mean folds\?"):
        CrossValidateConfig(fold=3)


@pytest.mark.fault
def test_a_tilde_without_such_a_user_is_an_ordinary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert expand_path("~/x") == tmp_path / "home" / "x"
    Path("~$photo.jpg").write_bytes(b"")
    assert [photo.name for photo in find_photos("~$photo.jpg").photos] == ["~$photo.jpg"]
    with pytest.raises(ConfigError, match=r"weights=~no-such-user\$: no such file"):
        resolve(TrainConfig, {"weights": "~no-such-user$"})
    for option in ("data", "exclude", "corrections"):
        with pytest.raises(CatalogError, match=f"{option}=~no-such-user.x: .*[Nn]o such file"):
            load_dataset(resolve(TrainConfig, {option: "~no-such-user/x", "cache": "false"}))
    monkeypatch.setenv("SHOPEE_MLFLOW_CACHE", "~no-such-user/cache")
    assert cache_folder() == Path("~no-such-user/cache")


@pytest.mark.fault
def test_a_name_of_weights_that_no_file_can_have_is_a_clear_error() -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(ConfigError, match=r"weights=.*cannot be read \("):
            resolve(TrainConfig, {"weights": name})
