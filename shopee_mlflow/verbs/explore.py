"""Explore: a catalogue in, a page and tables out that tell what is in it, before any training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..config import AUTO, SAMPLE, ExploreConfig, as_params
from ..console import duration, say, watch
from ..data.catalog_csv import IMAGES_NAME, REQUIRED, find_csv, read_catalog
from ..data.dataset import locate_catalog
from ..errors import CatalogError
from ..exploring import TABLES, Explored, explore_page
from ..exploring.catalog_sections import conflicts_line, coverage_line
from ..exploring.photo_sections import states_line
from ..exploring.photo_survey import survey_photos
from ..exploring.selection import select_photos
from ..exploring.survey import survey_catalog
from ..exploring.titles import without_formulas
from ..tracking.environment import machine_tags
from ..tracking.runs import open_run

FOLDER = "explore"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class ExploreResult:
    """What an exploration gave.

    :ivar facts: name -> number.
    :ivar report: the page.
    :ivar tables: file name -> table, as they lie beside the page.
    """

    run_id: str
    facts: dict[str, int]
    report: Path
    tables: dict[str, pd.DataFrame] = field(repr=False)


def explore(config: ExploreConfig, cli_options: Mapping[str, str] | None = None) -> ExploreResult:
    """Survey a catalogue, and log a page and the tables it is drawn from as a run of its own.

    The CSV alone is enough; where photos are, they are looked at, too.

    :param cli_options: options as a person wrote them on the command line; logged in that spelling.
    :raises ShopeeError: when there is no catalogue, or ``out`` cannot be used.
    """
    started = time.monotonic()
    with open_run("explore", config.experiment) as run:
        run.log_params({**as_params(config), **(cli_options or {})})
        run.log_tags(machine_tags("cpu"))
        csv, folder = find_places(config)
        out = prepare_room(Path(config.out).expanduser(), folder)
        explored = look_into(config, csv, folder)
        facts, tables = explored.facts(), explored.tables()
        files = {REPORT_FILE: explore_page(explored)}
        for name, table in tables.items():
            files[name] = without_formulas(table).to_csv(index=False, lineterminator="\n")
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8", newline="")
            run.log_text(text, f"{FOLDER}/{name}")
        run.log_metrics({f"data/{name}": float(count) for name, count in facts.items()})
        say(
            *summary(explored),
            f"{out / REPORT_FILE} and {len(tables)} tables beside it, also in run {run.run_id}, "
            f"{duration(time.monotonic() - started)} in all",
        )
    return ExploreResult(run.run_id, facts, out / REPORT_FILE, tables)


def look_into(config: ExploreConfig, csv: Path, folder: Path | None) -> Explored:
    """All that is known of a catalogue and its photos, None where there is no folder of them."""
    rows = read_catalog(csv, required=("image",))
    photos = None
    if folder is not None:
        photos = survey_photos(
            rows,
            folder,
            most=config.max_photos,
            seed=config.seed,
            workers=config.workers,
            progress=watch("looking at photos"),
        )
    survey = survey_catalog(rows, photos.phashes() if photos else None)
    selection, reason = None, "Without label_group nothing can be said of it."
    if all(name in survey.rows for name in REQUIRED):
        try:
            selection = select_photos(survey.rows, config, photos)
        except CatalogError as error:
            reason = str(error)
    where = _text(folder or csv.parent / IMAGES_NAME)
    return Explored(_called(config, csv), config, survey, selection, reason, photos, where)


def find_places(config: ExploreConfig) -> tuple[Path, Path | None]:
    """The CSV, and the folder of photos, which need not be there unless ``images`` names it."""
    if config.data == SAMPLE or config.images != AUTO:
        return locate_catalog(config, watch)
    csv = find_csv(config.data)
    folder = csv.parent / IMAGES_NAME
    return csv, folder if folder.is_dir() else None


def prepare_room(out: Path, photos: Path | None) -> Path:
    """The folder for the page and its tables, without those of an earlier time.

    :raises CatalogError: when it holds other files, lies among the photos or cannot be made.
    """
    if photos is not None and out.resolve().is_relative_to(photos.resolve()):
        raise CatalogError(f"out={out}: lies in the folder of photos; name another folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = list(out.iterdir())
        if there and not (out / REPORT_FILE).is_file():
            raise CatalogError(
                f"out={out}: holds other files; name a new or empty folder, or one that has an "
                f"earlier {REPORT_FILE}."
            )
        for name in (REPORT_FILE, *TABLES):
            (out / name).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise CatalogError(f"out={out}: cannot be written ({error.strerror or error}).") from error
    return out


def summary(explored: Explored) -> list[str]:
    """What is worth knowing at once, as lines for people."""
    facts = explored.facts()
    counts = [
        f"{facts[name]:,} {words}"
        for name, words in (
            ("rows", "rows"),
            ("distinct_files", "files"),
            ("distinct_phashes", "phashes"),
            ("distinct_titles", "titles"),
            ("label_groups", "label groups"),
        )
        if name in facts
    ]
    lines = [", ".join(counts)]
    if explored.photos is None:
        lines.append(f"No folder of photos at {explored.folder}: the report comes from the CSV.")
    else:
        lines.append(states_line(explored.photos))
    if explored.survey.conflicts:
        lines.append(conflicts_line(explored.survey))
    if explored.selection is not None:
        lines.append(coverage_line(explored.selection))
    return lines


def _called(config: ExploreConfig, csv: Path) -> str:
    """What people call the catalogue; most CSV files are called train.csv."""
    if config.data == SAMPLE:
        return "the built-in sample"
    return _text(Path(csv.absolute().parent.name) / csv.name)


def _text(path: Path) -> str:
    """A path as text; file names need not be UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")
