"""Explore: describe a catalogue before training, as a page and tables."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..analysis_config import ExploreConfig
from ..config import as_params
from ..console import duration, say, watch
from ..data.catalog_csv import IMAGES_NAME
from ..data.catalog_forms import Catalog, folder_name, load_catalog
from ..data.cleaning_record import Cleaning
from ..data.columns import REQUIRED
from ..data.corrections import apply_corrections
from ..data.titles import without_formulas
from ..data_config import AUTO, SAMPLE
from ..errors import CatalogError, ConfigError
from ..exploring import TABLES, Explored, explore_page
from ..exploring.catalog_sections import conflicts_line, coverage_line
from ..exploring.photo_sections import states_line
from ..exploring.photo_survey import survey_photos
from ..exploring.selection import select_photos
from ..exploring.survey import survey_catalog
from ..options import expand_path
from ..reports.report_folder import REPORT_FILE, prepare_report_folder
from ..tracking.environment import machine_tags
from ..tracking.links import report_link, view_lines
from ..tracking.names import DESCRIPTION_TAG, EXPLORE
from ..tracking.runs import open_run
from ..tracking.signals import stop_on_signals

FOLDER = "explore"


@dataclass(frozen=True)
class ExploreResult:
    """The result of an exploration.

    :ivar facts: name -> number.
    :ivar report: path of the page.
    :ivar tables: name of a file beside the page -> the table in it.
    """

    run_id: str
    facts: dict[str, int]
    report: Path
    tables: dict[str, pd.DataFrame] = field(repr=False)


def explore(config: ExploreConfig, cli_options: Mapping[str, str] | None = None) -> ExploreResult:
    """Survey a catalogue, and log a page and its tables as a run.

    Photos are optional; without them, only the table is surveyed.

    :param cli_options: command-line options, which are logged as they were typed.
    :raises ShopeeError: when there is no catalogue, or ``out`` cannot be used.
    """
    started = time.monotonic()
    photos = config.data == SAMPLE or config.images != AUTO
    catalog = load_catalog(config, watch, required=("image",), photos=photos)
    cleaning = Cleaning(rows=len(catalog.rows))
    rows = apply_corrections(catalog.rows, config.corrections, cleaning)
    catalog = dataclasses.replace(catalog, rows=rows.reset_index(drop=True))
    out = prepare_folder(expand_path(config.out), catalog.folder)
    with stop_on_signals():
        explored = explore_catalog(config, catalog, cleaning)
    facts, tables = explored.facts(), explored.tables()
    name = _run_subject(config, catalog.source)
    # Opened last, so that a mistake of the user leaves no failed run.
    with open_run(f"explore {name}", config.experiment, kind=EXPLORE) as run:
        run.log_params({**as_params(config), **(cli_options or {})})
        run.log_tags(machine_tags("cpu"))
        files = {REPORT_FILE: explore_page(explored)}
        for file, table in tables.items():
            files[file] = without_formulas(table).to_csv(index=False, lineterminator="\n")
        for file, text in files.items():
            (out / file).write_text(text, encoding="utf-8", newline="")
            run.log_text(text, f"{FOLDER}/{file}")
        rows = explored.survey.rows
        run.log_dataset(rows, str(catalog.source), name, None, facts, "exploration")
        lines = summary(explored)
        report = report_link(run.experiment_id, run.run_id, f"{FOLDER}/{REPORT_FILE}")
        run.log_tags({DESCRIPTION_TAG: "\n\n".join([*lines, f"Report: {report}"])})
        say(
            *lines,
            f"{out / REPORT_FILE} and {len(tables)} tables beside it, also in the run",
            *view_lines(run, f"{duration(time.monotonic() - started)} in all"),
        )
    return ExploreResult(run.run_id, facts, out / REPORT_FILE, tables)


def explore_catalog(config: ExploreConfig, catalog: Catalog, cleaning: Cleaning) -> Explored:
    """Survey a catalogue and its photos.

    :param cleaning: the record of the corrections that were applied.
    """
    rows, folder = catalog.rows, catalog.folder
    photos = None
    if folder is not None:
        photos = survey_photos(
            rows,
            folder,
            most=config.max_photos,
            seed=config.seed,
            workers=config.workers,
            progress=watch("reading photos"),
        )
    survey = survey_catalog(rows, photos.phashes() if photos else None)
    selection, reason = None, "Without label_group this is unknown."
    if all(name in survey.rows for name in REQUIRED):
        try:
            selection = select_photos(survey.rows, config, photos, cleaning)
        except CatalogError as error:
            reason = str(error)
    where = _text(folder or catalog.source.parent / IMAGES_NAME)
    name = _catalog_name(config, catalog.source)
    return Explored(name, config, survey, selection, reason, photos, where)


def prepare_folder(out: Path, photos: Path | None) -> Path:
    """Create the folder of the page and its tables, and delete those of an earlier exploration.

    :raises ConfigError: when it has other files, is in the folder of photos or cannot be written.
    """
    if photos is not None and out.resolve().is_relative_to(photos.resolve()):
        raise ConfigError([f"out={out}: is in the folder of photos; name another folder"])
    prepare_report_folder(out, "explore")
    for name in (REPORT_FILE, *TABLES):
        (out / name).unlink(missing_ok=True)
    return out


def summary(explored: Explored) -> list[str]:
    """The lines for the console."""
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
    lines += explored.survey.label_remarks()
    if explored.survey.conflicts:
        lines.append(conflicts_line(explored.survey))
    if explored.selection is not None:
        lines.append(coverage_line(explored.selection))
    return lines


def _catalog_name(config: ExploreConfig, csv: Path) -> str:
    """The name of the catalogue: folder and file, since most CSV files are named train.csv."""
    if config.data == SAMPLE:
        return "the built-in sample"
    return _text(Path(csv.absolute().parent.name) / csv.name)


def _run_subject(config: ExploreConfig, source: Path) -> str:
    """A short name of the catalogue, for its run and its dataset in MLflow."""
    return SAMPLE if config.data == SAMPLE else _text(Path(folder_name(source)))


def _text(path: Path) -> str:
    """A path as text; file names need not be UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")
