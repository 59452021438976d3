"""The house: who may import whom, and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "shopee_mlflow"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms from the ground up: a file may import from its own floor's folder and from those below.
FLOORS = {
    "errors": 0,
    "options": 0,
    "config": 1,
    "console": 1,
    "cache_folder": 1,
    "sample": 2,
    "data": 3,
    "modeling": 4,
    "reports": 5,
    "exploring": 6,
    "tracking": 6,
    "training": 7,
    "tuning": 8,
    "verbs": 9,
    "cli": 10,
    "__main__": 11,
    "__init__": 12,
}


def room(file: Path) -> str:
    """The folder of a file, or its name where it lies at the top."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, anywhere in it; relative ones made absolute."""
    package = (PACKAGE.name, *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 20
    assert {room(file) for file in FILES} <= set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_arrows_point_down(file: Path) -> None:
    mine = room(file)
    for name in imports(file):
        parts = name.split(".")
        if parts[0] != PACKAGE.name or len(parts) < 2:
            continue
        other = parts[1] if parts[1] in FLOORS else "errors"  # __version__ stands at the ground
        assert other == mine or FLOORS[other] < FLOORS[mine], f"{mine} imports {name}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("mlflow", {"tracking"}),
        ("optuna", {"tuning"}),
        ("click", {"cli", "console"}),
        ("sklearn", {"modeling"}),
    ],
)
def test_libraries_have_one_home(library: str, allowed: set[str]) -> None:
    for file in FILES:
        home = file.relative_to(PACKAGE).with_suffix("").as_posix()
        if any(name.split(".")[0] == library for name in imports(file)):
            assert home in allowed or room(file) in allowed


def test_data_knows_no_network_layers() -> None:
    for file in (PACKAGE / "data").rglob("*.py"):
        assert not any(name.startswith("torch.nn") for name in imports(file)), file


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from shopee_mlflow.cli import cli; "
        "heavy = {'torch', 'mlflow', 'pandas', 'sklearn', 'matplotlib', 'optuna', 'PIL'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    assert done.stdout.strip() == "[]"


def test_all_public_names_are_there_and_documented() -> None:
    import shopee_mlflow

    for name in shopee_mlflow.__all__:
        thing = getattr(shopee_mlflow, name)
        assert name.startswith("__") or thing.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shopee_mlflow.nothing  # noqa: B018 - the access is the test
