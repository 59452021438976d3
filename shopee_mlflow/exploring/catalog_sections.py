"""The page of explore, and its sections that come from the CSV."""

from __future__ import annotations

import pandas as pd

from ..data.near_copies import NEAR_BITS
from ..data.splits import copy_words
from ..data_config import DataConfig
from ..reports.pages import Table, figure_picture, render
from . import catalog_figures as figures
from .explored import Explored, Section, first_rows, percent, ratio
from .galleries import gallery_section
from .photo_sections import photo_findings, photo_section
from .photo_survey import BAD, OK
from .selection import GIVEN, Selection
from .survey import (
    GROUP,
    KINDS,
    MOST_LISTED,
    PHASHES,
    SINGULAR,
    TITLE,
    NearCopies,
    Survey,
    cluster_table,
)

# A 10 % test split has less than one photo of a smaller group.
_ONE_TEST_PHOTO = 10


def explore_page(explored: Explored) -> str:
    """The page, with its sections in this order."""
    files = [f"{name}: {len(table):,} rows" for name, table in explored.tables().items()]
    found = [
        _overview(explored),
        _unknown(explored),
        _groups(explored.survey),
        _copies(explored.survey),
        _conflicts(explored.survey),
        _titles(explored.survey),
        _training(explored),
        photo_section(explored),
        gallery_section(explored.survey, explored.photos),
        Section("files", "Tables", ["The tables in full, beside this page:"], points=files),
    ]
    photos = 0 if explored.photos is None else len(explored.photos.good)
    lead = f"Rows: {len(explored.survey.rows):,}. Photos: {photos:,}."
    return render(
        "explore.html.j2",
        title=f"What is in {explored.name}",
        lead=lead if photos else f"{lead} This report comes from the CSV alone.",
        sections=[section for section in found if section is not None],
    )


def _overview(explored: Explored) -> Section:
    survey, photos = explored.survey, explored.photos
    numbers = [("Rows", len(survey.rows))]
    numbers += [(f"Distinct {KINDS[c]}", repeats.distinct) for c, repeats in survey.repeats.items()]
    if survey.groups is not None:
        numbers.append(("Label groups", len(survey.groups)))
    if photos is not None:
        numbers.append(("Photos present", photos.present))
    if explored.selection is not None:
        kept = f"Files kept by largest_groups={explored.config.largest_groups}"
        numbers.append((kept, len(explored.selection.chosen)))
    points = findings(explored)
    return Section(
        "overview",
        "At a glance",
        ["Check before training:" if points else "No problem was found."],
        [(name, f"{number:,}") for name, number in numbers],
        points,
        small=[Table("Columns", "", survey.columns)],
    )


def findings(explored: Explored) -> list[str]:
    """Problems to check before training, one line each; empty if there are none."""
    survey, selection = explored.survey, explored.selection
    points = [f"{line}." for line in survey.label_remarks()]
    if any(len(table) for table in survey.conflicts.values()):
        points.append(conflicts_line(survey))
    two = int((survey.groups == 2).sum()) if survey.groups is not None else 0
    if survey.groups is not None and two:
        points.append(f"Label groups with 2 rows: {ratio(two, len(survey.groups))}.")
    if selection is not None:
        points += _leaks(selection)
    if len(survey.escapes):
        count = survey.escapes["rows"].sum()
        points.append(f"Titles with UTF-8 bytes written as text: {count:,}.")
    if survey.invalid_phashes:
        points.append(f"Entries of image_phash that are not a phash: {survey.invalid_phashes:,}.")
    if explored.photos is not None:
        points += photo_findings(explored.photos, explored.config.image_size)
    return points


def conflicts_line(survey: Survey) -> str:
    """The number of files, phashes and titles with contradictory labels."""
    counts = ", ".join(
        f"{len(table):,} {SINGULAR[c] if len(table) == 1 else KINDS[c]}"
        for c, table in survey.conflicts.items()
    )
    return f"Under more than one label group: {counts}."


def _leaks(selection: Selection) -> list[str]:
    found = []
    for mode, column, what in (
        (GIVEN, "copies", "a copy"),
        ("random", "copies", "a copy"),
        ("leak_free", "near_copies", f"a phash up to {NEAR_BITS} bits off"),
    ):
        part = selection.splits[selection.splits["split"] == mode]
        if len(part) and part[column].sum():
            share = percent(part[column].sum(), part["test"].sum())
            found.append(f"Test photos with {what} in train, split={mode}: {share}.")
    return found


