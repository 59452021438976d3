"""The table of faults names tests that are there; the mark ``fault`` is made from it."""

from __future__ import annotations

import re

from conftest import RELIABILITY

ROOT = RELIABILITY.parents[1]


def test_each_fault_of_the_table_has_its_test() -> None:
    rows = [line for line in RELIABILITY.read_text().splitlines() if "`tests/" in line]
    assert len(rows) >= 25
    for row in rows:
        found = re.search(r"`(tests/\w+\.py)::(\w+)` \|$", row)
        assert found, row
        file, name = found.groups()
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), row


def test_the_mark_is_set(request: object) -> None:
    """This test is in no table; see conftest for how those that are get their mark."""
    marks = {mark.name for mark in request.node.iter_markers()}  # type: ignore[attr-defined]
    assert "fault" not in marks
