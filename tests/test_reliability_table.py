"""The table of faults names tests that are there; the mark ``fault`` is made from it."""

from __future__ import annotations

import re

from conftest import RELIABILITY, faults_of_the_table, is_fault

ROOT = RELIABILITY.parents[1]


def test_each_fault_of_the_table_has_its_test() -> None:
    rows = [line for line in RELIABILITY.read_text().splitlines() if "`tests/" in line]
    assert len(rows) >= 25
    for row in rows:
        found = re.search(r"`(tests/\w+\.py)::(\w+)` \|$", row)
        assert found, row
        file, name = found.groups()
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), row


def test_the_mark_is_for_those_of_the_table_with_any_parameters() -> None:
    faults = faults_of_the_table()
    assert len(faults) >= 25
    one = "tests/test_resume.py::test_a_training_goes_on_to_the_same_end"
    assert is_fault(one, faults)
    assert is_fault(f"{one}[3]", faults)
    assert not is_fault("tests/test_session.py::test_golden_values", faults)