def _unknown(explored: Explored) -> Section | None:
    """Facts that are unknown for this catalogue, one line for each missing column or photo."""
    survey, photos = explored.survey, explored.photos
    points = []
    if photos is None or photos.good.empty:
        points.append(
            f"No photo could be read in {explored.folder}. Sizes, shapes and colours, the "
            "correctness of phashes and damaged files are unknown."
        )
    elif not photos.complete:
        opened = photos.count(OK) + photos.count(BAD)
        points.append(
            f"Statements about photos come from a random sample of {opened:,}; statements about "
            "the CSV come from all rows."
        )
    if PHASHES not in survey.rows:
        points.append("No image_phash and no photos: copies and leaks of a split are unknown.")
    elif PHASHES in survey.absent:
        known = int((survey.rows[PHASHES] != "").sum())
        points.append(
            f"No image_phash in the CSV. Rows with a phash computed from the photo: "
            f"{ratio(known, len(survey.rows))}."
        )
    if survey.near is not None and not survey.near.pairs.complete:
        points.append(
            "Very many phashes are alike. The search for near copies stopped after "
            f"{len(survey.near.pairs):,} pairs, so there may be more pairs, larger clusters and "
            "more near copies in train."
        )
    if survey.near is not None and len(survey.near.pairs) > MOST_LISTED:
        points.append(f"near_pairs.csv lists the nearest {MOST_LISTED:,} pairs only.")
    if GROUP in survey.absent:
        points.append(
            "No label_group: group sizes, contradictory labels, and what training keeps are "
            "unknown."
        )
    if TITLE in survey.absent:
        points.append("No title: repeated, contradictory and garbled titles are unknown.")
    return Section("unknown", "What cannot be known", points=points) if points else None


def _groups(survey: Survey) -> Section | None:
    groups = survey.groups
    if groups is None or groups.empty:
        return None
    few = int((groups < _ONE_TEST_PHOTO).sum())
    caption = (
        f"Label groups with 2 rows: {ratio(int((groups == 2).sum()), len(groups))}. Largest label "
        f"group: {groups.max():,} rows. Label groups with fewer than {_ONE_TEST_PHOTO} rows: "
        f"{ratio(few, len(groups))}; a 10 % test split has less than one photo of each on average."
    )
    alt = f"Histogram of label groups by rows, {groups.min():,} to {groups.max():,}."
    table = groups.rename_axis("label_group").reset_index(name="rows")
    small = [first_rows("Largest label groups", "", table, few=8)]
    if len(survey.lookalikes):
        small.append(first_rows("Label groups that look the same", "", survey.lookalikes))
    if len(survey.missing_labels):
        title = "Label groups that read like a missing value"
        small.append(first_rows(title, "", survey.missing_labels))
    return Section(
        "groups",
        "Label groups",
        pictures=[figure_picture(figures.group_sizes_figure(groups), alt, caption)],
        small=small,
    )


def _copies(survey: Survey) -> Section:
    counts = {KINDS[c]: r.counts for c, r in survey.repeats.items() if r.distinct}
    pictures, tables = [], []
    if counts:
        alt = f"Number of {', '.join(counts)} by the rows that share one."
        pictures.append(figure_picture(figures.repeats_figure(counts), alt, _repeats(survey)))
    if survey.near is not None and survey.near.phashes:
        near = survey.near
        figure = figures.near_figure(near.pairs.bits, near.same_group)
        alt = f"Histogram of {len(near.pairs):,} pairs of phashes by the bits that differ."
        pictures.append(figure_picture(figure, alt, _near(near)))
        clusters = cluster_table(survey)
        if len(clusters):
            shown = clusters.drop(columns=["cluster", "members"])
            shown.insert(0, "a phash", clusters["members"].str.slice(0, 16))
            tables.append(first_rows("Clusters of near phashes", _CLUSTERS, shown))
    small = [
        first_rows(f"Most frequent {KINDS[column]}", "", repeats.table(), few=5)
        for column, repeats in survey.repeats.items()
        if repeats.repeated
    ]
    return Section("copies", "Copies", pictures=pictures, tables=tables, small=small)


_CLUSTERS = (
    f"Phashes connected by differences of at most {NEAR_BITS} bits. In a cluster with several "
    "label groups, photos look alike but are labelled differently: one product under several "
    "labels, or a shared template, frame or background."
)


def _repeats(survey: Survey) -> str:
    found = ", ".join(
        f"{repeats.repeated:,} {KINDS[column]} (up to {repeats.most:,} rows)"
        for column, repeats in survey.repeats.items()
    )
    distinct = ", ".join(f"{r.distinct:,} {KINDS[c]}" for c, r in survey.repeats.items())
    return f"In more than one row: {found}. Distinct: {distinct} in {len(survey.rows):,} rows."


def _near(near: NearCopies) -> str:
    least = "" if near.pairs.complete else "at least "
    text = (
        f"Pairs of phashes that differ in 1 to {NEAR_BITS} bits: {least}{len(near.pairs):,}. "
        f"Connected pairs form {near.clusters:,} clusters; the largest has {least}"
        f"{near.largest:,} phashes."
    )
    if near.same_group is None or not len(near.pairs):
        return text
    same = ratio(int(near.same_group.sum()), len(near.pairs))
    return (
        f"{text} Pairs with a label group in common: {same}. The lower this share, the less a near "
        "phash proves that two photos show the same product. Nearly every phash has 32 ones among "
        "its 64 bits, so two of them differ in an even number of bits."
    )


