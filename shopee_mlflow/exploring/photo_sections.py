"""The sections of explore's page that come from the photos."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from ..data.near_copies import NEAR_BITS
from ..reports.pages import Picture, Table, figure_picture
from . import catalog_figures as figures
from .explored import Explored, Section, first_rows, ratio
from .photo_survey import BAD, LEFT_OUT, MISSING, OK, OUTSIDE, PhotoSurvey

_STATES = {
    OK: "Decoded",
    BAD: "Not decodable",
    MISSING: "Missing",
    OUTSIDE: "Outside of the folder",
    LEFT_OUT: "Not opened",
}
_BRIGHT = 250
_LONG = 1.5


def photo_findings(photos: PhotoSurvey, image_size: int) -> list[str]:
    """Problems of the photos, one line each; empty if there are none."""
    good, total = photos.good, len(photos.table)
    opened = len(good) + photos.count(BAD)
    small = int((_sides(good).min(axis=1) < image_size).sum())
    wrong = int((good["phash_bits"].fillna(0) > NEAR_BITS).sum())
    counts = [
        ("Missing photos", photos.count(MISSING), total),
        ("Photos outside of the folder", photos.count(OUTSIDE), total),
        ("Photos that cannot be decoded", photos.count(BAD), opened),
        (f"Photos smaller than image_size={image_size}", small, len(good)),
        (f"Phashes more than {NEAR_BITS} bits off their photo", wrong, len(good)),
    ]
    return [f"{name}: {ratio(part, whole)}." for name, part, whole in counts if part]


def photo_section(explored: Explored) -> Section:
    """The section on photos: which are present, sizes, shapes, colours, and matching phashes."""
    photos = explored.photos
    if photos is None:
        where = f"No folder of photos at {explored.folder}. Name one with the option images."
        return Section("photos", "Photos", [where])
    counts = {name: photos.count(state) for state, name in _STATES.items()}
    sentences = [states_line(photos)]
    sides = _sides(photos.good).drop_duplicates()
    if len(sides) == 1:
        sentences.append(f"All photos are {sides.width.iloc[0]:,} x {sides.height.iloc[0]:,} px.")
    if photos.good["phash_bits"].notna().any():
        sentences.append(_phash(photos.good))
    return Section(
        "photos",
        "Photos",
        sentences,
        [(name, f"{count:,}") for name, count in counts.items() if count],
        pictures=_pictures(photos, explored.config.image_size),
        small=_tables(photos),
    )


def states_line(photos: PhotoSurvey) -> str:
    """The number of the catalogue's photos that are present, and that decode."""
    opened = photos.count(OK) + photos.count(BAD)
    text = f"Photos present: {ratio(photos.present, len(photos.table))}."
    if photos.count(LEFT_OUT):
        text += f" Opened, chosen at random: {opened:,}."
    return f"{text} Decoded: {ratio(photos.count(OK), opened)}." if opened else text


def _phash(good: pd.DataFrame) -> str:
    bits = good["phash_bits"].dropna().astype(int)
    off = int((bits > NEAR_BITS).sum())
    text = (
        f"Phashes equal to that of their photo: {ratio(int((bits == 0).sum()), len(bits))}. "
        f"Largest difference: {bits.max()} bits."
    )
    if not off:
        return text
    return (
        f"{text} More than {NEAR_BITS} bits: {off:,}; there the photo was changed, or the phash is "
        "that of another photo."
    )


def _pictures(photos: PhotoSurvey, image_size: int) -> list[Picture]:
    good = photos.good
    if good.empty:
        return []
    made = _sizes(good, image_size) if len(_sides(good).drop_duplicates()) > 1 else []
    made += [
        (figures.bytes_figure(good), "Histogram of photos by file size.", _bytes(good)),
        (
            figures.levels_figure(photos.levels),
            "Share of pixels at each level of red, green and blue.",
            _levels(photos),
        ),
    ]
    bits = good["phash_bits"].dropna().astype(int)
    if bits.any():
        words = "Bits in which the computed phash differs from the catalogue's."
        made.append((figures.phash_figure(bits.to_numpy()), f"Histogram of photos. {words}", words))
    return [figure_picture(figure, alt, caption) for figure, alt, caption in made]


def _sizes(good: pd.DataFrame, image_size: int) -> list[tuple[Figure, str, str]]:
    """Figures of sizes and shapes, each with what it shows and its caption."""
    return [
        (
            figures.sides_figure(good, image_size),
            "Histogram of photos by their shorter side.",
            _shorter_sides(good, image_size),
        ),
        (
            figures.aspect_figure(good),
            "Histogram of photos by width divided by height.",
            _aspect(good),
        ),
    ]


def _sides(good: pd.DataFrame) -> pd.DataFrame:
    return good[["width", "height"]].astype(int)


def _shorter_sides(good: pd.DataFrame, image_size: int) -> str:
    sides = _sides(good).min(axis=1)
    small = ratio(int((sides < image_size).sum()), len(good))
    return (
        f"Shorter side: {sides.min():,} to {sides.max():,} px, median {sides.median():,.0f}. Below "
        f"image_size={image_size}, so enlarged: {small}."
    )


def _aspect(good: pd.DataFrame) -> str:
    sides = _sides(good)
    longer = sides.max(axis=1) / sides.min(axis=1)
    return (
        f"Square photos: {ratio(int((longer == 1).sum()), len(good))}. With one side more than "
        f"{_LONG} times the other: {int((longer > _LONG).sum()):,}; at most {longer.max():.1f} "
        "times. Stretching to a square distorts all but square photos."
    )


def _bytes(good: pd.DataFrame) -> str:
    kilobytes = good["bytes"].astype(float) / 1e3
    return (
        f"Total: {kilobytes.sum() / 1e3:,.1f} MB. File size: {kilobytes.min():,.1f} to "
        f"{kilobytes.max():,.1f} kB, median {kilobytes.median():,.1f}."
    )


def _levels(photos: PhotoSurvey) -> str:
    means = ", ".join(f"{photos.good[name].mean() / 255:.3f}" for name in ("red", "green", "blue"))
    bright = float(photos.levels[:, _BRIGHT:].sum() / 3)
    return (
        f"Mean of red, green, blue: {means} of 1 (ImageNet: 0.485, 0.456, 0.406). Values of "
        f"{_BRIGHT} or more, which are nearly white: {bright:.1%}."
    )


def _tables(photos: PhotoSurvey) -> list[Table]:
    good, bad = photos.good, photos.table[photos.table["state"] == BAD]
    tables = []
    if len(bad):
        tables.append(first_rows("Photos that cannot be decoded", "", bad[["image", "reason"]]))
    wrong = good[good["phash_bits"].fillna(0) > 0]
    if len(wrong):
        columns = ["image", "listed_phash", "phash", "phash_bits"]
        worst = wrong.sort_values("phash_bits", ascending=False, kind="stable")[columns]
        tables.append(first_rows("Photos whose phash differs", "", worst))
    if len(good):
        kinds = good.value_counts(["format", "mode"]).reset_index(name="photos")
        tables.append(first_rows("Formats and colour modes", "", kinds))
        sizes = good.value_counts(["width", "height"]).reset_index(name="photos")
        tables.append(first_rows("Most frequent sizes", "", sizes, few=8))
    return tables
