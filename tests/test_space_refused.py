"""Invalid search spaces and options, and their error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_search import LR, plan_of

from shopee_mlflow.config import TuneConfig, as_params
from shopee_mlflow.errors import ConfigError
from shopee_mlflow.tuning.space import plan_search
from shopee_mlflow.tuning.storage import study_file


def problems(tmp_path: Path, content: dict[str, Any] | str, **cli_options: Any) -> list[str]:
    """What is wrong with a search, each without the name of the file."""
    with pytest.raises(ConfigError) as raised:
        plan_of(tmp_path, content, **cli_options)
    return [p.replace(f"{tmp_path}/", "") for p in raised.value.problems]


def problems_of(tmp_path: Path, name: str, where: Any) -> list[str]:
    """What is wrong with one searched option, beside a good one."""
    good = "momentum" if name != "momentum" else "lr"
    found = problems(tmp_path, {"space": {good: [0.5, 0.9], name: where}})
    return [p.removesuffix(" (in search.yaml, space)") for p in found]


def test_options_that_contradict_each_other_in_a_trial_are_told_before(tmp_path: Path) -> None:
    space = {"warmup_epochs": {"low": 0, "high": 9}, "lr": LR}
    assert problems(tmp_path, {"space": space, "epochs": 4}) == [
        "warmup_epochs=9.0: must be at most epochs=4"
    ]


@pytest.mark.parametrize(
    ("name", "where", "problem"),
    [
        ("lr", {"low": 0.1, "high": 0.001}, "lr: low 0.1 must be below high 0.001"),
        ("lr", {"low": 0.1, "high": 0.1}, "lr: low 0.1 must be below high 0.1"),
        (
            "weight_decay",
            {"low": 0, "high": 0.1, "log": True},
            "weight_decay: low 0.0 must be above 0 on a log scale",
        ),
        ("lr", {"low": 0.1, "high": 1, "log": "yes"}, "lr: log=yes must be true or false"),
        (
            "lr",
            {"low": 0.1},
            "lr={'low': 0.1}: a range has low and high, and may have log, step",
        ),
        (
            "lr",
            {"low": 0.1, "high": 1, "scale": "log"},
            "lr={'low': 0.1, 'high': 1, 'scale': 'log'}: a range has low and high, and may have "
            "log, step",
        ),
        ("lr", {"low": 0, "high": 1}, "lr=0: must be a number above 0 and at most 100"),
        ("lr", {"low": 0.1, "high": 101}, "lr=101: must be a number above 0 and at most 100"),
        ("lr", {"low": None, "high": 1}, "lr=None: must be a number above 0 and at most 100"),
        ("epochs", {"low": 1.5, "high": 3}, "epochs=1.5: must be a whole number at least 1 and "),
        (
            "lr",
            {"low": 0.1, "high": 1, "step": 0.1},
            "lr: step=0.1 must be a whole number, for whole numbers without log",
        ),
        (
            "epochs",
            {"low": 1, "high": 9, "step": 2, "log": True},
            "epochs: step=2 must be a whole number, for whole numbers without log",
        ),
        (
            "epochs",
            {"low": 1, "high": 9, "step": 0},
            "epochs: step=0 must be a whole number, for whole numbers without log",
        ),
        (
            "epochs",
            {"low": 1, "high": 9, "step": 3},
            "epochs: high 9 must be low 1 plus a multiple of step 3",
        ),
        ("lr", {"low": "auto", "high": 1}, "lr: a range has numbers, not auto"),
        ("momentum", ["auto"], "momentum=auto: must be a number at least 0 and below 1"),
        ("lr", [], "lr: the list is empty"),
        ("lr", [0.1, 0.01, 1e-1], "lr: a value is repeated in [0.1, 0.01, 0.1]"),
        ("batch_size", [8, "8"], "batch_size: a value is repeated in [8, '8']"),
        ("batch_size", [8, 2.5], "batch_size=2.5: must be a whole number at least 1 and"),
        ("schedule", ["linear"], "schedule=linear: must be one of cosine, constant"),
        ("lr", 0.1, "lr=0.1: must be a list of values or {low: ..., high: ...}"),
        (
            "schedule",
            {"low": "constant", "high": "cosine"},
            "schedule={'low': 'constant', 'high': 'cosine'}: must be a list of values",
        ),
        ("augment", {"low": 0, "high": 1}, "augment={'low': 0, 'high': 1}: must be a list of "),
    ],
)
def test_a_bad_range_or_list_is_refused(
    tmp_path: Path, name: str, where: Any, problem: str
) -> None:
    (found,) = problems_of(tmp_path, name, where)
    assert found.startswith(problem)


def test_an_unknown_option_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (found,) = problems_of(tmp_path, "learning_rates", [1, 2])
    assert found.startswith("learning_rates: no option that can be searched. Did you mean lr?")
    (found,) = problems_of(tmp_path, "batchsize", [1, 2])
    assert "Did you mean batch_size?" in found
    assert "split_seed" not in found


@pytest.mark.parametrize(
    "name",
    [
        "split_seed",
        "nproc",
        "monitor",
        "data",
        "image_size",
        "device",
        "register",
        "n_trials",
        "weights",
    ],
)
def test_an_option_that_shapes_the_comparison_is_not_searched(tmp_path: Path, name: str) -> None:
    (found,) = problems_of(tmp_path, name, [1, 2])
    said = f"{name}: no option that can be searched. It is the same in all trials; set it outside"
    assert found.startswith(said)


def test_a_bad_baseline_is_refused(tmp_path: Path) -> None:
    content = {"space": {"lr": LR}, "baseline": {"lr": 1000, "device": "cpu", "momentum": 0.5}}
    too_high, unknown, idle = problems(tmp_path, content)
    assert too_high == (
        "lr=1000: must be a number above 0 and at most 100, or auto (in search.yaml, baseline)"
    )
    assert unknown.startswith("device: no such searched option.")
    assert idle == "momentum: has a baseline but is not searched (in search.yaml, baseline)"


def test_a_typed_option_leaves_the_baseline_too(tmp_path: Path) -> None:
    content = {"space": {"lr": LR, "momentum": [0.5]}, "baseline": {"lr": 0.02}}
    assert plan_of(tmp_path, content, lr=0.3).baselines() == [{"momentum": 0.9}]


@pytest.mark.parametrize("section", ["space", "baseline", "sampler_settings", "pruner_settings"])
@pytest.mark.parametrize("content", [["lr"], "lr", 3])
def test_a_section_that_is_no_mapping_is_refused(
    tmp_path: Path, section: str, content: Any
) -> None:
    assert problems(tmp_path, {"space": {"lr": LR}, section: content}) == [
        f"{section}: must contain lines of 'name: value' (in search.yaml)"
    ]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    space = {"lr": [], "momentum": {"low": 0.9, "high": 0.1}, "datas": [1]}
    found = problems(tmp_path, {"space": space, "baseline": {"lr": "much"}})
    assert [p.split(":")[0] for p in found] == ["lr", "momentum", "datas", "lr=much"]
    assert all(p.endswith(("search.yaml, space)", "search.yaml, baseline)")) for p in found)


@pytest.mark.parametrize("content", [{}, {"epochs": 3}, {"space": {}}, {"space": None}])
def test_an_empty_space_is_refused(tmp_path: Path, content: dict[str, Any]) -> None:
    assert problems(tmp_path, content) == ["space: nothing to search (in search.yaml)"]


def test_a_space_that_is_all_typed_is_empty(tmp_path: Path) -> None:
    assert problems(tmp_path, {"space": {"lr": LR}}, lr=0.1) == [
        "space: nothing to search (in search.yaml)"
    ]


def test_what_is_fixed_and_searched_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, {"lr": 0.1, "space": {"lr": LR}}) == [
        "lr: is both fixed and searched; give it once (in search.yaml)"
    ]
    assert problems(tmp_path, {"space": {"lr": LR}}, model="cnn", models="cnn,effnet") == [
        "model=cnn: models=cnn,effnet overrides it; give one of them"
    ]


@pytest.mark.parametrize(
    ("models", "problem"),
    [(",", "model: the list is empty"), ("cnn,cnn", "model: a value is repeated in ")],
)
def test_bad_models_are_refused(tmp_path: Path, models: str, problem: str) -> None:
    (found,) = problems(tmp_path, {"space": {"lr": LR}}, models=models)
    assert found.startswith(problem)


def test_each_architecture_needs_a_trial(tmp_path: Path) -> None:
    given = {"models": "cnn,effnet,resnet18"}
    assert problems(tmp_path, {"space": {"lr": LR}}, n_trials=2, **given) == [
        "n_trials=2: must be at least 3, one with the original's settings for each architecture"
    ]
    assert plan_of(tmp_path, {"space": {"lr": LR}}, n_trials=3, **given).config.n_trials == 3


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("n_trials", 0, "n_trials=0: must be a whole number at least 1"),
        ("jobs", 0, "jobs=0: must be a whole number at least 1 and at most 256"),
        ("timeout", -1, "timeout=-1: must be a number at least 0 and at most 1,000,000,000"),
        ("timeout", "inf", "timeout=inf: must be a number at least 0 and at most 1,000,000,000"),
        ("sampler", "grid", "sampler=grid: must be one of tpe, random"),
        ("pruner", "asha", "pruner=asha: must be one of median, hyperband, none"),
    ],
)
def test_a_bad_option_of_the_search_is_refused(
    tmp_path: Path, name: str, value: Any, problem: str
) -> None:
    assert problems(tmp_path, {"space": {"lr": LR}}, **{name: value}) == [problem]
    # The same in the file, which is then named.
    assert problems(tmp_path, {"space": {"lr": LR}, name: value}) == [
        f"{problem} (in {tmp_path / 'search.yaml'})".replace(f"{tmp_path}/", "")
    ]


def test_a_missing_or_broken_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config=nowhere.yaml: cannot be read \(No such file"):
        plan_search({"config": "nowhere.yaml"})
    broken = problems(tmp_path, "space: [").pop()
    assert broken.startswith("config=search.yaml: is not valid YAML:")
    assert problems(tmp_path, "- lr") == ["config=search.yaml: must hold lines of 'option: value'"]


def test_every_option_of_a_search_is_logged_under_its_name() -> None:
    params = as_params(TuneConfig())
    assert (params["n_trials"], params["jobs"], params["storage"]) == ("20", "1", "auto")


@pytest.mark.fault
@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/tmp/evil",
        "a/b",
        "a\\b",
        "..\\b",
        "a\nb",
        "a\x00b",
        "\x1b[31m",
        "é" * 101,
    ],
)
def test_a_study_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    (problem,) = problems(tmp_path, {"space": {"lr": LR}, "study": name})
    assert problem == (
        f"study={name!r}: a name has at most 200 bytes and no slashes, backslashes or "
        "control characters"
    )


@pytest.mark.parametrize("name", ["Ann's sweep", "été 2", "..", "a" * 200, 'say "so"'])
def test_other_study_names_are_kept(tmp_path: Path, name: str) -> None:
    plan = plan_of(tmp_path, {"space": {"lr": LR}, "study": name})
    assert plan.study_name() == name
    assert study_file("auto", name, tmp_path).parent == tmp_path / "studies"