def _conflicts(survey: Survey) -> Section | None:
    if not survey.conflicts:
        return None
    tables = [
        first_rows(f"{KINDS[column].capitalize()} under several label groups", "", table)
        for column, table in survey.conflicts.items()
        if len(table)
    ]
    sentences = [conflicts_line(survey)]
    if tables:
        sentences.append(
            "Either these label groups are one product, or a label is wrong. Training drops files "
            "under several of the label groups it keeps. Numbers in brackets are rows."
        )
    return Section("noise", "Contradictory labels", sentences, tables=tables)


def _titles(survey: Survey) -> Section | None:
    if TITLE not in survey.rows:
        return None
    escaped = int(survey.escapes["rows"].sum())
    line = (
        f"Titles with UTF-8 bytes written as text: {ratio(escaped, len(survey.rows))}. Titles "
        f"written as Python bytes literals, b'...': {survey.bytes_literals:,}."
    )
    table = first_rows("As written, and decoded", "", survey.escapes)
    return Section("titles", "Garbled titles", [line], tables=[table] if escaped else [])


def _training(explored: Explored) -> Section:
    selection, groups, title = explored.selection, explored.survey.groups, "What training keeps"
    if selection is None or groups is None:
        return Section("training", title, [explored.no_selection])
    sentences = []
    if selection.problem:
        reason = selection.problem.splitlines()[0].rstrip(":.")
        sentences.append(f"Training is not possible with these photos: {reason}.")
    if not selection.with_photos:
        sentences.append("Counted from the CSV alone, as if every photo were present.")
    figure = figures.coverage_figure(groups, selection.kept)
    alt = "Share of rows in the largest label groups, by their number."
    pictures = [figure_picture(figure, alt, coverage_line(selection))]
    tables = [Table("Cleaning, step by step", "", selection.step_table())]
    splits = selection.splits
    if len(splits):
        caption = (
            f"One dot per seed ({splits['seed'].nunique()} seeds); lines are means. The model "
            "may have memorized test photos with a copy in train."
        )
        alt = "Share of test photos with a copy in train, by split, one dot per seed."
        pictures.append(figure_picture(figures.leaks_figure(splits), alt, caption))
        sentences.append(_chosen_split(splits, explored.config))
        tables.append(Table("Copies in train", "Mean over all seeds (range).", _leak_table(splits)))
    elif PHASHES not in explored.survey.rows:
        sentences.append("Without phashes, leaks of a split are unknown.")
    kept = selection.group_table().rename(columns={"a_title": "a title"})
    tables.append(first_rows("Label groups kept", "", kept, few=25))
    return Section("training", title, sentences, pictures=pictures, tables=tables)


def coverage_line(selection: Selection) -> str:
    """The rows and files that ``largest_groups`` keeps."""
    facts = selection.facts()
    text = (
        f"largest_groups keeps {facts['kept_groups']:,} of {selection.groups:,} label groups with "
        f"{ratio(facts['kept_rows'], selection.cleaning.rows, 'rows')}. Dropped rows: "
        f"{facts['kept_repeated_rows']:,} that repeat a file of their label group, "
        f"{facts['kept_conflicting_rows']:,} of files under several of these label groups. "
        f"Distinct files: {facts['kept_files']:,}."
    )
    if "kept_phashes" not in facts:
        return text
    return (
        f"{text} Distinct phashes: {facts['kept_phashes']:,}; with those up to {NEAR_BITS} bits "
        f"apart counted as one: {facts['kept_near_clusters']:,}."
    )


def _leak_table(splits: pd.DataFrame) -> pd.DataFrame:
    """Mean, range and share of the test photos with copies in train, for each kind of split."""

    def counts(part: pd.DataFrame, name: str) -> str:
        values, share = part[name], percent(part[name].sum(), part["test"].sum())
        return f"{values.mean():,.1f} ({values.min():,} to {values.max():,}), {share}"

    return pd.DataFrame(
        [
            {
                "split": mode,
                "test photos": round(float(part["test"].mean())),
                "with a copy in train": counts(part, "copies"),
                f"with a copy or a phash up to {NEAR_BITS} bits off": counts(part, "near_copies"),
            }
            for mode, part in splits.groupby("split")
        ]
    )


def _chosen_split(splits: pd.DataFrame, config: DataConfig) -> str:
    chosen = splits[splits["split"].isin((GIVEN, config.split))]
    row = chosen[chosen["seed"] == config.split_seed].iloc[0]
    drawn = f"split={config.split}, split_seed={config.split_seed}"
    name = "The given split" if row["split"] == GIVEN else drawn
    return (
        f"{name}: {row['train']:,} photos in train, "
        f"{row['val']:,} in val, {row['test']:,} in test. Test photos with a copy in train "
        f"({copy_words(config.near_bits)}): {row['copies']:,}; with a copy or a phash up to "
        f"{NEAR_BITS} bits off: {row['near_copies']:,}."
    )
