"""The folder of a report: where a command may write, and which files it may replace."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..errors import ConfigError
from .pages import generator_of

REPORT_FILE = "report.html"


def prepare_report_folder(out: Path, command: str) -> None:
    """Create the folder of a command's report, or accept one with an earlier report of it.

    :param command: the command that writes the report, as in the page's generator.
    :raises ConfigError: when the folder has other files without such a report, or cannot be
        written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and generator_of(out / REPORT_FILE) != command:
            raise ConfigError(
                [
                    f"out={out}: holds other files; name a new or empty folder, or one with an "
                    f"earlier {command} report"
                ]
            )
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError([f"out={out}: cannot be written ({error.strerror or error})"]) from error
