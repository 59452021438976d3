"""The notebook in examples/ runs from the first cell to the last, in any folder."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
NOTEBOOK = PROJECT / "examples" / "quickstart.ipynb"
SECONDS_FOR_A_CELL = 300


@pytest.fixture
def kernel_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel ``python3`` that is this very Python, this checkout's package, folders of its own.

    Jupyter takes the first kernel of a name that it finds, JUPYTER_PATH before all others.
    """
    kernel = tmp_path / "jupyter" / "path" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": command, "display_name": "this Python", "language": "python"}
    kernel.write_text(json.dumps(about), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(kernel.parents[2]))
    for name in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / "jupyter" / name.lower()))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT), prepend=os.pathsep)
    # What draws here is not what draws in a notebook.
    monkeypatch.delenv("MPLBACKEND", raising=False)


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_outputs(cells: list[dict[str, Any]]) -> None:
    assert len(cells) >= 6
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("kernel_places")
def test_the_notebook_runs_and_shows_its_scores(tmp_path: Path) -> None:
    # Imported here: the everyday tier needs no Jupyter.
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_FOR_A_CELL,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()  # raises CellExecutionError where a cell fails

    outputs = {
        cell.id: cell.outputs
        for cell in client.nb.cells
        if cell.cell_type == "code" and cell.execution_count
    }
    assert len(outputs) == sum(cell.cell_type == "code" for cell in notebook.cells)
    assert not [out for found in outputs.values() for out in found if out.output_type == "error"]

    scores = ast.literal_eval(result_of(outputs["train"])["text/plain"])
    chance = 1 / 21
    assert scores["test_accuracy_low"] > chance, "it learned nothing"
    assert scores["test_accuracy_low"] < scores["test_accuracy"] < scores["test_accuracy_high"]
    assert f"test accuracy {scores['test_accuracy']:.1%} of 82" in printed(outputs["train"])
    assert "leak_free: 0 of" in printed(outputs["splits"])
    assert "random: 0 of" not in printed(outputs["splits"])
    assert "(5, 21) logits" in printed(outputs["model"])
    assert "Dataset(" in result_of(outputs["data"])["text/plain"]
    assert pictures(outputs["look"]) == 1
    assert "label_group_2" in result_of(outputs["classify"])["text/plain"]
    assert "Classifier('models:/" in printed(outputs["classify"])
    assert pictures(outputs["curves"]) == 1


def printed(outputs: list[Any]) -> str:
    """What a cell printed on standard output."""
    return "".join(
        out.text for out in outputs if out.output_type == "stream" and out.name == "stdout"
    )


def result_of(outputs: list[Any]) -> dict[str, str]:
    """The value of a cell's last expression, by MIME type."""
    [data] = [out.data for out in outputs if out.output_type == "execute_result"]
    return dict(data)


def pictures(outputs: list[Any]) -> int:
    """How many pictures a cell shows."""
    return sum("image/png" in out.get("data", {}) for out in outputs)
