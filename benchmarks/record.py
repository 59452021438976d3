"""Store each measurement in a file when it is done, so that a benchmark can be resumed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from .job import Job


@dataclass
class Record:
    """A file of JSON lines, each with the settings and the result of a job.

    :ivar file: None: nothing is stored.
    """

    file: Path | None
    lines: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, file: Path | None, resume: bool) -> Record:
        """Open a record; with ``resume``, read the measurements in the file."""
        record = cls(file)
        if file is None:
            return record
        file.parent.mkdir(parents=True, exist_ok=True)
        if resume and file.is_file():
            text = file.read_text(encoding="utf-8")
            record.lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif file.is_file() and file.stat().st_size:
            raise SystemExit(f"{file} holds measurements: add --resume, or name another file")
        return record

    def find(self, job: Job) -> dict[str, Any] | None:
        """The newest result of this job that did not fail."""
        for line in reversed(self.lines):
            if line["settings"] == job.settings() and "failed" not in line["result"]:
                return dict(line["result"])
        return None

    def add(self, job: Job, result: dict[str, Any]) -> None:
        """Store a result."""
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        line = {"when": when, "settings": job.settings(), "result": result}
        self.lines.append(line)
        if self.file:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
