"""All that is known of a catalogue, in one piece, and the tables that keep it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from ..config import ExploreConfig
from .photo_survey import PhotoSurvey
from .selection import Selection
from .survey import KINDS, TITLE, Survey, cluster_table

# Every table that may lie beside the page.
TABLES = (
    *("facts.csv", "columns.csv", "groups.csv"),
    *(f"repeated_{name}.csv" for name in KINDS.values()),
    *(f"conflicting_{name}.csv" for name in KINDS.values()),
    *("near_pairs.csv", "near_clusters.csv", "escaped_titles.csv"),
    *("kept_groups.csv", "cleaning.csv", "splits.csv", "photos.csv"),
)


@dataclass(frozen=True)
class Explored:
    """All that is known of a catalogue.

    :ivar name: what to call it on the page.
    :ivar selection: None where nothing could be selected; ``no_selection`` tells why.
    :ivar photos: None where there is no folder of photos.
    :ivar folder: where photos were looked for.
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
        """File name -> the table that the page is drawn from; those that can be made."""
        survey = self.survey
        tables = {
            "facts.csv": pd.DataFrame(self.facts().items(), columns=["fact", "number"]),
            "columns.csv": survey.columns,
        }
        if survey.groups is not None:
            tables["groups.csv"] = survey.groups.rename_axis("label_group").reset_index(name="rows")
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
