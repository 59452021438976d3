"""Warnings that fail tests: those of our modules, but not those of a library about itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The last frame of a warning with stacklevel=2 is the caller.
LIBRARY = """
import warnings

def about_itself(category):
    warnings.warn("old inside", category)

def about_its_caller(category):
    warnings.warn("old call", category, stacklevel=2)

def calls_itself(category):
    about_its_caller(category)
"""
OURS = """
import some_library

def call(name, category):
    getattr(some_library, name)(category)
"""


def run_tests(folder: Path, **files: str) -> tuple[int, str]:
    """Run test files in another process, with this project's options; exit code and output."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-n0"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-p", "no:cacheprovider", str(folder)],
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_warning_fails_the_test_whose_module_it_names(tmp_path: Path) -> None:
    cases = """
import warnings
import pytest
import some_library
from shopee_mlflow_module import call

CATEGORIES = [DeprecationWarning, FutureWarning, UserWarning, RuntimeWarning, ResourceWarning]

@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("name", ["about_itself", "calls_itself"])
def test_passes(name, category):
    call(name, category)
    getattr(some_library, name)(category)

@pytest.mark.parametrize("category", CATEGORIES)
def test_fails_for_what_our_module_receives(category):
    call("about_its_caller", category)

@pytest.mark.parametrize("category", CATEGORIES)
def test_fails_for_what_the_test_receives(category):
    some_library.about_its_caller(category)

@pytest.mark.parametrize("category", CATEGORIES)
def test_fails_for_what_it_raises(category):
    warnings.warn("ours", category)

def test_fails_for_what_nobody_can_catch():
    class Broken:
        def __del__(self):
            raise ValueError("in a destructor")
    Broken()
"""
    code, said = run_tests(
        tmp_path, some_library=LIBRARY, test_cases=cases, shopee_mlflow_module=OURS
    )
    assert code == 1
    assert "16 failed, 10 passed" in said, said
    assert "FAILED test_cases.py::test_passes" not in said
    # Shown, though it fails nothing.
    assert "old inside" in said.partition("warnings summary")[2]


@pytest.mark.slow
@pytest.mark.parametrize("category", ["DeprecationWarning", "SyntaxWarning", "UserWarning"])
def test_a_library_that_warns_of_itself_can_be_imported(tmp_path: Path, category: str) -> None:
    """At collection, where one warning would stop all tests."""
    library = f"{LIBRARY}\nabout_itself({category})\ncalls_itself({category})\n"
    code, said = run_tests(
        tmp_path, some_library=library, test_it="import some_library\ndef test_it(): pass"
    )
    assert code == 0, said


@pytest.mark.slow
def test_a_deprecated_module_that_we_import_is_an_error(tmp_path: Path) -> None:
    library = 'import warnings\nwarnings.warn("old module", DeprecationWarning, stacklevel=2)\n'
    code, said = run_tests(
        tmp_path, some_library=library, test_it="import some_library\ndef test_it(): pass"
    )
    assert code == 2
    assert "old module" in said
