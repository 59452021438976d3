"""Photos side by side: those that look alike, and those with contradictory labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.images import read_thumbnail
from ..data.photo_files import find_photo_files
from ..errors import ImageError
from ..reports.pages import Gallery, Tile, photo_picture
from .explored import Section
from .photo_survey import PhotoSurvey
from .survey import GROUP, IMAGE, KINDS, PHASHES, TITLE, Survey

_MOST_TILES = 12
_TILES_OF_GROUP = 3
_MOST_GROUPS = 4
# Most galleries of each kind.
_CONFLICTS = {IMAGE: 2, PHASHES: 1, TITLE: 1}
_PIXELS = 220


def gallery_section(survey: Survey, photos: PhotoSurvey | None) -> Section | None:
    """The largest label group and cluster, a title with several photos, contradictory labels.

    Only photos that decode are shown; a gallery without one is left out.

    :returns: None if there is no gallery.
    """
    if photos is None:
        return None
    rows = survey.rows[survey.rows[IMAGE].isin(set(photos.good[IMAGE]))]
    found = [
        _largest_group(survey, rows, photos.folder),
        _largest_cluster(survey, rows, photos.folder),
        _one_title(rows, photos.folder),
        *_conflicts(survey, rows, photos.folder),
    ]
    shown = [gallery for gallery in found if gallery is not None and gallery.tiles]
    return Section("galleries", "Side by side", galleries=shown) if shown else None


def _largest_group(survey: Survey, rows: pd.DataFrame, folder: Path) -> Gallery | None:
    if survey.groups is None:
        return None
    there = set(rows[GROUP])
    ranked = [str(label) for label in survey.groups.index if label in there]
    if not ranked:
        return None
    label = ranked[0]
    part = rows[rows[GROUP] == label].drop_duplicates(IMAGE)
    caption = (
        f"Label group {label}. Rows: {survey.groups[label]:,}. Photos: {len(part):,}. All should "
        "show the same product."
    )
    return _gallery("The largest label group with photos", caption, part, folder, (TITLE, IMAGE))


def _largest_cluster(survey: Survey, rows: pd.DataFrame, folder: Path) -> Gallery | None:
    if survey.near is None:
        return None
    number = dict(zip(survey.near.phashes, survey.near.cluster.tolist(), strict=True))
    part = rows[rows[PHASHES] != ""].drop_duplicates(IMAGE)
    cluster = part[PHASHES].map(number)
    # A cluster of one phash shows repeats, which are no near copies.
    several = part.groupby(cluster)[PHASHES].nunique() > 1
    sizes = cluster[cluster.map(several)].value_counts()
    if not len(sizes):
        return None
    # Deterministic if several are equally large.
    chosen = min(sizes.index[sizes == sizes.iloc[0]])
    part = part[cluster == chosen].sort_values([PHASHES, IMAGE])
    caption = f"Connected phashes: {part[PHASHES].nunique():,}. Files: {len(part):,}."
    if GROUP in part:
        caption += f" Label groups: {part[GROUP].nunique():,}."
    title = "The largest cluster of near phashes with photos"
    return _gallery(title, caption, part, folder, (GROUP, TITLE, PHASHES))


def _one_title(rows: pd.DataFrame, folder: Path) -> Gallery | None:
    """The title with the most different photos, by phash if known, else by file."""
    if TITLE not in rows:
        return None
    column = PHASHES if PHASHES in rows else IMAGE
    there = rows[(rows[TITLE] != "") & (rows[column] != "")]
    counts = there.groupby(TITLE)[column].nunique()
    if not len(counts) or counts.max() < 2:
        return None
    title = str(counts.index[counts == counts.max()].min())
    part = there[there[TITLE] == title].drop_duplicates(IMAGE)
    caption = f"Title: {title}. Photos: {len(part):,}. The title alone cannot tell them apart."
    return _gallery("One title, different photos", caption, part, folder, (GROUP, IMAGE))


def _conflicts(survey: Survey, rows: pd.DataFrame, folder: Path) -> list[Gallery]:
    """Values under several label groups, with other photos of these groups."""
    found: list[Gallery] = []
    for column, table in survey.conflicts.items():
        there = rows[rows[column].isin(set(table["value"])) & (rows[GROUP] != "")]
        about = there.groupby(column).agg(groups=(GROUP, "nunique"), files=(IMAGE, "nunique"))
        # Several files first: the gallery of files shows a phash that contradicts itself in one.
        about = about[about["groups"] > 1].sort_values("files", ascending=False, kind="stable")
        for value in about.index[: _CONFLICTS[column]]:
            part = _beside_each_other(rows, column, str(value))
            caption = (
                f"{column}={value}. Label groups with photos: {about['groups'][value]:,}. In each, "
                f"photos with this value come first. {KINDS[column].capitalize()} of this kind: "
                f"{len(table):,}."
            )
            title = f"Contradictory labels: one {column}, several label groups"
            found.append(_gallery(title, caption, part, folder, (GROUP, TITLE, IMAGE)))
    return found


def _beside_each_other(rows: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """A few rows of each label group that has a value, those with the value first."""
    groups = sorted(set(rows.loc[rows[column] == value, GROUP]) - {""})
    parts = []
    for group in groups[:_MOST_GROUPS]:
        part = rows[rows[GROUP] == group].drop_duplicates(IMAGE)
        first = part[column] == value
        parts.append(pd.concat([part[first], part[~first]]).head(_TILES_OF_GROUP))
    return pd.concat(parts) if parts else rows.iloc[:0]


def _gallery(
    title: str,
    caption: str,
    part: pd.DataFrame,
    folder: Path,
    columns: Sequence[str],
) -> Gallery:
    tiles = []
    for _, row in part.head(_MOST_TILES).iterrows():
        pixels = _thumbnail(folder, str(row[IMAGE]))
        if pixels is not None:
            lines = [_line(name, str(row[name])) for name in columns if row.get(name)]
            alt = f"Photo {row[IMAGE]}" + (f" of label group {row[GROUP]}" if GROUP in row else "")
            tiles.append(Tile(photo_picture(pixels, alt), lines))
    return Gallery(title, caption, tiles, max(0, len(part) - _MOST_TILES))


def _line(column: str, value: str) -> str:
    return f"group {value}" if column == GROUP else value


def _thumbnail(folder: Path, name: str) -> np.ndarray | None:
    file = find_photo_files(folder, [name]).found()[0]
    try:
        return None if file is None else read_thumbnail(file, _PIXELS)
    except ImageError:
        # It decoded before, so the file has changed since then.
        return None
