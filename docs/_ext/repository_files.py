"""Links of the pages to files of the repository outside ``docs/``.

On the repository's site they are links. Here those files are no pages, so their paths are shown. A
link to a file that does not exist stays a warning.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
_LINK = re.compile(r"\[[^\]]+\]\((?P<target>\.\./[^)#]+)[^)]*\)")


def name_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace such links in a page by the path in the repository, as literal text."""

    def named(link: re.Match[str]) -> str:
        path = (Path(app.env.doc2path(page)).parent / link["target"]).resolve()
        if not path.exists() or path.is_relative_to(DOCS):
            return link[0]
        return f"`{path.relative_to(DOCS.parent).as_posix()}`"

    source[0] = _LINK.sub(named, source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", name_files)
    return {"parallel_read_safe": True}
