"""The report on a catalogue, as one HTML page: what is in it, and what to know before training."""

from __future__ import annotations

from ..reports.pages import Table, figure_picture, render
from . import catalog_figures as draw
from . import words as say
from .explored import Explored
from .findings import findings, unknown
from .gallery_photos import gallery_section, photo_section
from .grammar import counted, listing
from .photo_survey import MISSING, OUTSIDE
from .sections import Section, first_rows
from .survey import KINDS, PHASHES, TITLE, Survey, cluster_table


def explore_page(explored: Explored) -> str:
    """The page; its sections follow one another as they stand here."""
    found = [
        _overview(explored),
        _unknown(explored),
        _groups(explored.survey),
        _copies(explored.survey),
        _noise(explored.survey),
        _titles(explored.survey),
        _training(explored),
        photo_section(explored),
        gallery_section(explored),
        Section("files", "Tables", ["Beside this page, in full:"], points=_files(explored)),
    ]
    return render(
        "explore.html.j2",
        title=f"What is in {explored.name}",
        lead=_lead(explored),
        sections=[section for section in found if section is not None],
    )


def _lead(explored: Explored) -> str:
    rows = counted(len(explored.survey.rows), "row")
    if explored.photos is None or explored.photos.good.empty:
        return f"{rows}, told from the CSV alone: there is no photo that can be looked at."
    return f"{rows} and {counted(len(explored.photos.good), 'photo')}."


def _overview(explored: Explored) -> Section:
    survey, photos = explored.survey, explored.photos
    tiles = [("Rows", f"{len(survey.rows):,}")]
    tiles += [
        (f"Different {KINDS[column]}", f"{repeats.distinct:,}")
        for column, repeats in survey.repeats.items()
    ]
    if survey.groups is not None:
        tiles.append(("Label groups", f"{len(survey.groups):,}"))
    if photos is not None:
        here = len(photos.table) - photos.count(MISSING) - photos.count(OUTSIDE)
        tiles.append(("Photos here", f"{here:,}"))
    if explored.selection is not None:
        files = len(explored.selection.chosen)
        tiles.append(
            (f"Kept by largest_groups={explored.config.largest_groups}", f"{files:,} files")
        )
    said = findings(survey, explored.selection, photos, explored.config.image_size)
    words = ["What to know before training:"] if said else ["Nothing stands out."]
    columns = Table("Columns", "", survey.columns)
    return Section("overview", "At a glance", words, tiles, said, small=[columns])


def _unknown(explored: Explored) -> Section | None:
    said = unknown(explored.survey, explored.photos, explored.folder)
    return Section("unknown", "What cannot be known", points=said) if said else None


def _groups(survey: Survey) -> Section | None:
    if survey.groups is None or survey.groups.empty:
        return None
    picture = figure_picture(
        draw.group_sizes_figure(survey.groups),
        f"Histogram of label groups by their rows, from {survey.groups.min():,} to "
        f"{survey.groups.max():,}.",
        say.groups_in_words(survey.groups),
    )
    largest = survey.groups.rename_axis("label_group").reset_index(name="rows")
    table = first_rows("The largest", "", largest, few=8)
    return Section("groups", "Label groups", pictures=[picture], small=[table])


def _copies(survey: Survey) -> Section:
    counts = {KINDS[column]: repeats.counts for column, repeats in survey.repeats.items()}
    counts = {name: rows for name, rows in counts.items() if len(rows)}
    pictures, tables = [], []
    if counts:
        alt = f"How many {listing(list(counts))} stand in how many rows."
        words = say.repeats_in_words(survey)
        pictures.append(figure_picture(draw.repeats_figure(counts), alt, words))
    if survey.near is not None and survey.near.phashes:
        near = survey.near
        figure = draw.near_figure(near.pairs.bits, near.same_group)
        alt = f"Pairs of phashes by the bits in which they differ; {len(near.pairs):,} pairs."
        pictures.append(figure_picture(figure, alt, say.near_in_words(near)))
        clusters = cluster_table(survey)
        if len(clusters):
            words = say.clusters_in_words(clusters)
            shown = clusters.drop(columns=["cluster", "members"])
            shown.insert(0, "a phash", clusters["members"].str.slice(0, 16))
            tables.append(first_rows("Clusters of near phashes", words, shown))
    small = []
    for column, repeats in survey.repeats.items():
        if repeats.repeated:
            name = KINDS[column]
            small.append(first_rows(f"Most frequent {name}", "", repeats.table(), few=5))
    return Section("copies", "Copies", pictures=pictures, tables=tables, small=small)


def _noise(survey: Survey) -> Section | None:
    if not survey.conflicts:
        return None
    tables = [
        first_rows(f"{KINDS[column].capitalize()} under several label groups", "", table)
        for column, table in survey.conflicts.items()
        if len(table)
    ]
    words = [say.noise_in_words(survey)]
    if tables:
        words.append("In brackets: how many rows each group has of it.")
    return Section("noise", "Contradictory labels", words, tables=tables)


def _titles(survey: Survey) -> Section | None:
    if TITLE not in survey.rows:
        return None
    table = first_rows("As written, and decoded", "", survey.escapes)
    tables = [table] if len(survey.escapes) else []
    return Section("titles", "Garbled titles", [say.titles_in_words(survey)], tables=tables)


def _training(explored: Explored) -> Section:
    selection, groups = explored.selection, explored.survey.groups
    title = "What a training would keep"
    if selection is None or groups is None:
        return Section("training", title, [explored.no_selection])
    words = []
    if selection.problem:
        reason = selection.problem.splitlines()[0].rstrip(":.")
        words.append(f"A training of what is here could not begin: {reason}.")
    if not selection.with_photos:
        words.append("Counted from the CSV alone, as if every photo were there.")
    figure = draw.coverage_figure(groups, selection.kept)
    alt = "Share of the rows that the largest label groups hold, rising with their number."
    pictures = [figure_picture(figure, alt, say.coverage_in_words(selection))]
    if len(selection.splits):
        figure = draw.leaks_figure(selection.splits)
        alt = "Share of test photos with a copy in train, by kind of split, a dot a seed."
        pictures.append(figure_picture(figure, alt, say.leaks_in_words(selection.splits)))
        words.append(say.chosen_split_in_words(selection.splits, explored.config))
    elif PHASHES not in explored.survey.rows:
        words.append("Without phashes nothing can be said of what a split would leak.")
    tables = [Table("Cleaning, step by step", "", selection.step_table())]
    if len(selection.splits):
        caption = "The mean over all seeds, and in brackets the least and the most."
        tables.append(Table("What leaks", caption, say.leak_table(selection.splits)))
    kept = selection.group_table().rename(columns={"a_title": "a title"})
    tables.append(first_rows("Label groups kept", "", kept, few=25))
    return Section("training", title, words, pictures=pictures, tables=tables)


def _files(explored: Explored) -> list[str]:
    return [f"{name}: {counted(len(table), 'row')}" for name, table in explored.tables().items()]
