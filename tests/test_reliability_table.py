"""docs/reliability.md lists exactly the tests with the marker ``fault``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "reliability.md"


def marked(code: str) -> set[str]:
    """Names of a module's test functions that are decorated with ``@pytest.mark.fault``."""
    return {
        node.name
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef)
        and "pytest.mark.fault" in [ast.unparse(one) for one in node.decorator_list]
    }


def test_each_row_of_the_table_names_a_test() -> None:
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if "`tests/" in line]
    assert len(rows) >= 25
    for row in rows:
        assert re.search(r"`(tests/\w+\.py)::(\w+)` \|$", row), row


def test_the_tests_of_the_table_are_those_with_the_mark() -> None:
    table = set(re.findall(r"`tests/([^`]+::\w+)`", TABLE.read_text(encoding="utf-8")))
    tests = {
        f"{file.name}::{name}"
        for file in (ROOT / "tests").glob("test_*.py")
        for name in marked(file.read_text(encoding="utf-8"))
    }
    assert tests == table


def test_the_mark_is_seen() -> None:
    code = "@pytest.mark.slow\n@pytest.mark.fault\ndef test_a(): ...\ndef test_b(): ...\n"
    assert marked(code) == {"test_a"}
