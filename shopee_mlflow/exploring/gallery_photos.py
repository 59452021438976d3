"""The part of the page that only photos can tell."""

from __future__ import annotations

from ..reports.pages import Picture, Table, figure_picture
from . import catalog_figures as draw
from . import photo_words as say
from .explored import Explored
from .galleries import galleries
from .photo_survey import BAD, LEFT_OUT, MISSING, OK, OUTSIDE, PhotoSurvey
from .sections import Section, first_rows

_STATES = {
    OK: "Decoded",
    BAD: "Do not decode",
    MISSING: "Missing",
    OUTSIDE: "Outside of the folder",
    LEFT_OUT: "Not looked at",
}


def photo_section(explored: Explored) -> Section:
    """Which photos are there, their sizes, shapes and colours, and whether phashes are theirs."""
    photos = explored.photos
    if photos is None:
        where = f"There is no folder of photos: {explored.folder} was looked for."
        return Section("photos", "Photos", [f"{where} Name one with the option images."])
    states = photos.table["state"].value_counts()
    words = [say.states_in_words(photos)]
    if photos.good["phash_bits"].notna().any():
        words.append(say.phash_in_words(photos))
    order = [state for state in _STATES if state in states]
    tiles = [(_STATES[state], f"{states[state]:,}") for state in order]
    return Section(
        "photos",
        "Photos",
        words,
        tiles,
        pictures=_photo_pictures(photos, explored.config.image_size),
        small=_photo_tables(photos),
    )


def _photo_pictures(photos: PhotoSurvey, image_size: int) -> list[Picture]:
    good = photos.good
    if good.empty:
        return []
    made = [
        (
            draw.sides_figure(good, image_size),
            "Histogram of photos by their shorter side.",
            say.sides_in_words(good, image_size),
        ),
        (
            draw.aspect_figure(good),
            "Histogram of photos by width divided by height.",
            say.aspect_in_words(good),
        ),
        (draw.bytes_figure(good), "Histogram of photos by file size.", say.bytes_in_words(good)),
        (
            draw.levels_figure(photos.levels),
            "Share of pixels at each level of red, green and blue.",
            say.levels_in_words(photos),
        ),
    ]
    bits = good["phash_bits"].dropna().astype(int)
    if bits.any():
        made.append(
            (
                draw.phash_figure(bits.to_numpy()),
                "Histogram of photos by the bits in which their phash differs from the listed one.",
                "Bits in which phashes computed here differ from those of the catalogue.",
            )
        )
    return [figure_picture(figure, alt, words) for figure, alt, words in made]


def _photo_tables(photos: PhotoSurvey) -> list[Table]:
    good, bad = photos.good, photos.table[photos.table["state"] == BAD]
    tables = []
    if len(bad):
        tables.append(first_rows("Photos that do not decode", "", bad[["image", "reason"]]))
    wrong = good[good["phash_bits"].fillna(0) > 0]
    if len(wrong):
        columns = ["image", "listed_phash", "phash", "phash_bits"]
        worst = wrong.sort_values("phash_bits", ascending=False, kind="stable")[columns]
        tables.append(first_rows("Photos whose phash is another", "", worst))
    if len(good):
        kinds = good.value_counts(["format", "mode"]).reset_index(name="photos")
        tables.append(first_rows("Formats and colour modes", "", kinds))
        sizes = good.value_counts(["width", "height"]).reset_index(name="photos")
        tables.append(first_rows("Most frequent sizes", "", sizes, few=8))
    return tables


def gallery_section(explored: Explored) -> Section | None:
    """Photos beside each other; None where no photo is there."""
    if explored.photos is None or explored.photos.good.empty:
        return None
    shown = galleries(explored.survey, explored.photos)
    return Section("galleries", "Side by side", galleries=shown) if shown else None
