"""What every report must keep: all inside the file, nothing run, nothing fetched; and a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Page(HTMLParser):
    """An HTML page taken apart: its elements with their attributes, and its text."""

    html: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]


def assert_self_contained(html: str) -> Page:
    """Pictures inside, with alternative texts; no script, nothing that is fetched from outside."""
    page = Page(html)
    for image in page.all("img"):
        assert image["src"].startswith("data:image/")
        assert image["alt"].strip()
        assert int(image["width"]) > 0
        assert int(image["height"]) > 0
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has {name}"
            if name in {"href", "src", "srcset", "action", "data"}:
                assert value.startswith(("#", "data:")), f"{tag} asks for {value[:80]}"
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in anchors
    for style in re.findall(r"<style>(.*?)</style>", html, re.DOTALL):
        assert "url(" not in style
        assert "@import" not in style
    return page


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
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no chromium here to open the page with")
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
    answer = Page(done.stdout[done.stdout.index('<pre id="probe">') :]).texts[0]
    seen: dict[str, Any] = json.loads(answer)
    seen["faults"] += re.findall(r".*CONSOLE.*", done.stderr)
    return seen
