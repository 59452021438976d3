"""What stands out in a catalogue, and what cannot be known of it: the top of the report."""

from __future__ import annotations

from ..data.near_copies import NEAR_BITS
from .grammar import SINGULAR, counted, listing, part_of, share, verb
from .photo_survey import BAD, MISSING, OK, OUTSIDE, PhotoSurvey
from .selection import Selection
from .survey import GROUP, KINDS, PHASHES, TITLE, Survey


def findings(
    survey: Survey, selection: Selection | None, photos: PhotoSurvey | None, image_size: int
) -> list[str]:
    """What to know before training, a sentence each; nothing is said where nothing is amiss."""
    said = []
    noise = [
        counted(len(table), SINGULAR[KINDS[column]], KINDS[column])
        for column, table in survey.conflicts.items()
        if len(table)
    ]
    if noise:
        said.append(f"Contradictory labels: {listing(noise)} under more than one label group.")
    two = int((survey.groups == 2).sum()) if survey.groups is not None else 0
    if survey.groups is not None and two:
        some = part_of(two, len(survey.groups), "label groups")
        said.append(f"Small groups: {some} {verb(two, 'has', 'have')} 2 rows.")
    if selection is not None:
        said += _copies(selection)
    escaped = int(survey.escapes["rows"].sum())
    if escaped:
        holds = verb(escaped, "title holds", "titles hold")
        said.append(f"Garbled titles: {escaped:,} {holds} bytes written as text.")
    if survey.invalid_phashes:
        count = counted(survey.invalid_phashes, "entry", "entries")
        are = verb(survey.invalid_phashes, "is", "are")
        said.append(f"Phashes: {count} of image_phash {are} no phash.")
    return said + (_defects(photos, image_size) if photos is not None else [])


def _copies(selection: Selection) -> list[str]:
    said = []
    for mode, column, words in (
        ("random", "copies", "an equal copy"),
        ("leak_free", "near_copies", f"a near copy (up to {NEAR_BITS} bits off)"),
    ):
        part = selection.splits[selection.splits["split"] == mode]
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
            are = verb(count, "is", "are")
            said.append(f"Photos: {part_of(count, len(photos.table), 'files')} {are} {words}.")
    bad = photos.count(BAD)
    if bad:
        said.append(f"Photos: {bad:,} of {bad + photos.count(OK):,} cannot be decoded.")
    small = int((good[["width", "height"]].min(axis=1) < image_size).sum()) if len(good) else 0
    if small:
        some = part_of(small, len(good), "photos")
        are = verb(small, "is", "are")
        said.append(f"Photos: {some} {are} smaller than image_size={image_size}.")
    wrong = int((good["phash_bits"].fillna(0) > NEAR_BITS).sum())
    if wrong:
        are = verb(wrong, "is", "are")
        said.append(f"Phashes: {wrong:,} {are} not of the photo that they stand beside.")
    return said


def unknown(survey: Survey, photos: PhotoSurvey | None, folder: str) -> list[str]:
    """What cannot be known from what there is, a sentence each."""
    said = []
    if photos is None or photos.good.empty:
        why = f"{'none' if photos is None or not photos.count(BAD) else 'none that decodes'}"
        said.append(
            f"Without photos ({why} in {folder}): their sizes, shapes and colours, whether the "
            "phashes are right, and what a training would leave out for missing or damaged files. "
            "What follows comes from the CSV alone."
        )
    elif not photos.complete:
        said.append(
            f"Photos beyond the {photos.count(OK) + photos.count(BAD):,} that were looked at: what "
            "is said of photos is true of these; what is said of the CSV is true of all rows."
        )
    if PHASHES not in survey.rows:
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
