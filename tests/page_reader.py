"""A page as a reader without a browser sees it: its text, its tags, what it would load."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text with single spaces."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.style = ""
        self._words: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
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
        return " ".join(self._words)

    @property
    def pictures(self) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def check_self_contained(self, pictures: int) -> None:
        """Everything is inside, nothing is executed, and each picture says what it shows."""
        assert len(self.pictures) == pictures
        for picture in self.pictures:
            assert picture["src"].startswith("data:image/")
            assert len(picture["alt"]) > 10
            assert int(picture["width"]) > 0
            assert int(picture["height"]) > 0
        names = {tag for tag, _ in self.tags}
        assert not names & {"script", "iframe", "object", "embed", "base", "form", "svg"}
        for tag, attributes in self.tags:
            assert not any(name.startswith("on") for name in attributes), tag
            for name in ("src", "href", "srcset", "action", "data"):
                assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name])
        assert "url(" not in self.style
        assert "@import" not in self.style
        assert {a["id"] for _, a in self.tags if "id" in a} >= {
            a["href"][1:] for tag, a in self.tags if tag == "a"
        }


def read_page(source: Path | str) -> Page:
    """A page from its file or its text."""
    return Page(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
