"""Helpers for HTML pages: text and elements, checks for every report, and a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Page(HTMLParser):
    """An HTML page: its elements with their attributes, its styles, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.style = ""
        self._words: list[str] = []
        self._inside = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data
        else:
            self._words += data.split()

    @property
    def text(self) -> str:
        """All text but the styles, with single spaces."""
        return " ".join(self._words)

    @property
    def pictures(self) -> list[dict[str, str]]:
        """The attributes of every picture."""
        return self.all("img")

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def check_self_contained(self, pictures: int | None = None) -> None:
        """Pictures inside, with alternative texts; no script, nothing that is fetched."""
        assert pictures is None or len(self.pictures) == pictures
        for picture in self.pictures:
            assert picture["src"].startswith("data:image/")
            assert len(picture["alt"].strip()) > 10
            assert int(picture["width"]) > 0
            assert int(picture["height"]) > 0
        tags = {tag for tag, _ in self.elements}
        assert not tags & {"script", "iframe", "object", "embed", "base", "form", "svg"}
        for tag, attributes in self.elements:
            assert not any(name.startswith("on") for name in attributes), tag
            for name in ("src", "href", "srcset", "action", "data"):
                assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert "url(" not in self.style
        assert "@import" not in self.style
        anchors = {attributes["id"] for _, attributes in self.elements if "id" in attributes}
        assert {link["href"][1:] for link in self.all("a")} <= anchors


def read_page(source: Path | str) -> Page:
    """A page from its file or its text."""
    return Page(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)


_PROBE = """<script>
const faults = [];
addEventListener("error", event => faults.push(String(event.message)));
addEventListener("load", async () => {
  const pictures = [...document.images];
  for (const picture of pictures) {
    picture.loading = "eager";
    if (!picture.complete) await new Promise(go => { picture.onload = picture.onerror = go; });
    if (!picture.naturalWidth || !picture.clientWidth) faults.push("no size: " + picture.alt);
  }
  const root = document.documentElement;
  const seen = {faults, pictures: pictures.length, title: document.title,
    page: root.scrollWidth, window: root.clientWidth};
  const answer = document.createElement("pre");
  answer.id = "probe";
  answer.textContent = JSON.stringify(seen);
  document.body.append(answer);
});
</script>"""


def look_in_browser(report: Path, folder: Path, width: int = 1200) -> dict[str, Any]:
    """Open a page in headless Chromium, and say what is wrong with it.

    A copy is opened that has one script, ours, before all else.

    :returns: faults (script errors, pictures that cannot be drawn), pictures (how many), title,
        page and window (their widths in px).
    """
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(_BROWSERS)} is on the PATH")
    copy = folder / "probed.html"
    copy.write_text(
        report.read_text(encoding="utf-8").replace("<head>", f"<head>{_PROBE}", 1), encoding="utf-8"
    )
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}"),
        *(f"--window-size={width},2000", "--virtual-time-budget=20000", "--dump-dom"),
        copy.as_uri(),
    ]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=120, check=True
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, "the browser did not load the page to its end"
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    seen["faults"] += re.findall(r".*CONSOLE.*", done.stderr)
    return seen
