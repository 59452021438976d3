"""The pages in a real browser: each picture loads, and the console has nothing to say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from several_runs import trained_runs

from shopee_mlflow import compare

pytestmark = pytest.mark.slow

# Counts the pictures of a copy of the page; the page itself has no script.
COUNT = """<script>addEventListener("load", () => {
  const all = [...document.images], broken = all.filter((image) => image.naturalWidth === 0);
  const told = `<p>${all.length} shown, ${broken.length} broken</p>`;
  document.body.insertAdjacentHTML("beforeend", told);
});</script>"""
# What it can do without and this machine may not have: a GPU, a sandbox, a message bus.
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@dataclass(frozen=True)
class Sight:
    """What a browser made of a page.

    :ivar console: its messages, errors of loading among them.
    """

    pictures: int
    broken: int
    console: Sequence[str]


@pytest.fixture
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")


def look(chromium: str, page: Path) -> Sight:
    """Open a page, and a copy of it that counts its pictures."""
    copy = page.with_name(f"counted-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8") + COUNT, encoding="utf-8")
    _, console = _open(chromium, page)
    dom, _ = _open(chromium, copy)
    found = re.search(r"<p>(\d+) shown, (\d+) broken</p>", dom)
    assert found, "the browser did not load the page to its end"
    return Sight(int(found[1]), int(found[2]), console)


def _open(chromium: str, page: Path) -> tuple[str, list[str]]:
    profile = page.with_name("profile")
    done = subprocess.run(
        [
            chromium,
            *SWITCHES,
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_both_pages_show_all_and_say_nothing(
    chromium: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, fast, other_split = trained_runs(tmp_path_factory.getbasetemp())
    ids = (first.result.run_id, fast, other_split)
    compare(ids, out=tmp_path)
    comparison = (tmp_path / "report.html").rename(tmp_path / "comparison.html")
    training = mlflow.artifacts.download_artifacts(
        run_id=ids[1], artifact_path="report.html", dst_path=str(tmp_path)
    )
    for page, least in ((comparison, 3), (Path(training), 8)):
        sight = look(chromium, page)
        assert sight.pictures >= least, page
        assert sight.broken == 0, page
        assert sight.console == [], page


def test_a_broken_page_is_seen(chromium: str, tmp_path: Path) -> None:
    """The check itself can fail: a picture that is none, and an error on the console."""
    page = tmp_path / "broken.html"
    page.write_text(
        '<!doctype html><title>x</title><img src="data:image/png;base64,AAAA" alt="none">'
        "<script>console.error('an error of its own')</script>"
    )
    sight = look(chromium, page)
    assert (sight.pictures, sight.broken) == (1, 1)
    assert "an error of its own" in sight.console[0]
