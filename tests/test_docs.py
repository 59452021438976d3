"""The documentation: its Python runs, and its references name everything that is public."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

import shopee_mlflow
from shopee_mlflow import config as configs

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reference_names_every_public_object() -> None:
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto(?:function|class|exception):: (\w+)", text, re.MULTILINE)
    public = [name for name in shopee_mlflow.__all__ if not name.startswith("__")]
    assert sorted(listed) == sorted(public)


def test_the_reference_has_a_row_for_each_option(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    from option_reference import table_of  # type: ignore[import-not-found]

    monkeypatch.delitem(sys.modules, "option_reference")
    rows = ""
    for cls in (configs.DataConfig, configs.TrainConfig):
        rows += table_of(cls)
    for field in dataclasses.fields(configs.TrainConfig):
        assert len(re.findall(rf"^\| `{field.name}` \| `.+` \|", rows, re.MULTILINE)) == 1


@pytest.mark.slow
def test_the_python_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Block after block, as a reader would."""
    text = (DOCS / "guide" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    assert "Dataset(" in capsys.readouterr().out
    assert "SqueezeNet" in repr(names["result"])
