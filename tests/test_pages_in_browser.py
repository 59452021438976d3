"""Reports in a real browser: each picture loads, and the console is empty."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from html_page import look_in_browser
from several_runs import trained_runs

from shopee_mlflow import compare

pytestmark = pytest.mark.slow


@pytest.mark.drawn
def test_both_pages_show_every_picture_without_a_message(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, fast, other_split = trained_runs(tmp_path_factory.getbasetemp())
    compare((first.result.run_id, fast, other_split), out=tmp_path / "comparison")
    training = mlflow.artifacts.download_artifacts(
        run_id=fast, artifact_path="report.html", dst_path=str(tmp_path)
    )
    for page, least in ((tmp_path / "comparison" / "report.html", 3), (Path(training), 8)):
        for width in (1400, 390):
            seen = look_in_browser(page, tmp_path, width)
            assert seen["pictures"] >= least, page
            assert seen["faults"] == [], page
            assert seen["page"] <= seen["window"], "wide tables scroll inside their box"


@pytest.mark.drawn
def test_a_broken_page_is_seen(tmp_path: Path) -> None:
    """The check itself can fail: a picture that is none, and an error on the console."""
    page = tmp_path / "broken.html"
    page.write_text(
        '<!doctype html><head><title>x</title></head><img src="data:image/png;base64,AAAA"'
        " alt='none'><script>console.error('an error of its own')</script>"
    )
    seen = look_in_browser(page, tmp_path)
    assert seen["pictures"] == 1
    assert seen["faults"][0] == "no size: none"
    assert "an error of its own" in seen["faults"][1]
