"""Apply a reviewed list of corrections to the labels of a catalogue.

The list is a table with the columns image, label_group (the label in the catalogue), action and
new_label_group. ``cross-validate`` writes one, in which only the column action is left to fill in.
Rows without an action change nothing, and other columns are ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ..data_config import NONE
from ..errors import CatalogError
from ..options import expand_path, nearest
from .cleaning_record import Cleaning
from .label_checks import shown_label
from .photo_files import file_problem
from .tables import Table, open_table

ACTIONS = RELABEL, DROP, KEEP = ("relabel", "drop", "keep")
COLUMNS = ("image", "label_group", "action", "new_label_group")
_MOST_PROBLEMS = 10
_WANTED = (
    "A list of corrections has the columns image, label_group (the label in the catalogue), action "
    "(relabel, drop or keep) and new_label_group (for relabel)"
)


class Correction(NamedTuple):
    """A reviewed photo. ``where`` is its line in the file, in words."""

    where: str
    image: str
    label_group: str
    action: str
    new_label_group: str


def apply_corrections(frame: pd.DataFrame, file: str, cleaning: Cleaning) -> pd.DataFrame:
    """Relabel and drop the rows that a reviewed list names; count them in ``cleaning``.

    A row is corrected if it has both the image and the label group of a correction.

    :param frame: the rows of a catalogue.
    :param file: the list: CSV, JSON lines or Parquet; ``none``: no corrections.
    :raises CatalogError: when the file cannot be read, has no correction, names unknown photos or
        label groups, or contradicts the catalogue or itself; nothing is corrected then.
    """
    if file == NONE:
        return frame
    if "label_group" not in frame:
        raise CatalogError(f"corrections={file}: the catalogue has no label_group to correct.")
    found, problems = _checked(frame, list(_read(file)))
    if problems:
        raise CatalogError(_in_words(file, problems))
    if not found:
        raise CatalogError(
            f"corrections={file}: no row has an action. Fill in the column action with relabel, "
            "drop or keep; rows without an action change nothing."
        )
    cleaning.corrections = pd.DataFrame([c[1:] for c in found], columns=list(COLUMNS), dtype=str)
    frame = _relabelled(frame, [c for c in found if c.action == RELABEL], cleaning)
    confirmed = len({c.image for c in found if c.action == KEEP})
    cleaning.notes |= {"confirmed_labels": confirmed} if confirmed else {}
    dropped = {(c.image, c.label_group) for c in found if c.action == DROP}
    kept = pd.Series([key not in dropped for key in _keys(frame)], frame.index, dtype=bool)
    return cleaning.keep(frame, kept, "dropped_by_corrections", f"that {file} drops")


def check_corrections_file(file: str) -> None:
    """Check that the file exists and may be read.

    :raises CatalogError: otherwise.
    """
    if file != NONE and (problem := file_problem(expand_path(file))):
        reason = f"it is {problem}" if problem.startswith("a ") else problem
        raise CatalogError(
            f"corrections={file}: cannot be read ({reason}), relative to {Path.cwd()}. Name a "
            "table such as cv/label_issues.csv of a cross-validation."
        )


def _read(file: str) -> Iterator[Correction]:
    """The rows that have an action."""
    check_corrections_file(file)
    path = expand_path(file)
    try:
        table = open_table(path, COLUMNS)
        if not table.names:
            raise CatalogError(f"corrections={file}: is empty. {_WANTED}.")
        columns = _positions(file, table)
        for line, values in table.read(list(columns.values())):
            row = dict(zip(columns, (value.strip() for value in values), strict=True))
            if any("\ufffd" in value for value in row.values()):
                raise CatalogError(
                    f"corrections={file}: is not UTF-8 ({table.unit} {line:,}); save it as CSV "
                    "UTF-8."
                )
            if row["action"]:
                new = row.get("new_label_group", "")
                where = f"{table.unit} {line:,}"
                yield Correction(
                    where, row["image"], row["label_group"], row["action"].lower(), new
                )
    except OSError as error:
        raise CatalogError(
            f"corrections={file}: cannot be read ({error.strerror or error})."
        ) from error


def _positions(file: str, table: Table) -> dict[str, int]:
    """Column -> its position in the table."""
    names = [name.lower() for name in table.names]
    missing = [name for name in COLUMNS[:3] if name not in names]
    if missing:
        plural = "column" if len(missing) == 1 else "columns"
        raise CatalogError(
            f"corrections={file}: lacks the {plural} {', '.join(missing)}; its columns are "
            f"{', '.join(table.names[:10])}{', ...' if len(names) > 10 else ''}. {_WANTED}."
        )
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise CatalogError(f"corrections={file}: has the column {twice[0]} twice.")
    return {name: names.index(name) for name in COLUMNS if name in names}


def _checked(
    frame: pd.DataFrame, corrections: list[Correction]
) -> tuple[list[Correction], list[str]]:
    """The corrections, each once and as the catalogue spells them, and problems with their lines.

    :returns: corrections; problems.
    """
    labels: dict[str, set[str]] = {}
    for image, label in _keys(frame):
        labels.setdefault(image, set()).add(label)
    groups = set(frame["label_group"]) - {""}
    found: dict[tuple[str, str], Correction] = {}
    problems: list[str] = []
    for given in corrections:
        image = _as_known(given.image, labels)
        own = labels.get(image, set())
        correction = given._replace(
            image=image,
            label_group=_as_known(given.label_group, own),
            # A proposal in a row that is kept or dropped means nothing.
            new_label_group=_as_known(given.new_label_group, groups)
            if given.action == RELABEL
            else "",
        )
        # Looking for similar names is slow, so it is done for the problems that are shown.
        similar = groups if len(problems) < _MOST_PROBLEMS else ()
        if problem := _problem(correction, own, groups, similar):
            problems.append(f"{given.where}: {problem}")
            continue
        key = (correction.image, correction.label_group)
        first = found.setdefault(key, correction)
        if first[3:] != correction[3:]:
            problems.append(
                f"{given.where}: {image} is to {_deed(correction)}, but {first.where} says "
                f"{_deed(first)}"
            )
    return list(found.values()), problems


def _problem(
    correction: Correction,
    own: Collection[str],
    groups: Collection[str],
    similar: Collection[str],
) -> str:
    """What is wrong with a correction; empty if nothing is.

    :param own: the labels of the photo in the catalogue.
    :param groups: all labels of the catalogue.
    :param similar: labels among which to look for the one that was meant.
    """
    _, image, label, action, new = correction
    if action not in ACTIONS:
        return f"action {action!r} must be relabel, drop or keep, or empty"
    if not own:
        return f"the catalogue has no photo {image!r}"
    if label not in own:
        has = " and ".join(sorted(map(shown_label, own)))
        return f"{image} has the label group {has} in the catalogue, not {shown_label(label)}"
    if action != RELABEL:
        return ""
    if not new:
        return f"{image} is to be relabelled, and new_label_group is empty"
    if new not in groups:
        close = nearest(new, similar)
        hint = f"; did you mean {' or '.join(map(shown_label, close))}?" if close else ""
        return f"the catalogue has no label group {shown_label(new)}{hint}"
    if new == label:
        return f"{image} has the label group {shown_label(new)} already; use keep"
    return ""


def _as_known(text: str, known: Collection[str]) -> str:
    """A text without the apostrophe that marks it as no formula for spreadsheet programs."""
    bare = text.removeprefix("'")
    return bare if text not in known and bare in known else text


def _deed(correction: Correction) -> str:
    if correction.action == RELABEL:
        return f"get the label group {shown_label(correction.new_label_group)}"
    return correction.action


def _in_words(file: str, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
    more = len(problems) - _MOST_PROBLEMS
    lines = [f"corrections={file}: {count}; nothing was corrected:", *problems[:_MOST_PROBLEMS]]
    return "\n  ".join([*lines, f"and {more:,} more"] if more > 0 else lines)


def _relabelled(
    frame: pd.DataFrame, corrections: list[Correction], cleaning: Cleaning
) -> pd.DataFrame:
    """The rows with their new label groups, and the names of these groups."""
    if not corrections:
        return frame
    new = {(c.image, c.label_group): c.new_label_group for c in corrections}
    labels = pd.Series([new.get(key, key[1]) for key in _keys(frame)], frame.index, dtype=str)
    changed = labels != frame["label_group"]
    if "label_name" in frame:
        first = frame[frame["label_name"] != ""].drop_duplicates("label_group")
        names = labels.map(first.set_index("label_group")["label_name"]).fillna("")
        frame = frame.assign(label_name=frame["label_name"].mask(changed, names))
    cleaning.notes["relabelled_photos"] = frame.loc[changed, "image"].nunique()
    return frame.assign(label_group=labels)


def _keys(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    return zip(frame["image"], frame["label_group"], strict=True)
