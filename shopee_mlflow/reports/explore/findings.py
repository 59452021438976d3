"""What stands out in a catalogue, and what cannot be known of it: the top of the report."""

from __future__ import annotations

import pandas as pd

from ...data.near_copies import NEAR_BITS
from ...data.photo_survey import BAD, MISSING, OK, OUTSIDE, PhotoSurvey
from ...data.selection import Selection
from ...data.survey import GROUP, KINDS, PHASHES, TITLE, Survey
from .words import SINGULAR, counted, listing, share


def findings(
    survey: Survey, selection: Selection | None, photos: PhotoSurvey | None, image_size: int
) -> list[str]:
    """What to know before training, a sentence each; nothing is said where nothing is amiss."""
    said = []
    noise = [
        counted(len(t), SINGULAR[KINDS[c]], KINDS[c]) for c, t in survey.conflicts.items() if len(t)
    ]
    if noise:
        said.append(f"Contradictory labels: {listing(noise)} under more than one label group.")
    if survey.groups is not None and (survey.groups == 2).any():
        two = int((survey.groups == 2).sum())
        said.append(
            f"Small groups: {two:,} of {counted(len(survey.groups), 'label group')} "
            f"({share(two, len(survey.groups))}) have 2 rows."
        )
    if selection is not None:
        said += _copies(selection)
    escaped = int(survey.escapes["rows"].sum())
    if escaped:
        said.append(f"Garbled titles: {escaped:,} hold bytes written as text.")
    if survey.invalid_phashes:
        count = counted(survey.invalid_phashes, "entry", "entries")
        said.append(f"Phashes: {count} of image_phash {_are(survey.invalid_phashes)} no phash.")
    return said + (_defects(photos, image_size) if photos is not None else [])


def _copies(selection: Selection) -> list[str]:
    said = []
    splits: pd.DataFrame = selection.splits
    for mode, column, words in (
        ("random", "copies", "an equal copy"),
        ("leak_free", "near_copies", f"a near copy (up to {NEAR_BITS} bits off)"),
    ):
        part = splits[splits["split"] == mode]
        if len(part) and part[column].sum():
            rate = share(part[column].sum(), part["test"].sum())
            said.append(f"Copies: with split={mode}, {rate} of test photos have {words} in train.")
    return said


def _defects(photos: PhotoSurvey, image_size: int) -> list[str]:
    said = []
    good = photos.good
    for state, words in ((MISSING, "not there"), (OUTSIDE, "outside of the folder of photos")):
        count = photos.count(state)
        if count:
            said.append(f"Photos: {counted(count, 'file')} {_are(count)} {words}.")
    bad = photos.count(BAD)
    if bad:
        said.append(f"Photos: {counted(bad, 'file')} of {bad + photos.count(OK):,} cannot be read.")
    small = int((good[["width", "height"]].min(axis=1) < image_size).sum()) if len(good) else 0
    if small:
        said.append(
            f"Photos: {small:,} of {len(good):,} {_are(small)} smaller than "
            f"image_size={image_size}."
        )
    wrong = int((good["phash_bits"].fillna(0) > NEAR_BITS).sum())
    if wrong:
        said.append(f"Phashes: {wrong:,} {_are(wrong)} not of the photo that they stand beside.")
    return said


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def unknown(survey: Survey, photos: PhotoSurvey | None, folder: str) -> list[str]:
    """What cannot be known from what there is, a sentence each."""
    said = []
    without_phashes = PHASHES not in survey.rows
    if photos is None or photos.good.empty:
        where = f"no photo is in {folder}" if folder else "there are none beside the CSV"
        said.append(
            f"Without photos ({where}): their sizes, shapes, colours and defects, whether "
            "the phashes are right, and what a training would leave out for missing or damaged "
            "files. Everything below comes from the CSV alone."
        )
    elif not photos.complete:
        said.append(
            f"Photos beyond the {photos.count(OK) + photos.count(BAD):,} that were looked at: what "
            "is said of photos is true of these; what is said of the CSV is true of all rows."
        )
    if without_phashes:
        said.append(
            "Without image_phash and without photos: which photos are copies of each other, and "
            "what a split would leak."
        )
    elif PHASHES in survey.absent:
        known = int((survey.rows[PHASHES] != "").sum())
        said.append(
            f"The CSV has no image_phash; {known:,} of {len(survey.rows):,} rows have one here, "
            "computed from their photos."
        )
    if GROUP in survey.absent:
        said.append(
            "Without label_group: sizes of groups, wrong labels, what a training would keep, and "
            "what its split would leak."
        )
    if TITLE in survey.absent:
        said.append("Without title: which titles repeat, contradict each other or are garbled.")
    return said
