"""Layers: which folder may import which, and lazy imports of heavy packages."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shopee_mlflow.analysis_config import ExploreConfig, MatchConfig
from shopee_mlflow.config import TrainConfig, TuneConfig
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.options import by_group, option

PACKAGE = Path(__file__).parents[1] / "shopee_mlflow"
FILES = sorted(PACKAGE.rglob("*.py"))

# A file may import from its own folder and from folders on lower layers.
LAYERS = {
    "masking": -3,
    "errors": -2,
    "options": -1,
    "yaml_file": 0,
    "data_config": 0,
    "config": 1,
    "analysis_config": 1,
    "console": 1,
    "cache_folder": 1,
    "sample": 2,
    "data": 3,
    "modeling": 4,
    "reports": 5,
    "matching": 5,
    "exploring": 6,
    "tracking": 6,
    "training": 7,
    "tuning": 8,
    "verbs": 9,
    "click_commands": 2,
    "loading": 2,
    "cli": 10,
    "__main__": 11,
    "__init__": 12,
}


def folder_of(file: Path) -> str:
    """The folder of a file, or its name where it lies at the top."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path, code: str | None = None) -> Iterator[str]:
    """Dotted names of all imports anywhere in a file; relative ones made absolute."""
    package = (PACKAGE.name, *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(code or file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 20
    assert {folder_of(file) for file in FILES} <= set(LAYERS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows_point_down(file: Path) -> None:
    mine = folder_of(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != PACKAGE.name or len(parts) < 2:
            continue
        other = parts[1] if parts[1] in LAYERS else "errors"  # __version__ is at the bottom
        assert other == mine or LAYERS[other] < LAYERS[mine], f"{mine} imports {name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("mlflow", {"tracking"}),
        ("optuna", {"tuning"}),
        ("click", {"cli", "click_commands", "console"}),
        ("sklearn", {"matching", "modeling"}),
    ],
)
@pytest.mark.slow
def test_libraries_have_one_home(library: str, allowed: set[str]) -> None:
    users = {
        folder_of(file)
        for file in FILES
        if any(name.split(".")[0] == library for name in imports(file))
    }
    # Equal, so that a home that no longer imports the library is noticed as well.
    assert users == allowed


def test_an_import_is_seen_anywhere_in_a_file() -> None:
    file = PACKAGE / "data" / "made_up.py"
    code = "def f():\n    import mlflow.pytorch\n    from ..tracking.runs import open_run\n"
    assert list(imports(file, code)) == ["mlflow.pytorch", "shopee_mlflow.tracking.runs.open_run"]


def test_no_two_modules_share_a_name() -> None:
    names = [file.name for file in FILES if file.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


def test_the_architecture_names_every_module() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    homes = {"sample", "__init__.py", "__main__.py"}
    missing = [f.name for f in FILES if not {f.name, folder_of(f)} & homes and f.name not in text]
    assert missing == []


def test_the_train_verb_has_few_imports() -> None:
    verb = PACKAGE / "verbs" / "train.py"
    internal = {name.rpartition(".")[0] for name in imports(verb) if name.startswith(PACKAGE.name)}
    assert len(internal) <= 12


def test_data_knows_no_network_layers() -> None:
    for file in (PACKAGE / "data").rglob("*.py"):
        assert not any(name.startswith("torch.nn") for name in imports(file)), file


def imported(code: str, heavy: set[str]) -> set[str]:
    """Which of these modules a new Python process has imported after running the code."""
    code = f"{code}; import sys; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "mlflow", "pandas", "sklearn", "matplotlib", "optuna", "PIL"}
    assert imported("from shopee_mlflow.cli import cli", heavy) == set()
    assert imported("import pandas", heavy) == {"pandas"}


def test_matching_imports_no_torch() -> None:
    """It takes over half a gigabyte, and titles and phashes do not need it."""
    code = "import shopee_mlflow.verbs.match, shopee_mlflow.tracking.matcher_files"
    assert imported(code, {"torch", "torchvision", "optuna"}) == set()


@pytest.mark.parametrize(
    "config", [DataConfig, ExploreConfig, MatchConfig, TrainConfig, TuneConfig]
)
def test_every_option_has_a_group(config: type[DataConfig]) -> None:
    grouped = [field.name for fields in by_group(config).values() for field in fields]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(config))


def test_an_option_without_a_group_is_an_error() -> None:
    @dataclasses.dataclass
    class Config:
        lost: int = option(1, "in no group")

    with pytest.raises(TypeError, match="lost: no option before it begins a group"):
        by_group(Config)


def test_all_public_names_are_there_and_documented() -> None:
    import shopee_mlflow

    for name in shopee_mlflow.__all__:
        thing = getattr(shopee_mlflow, name)
        assert name.startswith("__") or thing.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shopee_mlflow.nothing  # noqa: B018 - the access is the test
