"""All facts and tables about a catalogue, and the parts of its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ..analysis_config import ExploreConfig
from ..reports.pages import Gallery, Picture, Table
from .photo_survey import PhotoSurvey
from .selection import Selection
from .survey import KINDS, TITLE, Survey, cluster_table

# All tables that may be beside the page.
TABLES = (
    *("facts.csv", "columns.csv", "groups.csv", "lookalike_labels.csv", "missing_labels.csv"),
    *(f"repeated_{name}.csv" for name in KINDS.values()),
    *(f"conflicting_{name}.csv" for name in KINDS.values()),
    *("near_pairs.csv", "near_clusters.csv", "escaped_titles.csv"),
    *("kept_groups.csv", "cleaning.csv", "splits.csv", "photos.csv"),
)
_MOST_ROWS = 12


@dataclass(frozen=True)
class Explored:
    """Everything known about a catalogue.

    :ivar name: the catalogue's name on the page.
    :ivar selection: None if nothing could be selected; ``no_selection`` is the reason.
    :ivar photos: None without a folder of photos.
    :ivar folder: the folder in which photos were looked for.
    """

    name: str
    config: ExploreConfig
    survey: Survey
    selection: Selection | None
    no_selection: str
    photos: PhotoSurvey | None
    folder: str

    def facts(self) -> dict[str, int]:
        """Name -> number, of all parts."""
        facts = self.survey.facts()
        facts |= self.selection.facts() if self.selection else {}
        return facts | (self.photos.facts() if self.photos else {})

    def tables(self) -> dict[str, pd.DataFrame]:
        """File name -> table, for the tables that this catalogue has."""
        survey = self.survey
        tables = {
            "facts.csv": pd.DataFrame(self.facts().items(), columns=["fact", "number"]),
            "columns.csv": survey.columns,
        }
        if survey.groups is not None:
            tables["groups.csv"] = survey.groups.rename_axis("label_group").reset_index(name="rows")
            tables["lookalike_labels.csv"] = survey.lookalikes
            tables["missing_labels.csv"] = survey.missing_labels
        for column, repeats in survey.repeats.items():
            tables[f"repeated_{KINDS[column]}.csv"] = repeats.table()
        for column, table in survey.conflicts.items():
            tables[f"conflicting_{KINDS[column]}.csv"] = table
        if survey.near is not None:
            tables["near_pairs.csv"] = survey.near.pair_table()
            tables["near_clusters.csv"] = cluster_table(survey)
        if TITLE in survey.rows:
            tables["escaped_titles.csv"] = survey.escapes
        if self.selection is not None:
            tables["kept_groups.csv"] = self.selection.group_table()
            tables["cleaning.csv"] = self.selection.step_table()
            tables["splits.csv"] = self.selection.splits
        if self.photos is not None:
            tables["photos.csv"] = self.photos.table
        return tables


@dataclass(frozen=True)
class Section:
    """A part of the page: numbers, sentences, points, figures, tables, photos, in this order.

    :ivar small: tables shown side by side if there is room.
    """

    anchor: str
    title: str
    sentences: Sequence[str] = ()
    numbers: Sequence[tuple[str, str]] = ()
    points: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    small: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()


def first_rows(title: str, caption: str, frame: pd.DataFrame, few: int = _MOST_ROWS) -> Table:
    """The first rows of a table; the whole table is in a file beside the page."""
    return Table(title, caption, frame.head(few), max(0, len(frame) - few))


def percent(part: float, whole: float) -> str:
    """A part of a whole: 37.0%."""
    return f"{part / whole:.1%}" if whole else "0.0%"


def ratio(part: int, whole: int, noun: str = "") -> str:
    """A part of a whole with both counts: 30 of 81 label groups (37.0%)."""
    return f"{part:,} of {whole:,}{noun and ' '}{noun} ({percent(part, whole)})"
