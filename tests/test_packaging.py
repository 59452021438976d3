"""setup.cfg, conda.yaml, MLproject and the command line are consistent."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shopee_mlflow.cli import cli

ROOT = Path(__file__).parents[1]


# Modules that need an extra of setup.cfg besides what is always installed.
EXTRAS = {
    "matching/nearest_index.py": "index",
    "modeling/timm_models.py": "timm",
    "verbs/export.py": "onnx",
}


def setup_requirements() -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return sorted(parser["options"]["install_requires"].split())


def extra_requirements(extra: str) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return sorted(parser["options.extras_require"][extra].split())


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=]", requirement)[0] for requirement in requirements}


def test_those_who_develop_have_every_extra() -> None:
    for extra in EXTRAS.values():
        assert set(extra_requirements(extra)) <= set(extra_requirements("dev"))


def test_an_extra_is_imported_where_it_is_needed_only() -> None:
    """A module's top is imported by everybody; the import of an extra stands in a function."""
    import ast

    for file, extra in EXTRAS.items():
        tops = ast.parse((ROOT / "shopee_mlflow" / file).read_text()).body
        found = {a.name for node in tops if isinstance(node, ast.Import) for a in node.names}
        assert not found & names_of(extra_requirements(extra))


def test_conda_and_setup_name_the_same_packages() -> None:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    (pip,) = (part["pip"] for part in conda["dependencies"] if isinstance(part, dict))
    assert sorted(pip) == setup_requirements()
    assert len(pip) > 10


def test_conda_and_setup_name_the_same_python() -> None:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    (python,) = (p for p in conda["dependencies"] if str(p).startswith("python="))
    assert parser["options"]["python_requires"] == python.replace("python=", ">=")


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_constraints_are_exact_and_for_every_system() -> None:
    assert len(pins()) > 100
    for pin in pins():
        assert [part.operator for part in pin.specifier] == ["=="], pin
        # pip takes no extras in constraints.
        assert not pin.extras, pin
        only_linux = pin.name.startswith(("nvidia-", "cuda-", "triton"))
        assert not only_linux or 'sys_platform == "linux"' in str(pin.marker), pin


def test_constraints_name_no_registry() -> None:
    assert not re.search(r"://|--(extra-)?index-url", (ROOT / "constraints.txt").read_text())


def test_each_requirement_has_a_pin_that_it_allows() -> None:
    required = set(setup_requirements()).union(
        *map(extra_requirements, ("dev", "docs", "index", "onnx"))
    )
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins()}
    for requirement in map(Requirement, required):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_each_requirement_has_a_lower_bound() -> None:
    """Without one nobody knows what --resolution lowest-direct installs."""
    for text in [*setup_requirements(), *extra_requirements("dev"), *extra_requirements("docs")]:
        assert ">=" in text, text


def test_readme_and_ci_install_what_is_known_to_work() -> None:
    install = 'pip install -c constraints.txt -e ".[dev]"'
    for file in ("README.md", "CONTRIBUTING.md"):
        assert install in (ROOT / file).read_text(encoding="utf-8"), file
    assert "pip install -c constraints.txt -e . &&" in (ROOT / "README.md").read_text("utf-8")
    # CI takes the commands from the README.
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_editable_install_is_found_from_the_folder_above_the_clone(tmp_path: Path) -> None:
    """There, a folder shopee_mlflow without __init__.py is in the way: the clone itself."""
    clone = tmp_path / "shopee_mlflow"
    package = clone / "shopee_mlflow"
    package.mkdir(parents=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    shutil.copy(ROOT / "shopee_mlflow" / "__init__.py", package)
    build = "from setuptools import build_meta; build_meta.build_editable('..')"
    subprocess.run([sys.executable, "-c", build], cwd=clone, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (pth,) = (name for name in files.namelist() if name.endswith(".pth"))
        assert Path(files.read(pth).decode().strip()).resolve() == clone.resolve()


def test_each_module_of_the_tests_is_held_to_its_warnings() -> None:
    """filterwarnings names modules; a test file of another name would be left out."""
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    filters = pytest_options["ini_options"]["filterwarnings"]
    patterns = [line.split(":")[3] for line in filters if line.startswith("error:::")]
    assert len(patterns) >= 1
    modules = [file.stem for file in (ROOT / "tests").glob("*.py")]
    assert len(modules) > 50
    for module in [*modules, "shopee_mlflow.cli", "benchmarks.stopwatch"]:
        assert any(re.match(pattern, module) for pattern in patterns), module


def test_each_import_is_a_declared_dependency() -> None:
    import ast
    import sys

    names = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "faiss": "faiss-cpu"}
    package = ROOT / "shopee_mlflow"
    for file in package.rglob("*.py"):
        declared = names_of(setup_requirements())
        if extra := EXTRAS.get(file.relative_to(package).as_posix()):
            declared |= names_of(extra_requirements(extra))
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                tops = [alias.name.split(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                tops = [node.module.split(".")[0]]
            else:
                continue
            for top in tops:
                if top not in sys.stdlib_module_names:
                    assert names.get(top, top).lower() in declared, f"{file}: {top}"


def test_entry_points_are_commands_and_declare_no_parameters() -> None:
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert project["conda_env"] == "conda.yaml"
    assert {"train"} <= set(project["entry_points"])
    for name, entry in project["entry_points"].items():
        assert entry == {"command": f"python -m shopee_mlflow {name}"}
        assert name in cli.commands


def test_experiments_hold_only_differences_and_say_how_to_run_them() -> None:
    from shopee_mlflow.config import TrainConfig, TuneConfig, as_params, resolve
    from shopee_mlflow.tuning.space import DEFAULT_FILE, SECTIONS, plan_search
    from shopee_mlflow.yaml_file import read_yaml

    files = sorted((ROOT / "experiments").glob("*.yaml"))
    assert len(files) >= 6
    assert DEFAULT_FILE in files
    for file in files:
        header = file.read_text().split("\n\n")[0]
        assert header.startswith("# "), file
        search = "space" in read_yaml(file)
        verb = "tune" if search else "train"
        assert f"mlflow run . -e {verb}" in header, file
        assert file == DEFAULT_FILE or f"-P config=experiments/{file.name}" in header, file
        given = {"config": str(file)}
        config = plan_search(given).config if search else resolve(TrainConfig, given)
        values = as_params(config)
        defaults = as_params(TuneConfig() if search else TrainConfig())
        for name in set(read_yaml(file)) - set(SECTIONS):
            # These are named even where they are the defaults: the measured results depend on them.
            named = name in ("model", "batch_size")
            same = values[name] == defaults[name] and not named
            assert not same, f"{file.name}: {name} is the default"


@pytest.mark.fault
def test_no_file_that_travels_with_a_model_is_empty() -> None:
    """MLflow uploads empty files in chunks without a length, which some proxies do not take."""
    files = [
        f
        for f in (ROOT / "shopee_mlflow").rglob("*")
        if f.is_file() and "__pycache__" not in f.parts
    ]
    assert [file.name for file in files if file.stat().st_size == 0] == []
