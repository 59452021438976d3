"""Find the columns of a table that hold file names, labels, titles and splits; name the others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data_config import AUTO, NONE, DataConfig
from ..errors import CatalogError

REQUIRED = ("image", "label_group")
COLUMNS = ("posting_id", "image", "image_phash", "title", "label_group")
# Columns that few catalogues have.
OPTIONAL = ("label_name", "split")

# Other common names of columns, in lower case with underscores. They are read if the table has
# exactly one of them.
_OTHER_NAMES = {
    "image": (
        *("images", "image_path", "image_file", "image_name", "image_filename", "image_id"),
        *("image_url", "img", "img_path", "img_name", "file", "filename", "file_name", "filepath"),
        *("file_path", "path", "photo", "photo_path", "photo_name", "picture"),
    ),
    "label_group": (
        *("label", "labels", "class", "class_name", "class_id", "class_label", "category"),
        *("category_name", "category_id", "target", "label_id", "group", "y"),
    ),
    "title": ("titles", "product_title", "product_name", "item_name", "caption"),
}
# Column -> the option that names it.
OPTIONS = {
    "image": "image_column",
    "label_group": "label_column",
    "title": "title_column",
    "split": "split_column",
}
KNOWN = frozenset(
    {*COLUMNS, *OPTIONAL, *(name for names in _OTHER_NAMES.values() for name in names)}
)
_WHAT = {"image": "file names of the photos", "label_group": "labels"}
_FILE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
# Common names of columns whose purpose is served by options here.
_SPLIT_COLUMNS = (
    *("split", "fold", "folds", "kfold", "subset", "set", "partition", "usage"),
    *("dataset_split", "data_split", "is_train", "is_test", "is_valid", "is_val"),
)
_WEIGHT_COLUMNS = ("weight", "weights", "sample_weight", "sample_weights", "class_weight")
_MOST_COLUMNS = 1000
# Characters that show an encoding other than UTF-8. UTF-16 has zeros in every other byte.
_NOT_UTF8 = ("\ufffd", "\0")


@dataclass(frozen=True)
class ColumnChoice:
    """Names of columns, as set by options; ``auto``: the common names, ``none``: no column."""

    image: str = AUTO
    label_group: str = AUTO
    title: str = AUTO
    split: str = AUTO

    @classmethod
    def of(cls, config: DataConfig) -> ColumnChoice:
        """The columns that a configuration names."""
        return cls(
            config.image_column, config.label_column, config.title_column, config.split_column
        )

    def names(self) -> set[str]:
        """The names that are set explicitly, in lower case."""
        chosen = (self.image, self.label_group, self.title, self.split)
        return {name.lower() for name in chosen if name not in (AUTO, NONE)}


@dataclass(frozen=True)
class FoundColumns:
    """The columns of a table.

    :ivar positions: column of :data:`COLUMNS` or :data:`OPTIONAL` -> its position in the header.
    :ivar guessed: column -> its name in the header, for columns that were found by another common
        name.
    :ivar unused: names of all other columns.
    """

    positions: dict[str, int]
    guessed: dict[str, str]
    unused: list[str]


def find_columns(
    path: Path, names: Sequence[str], choice: ColumnChoice, required: Sequence[str]
) -> FoundColumns:
    """Find the columns of a table by its header.

    A column is found by the name that an option sets, else by its own name, else by another common
    name, such as ``filename``, if only one column has such a name.

    :raises CatalogError: when a required column is missing or ambiguous; the message names the
        option.
    """
    if len(names) > _MOST_COLUMNS:
        raise CatalogError(
            f"{path}: has {len(names):,} columns; this is not a catalogue. {wanted()}"
        )
    positions, guessed, missing = {}, {}, []
    for column in (*COLUMNS, *OPTIONAL):
        chosen = getattr(choice, column, AUTO)
        name = _find(path, names, column, chosen, column in required) if chosen != NONE else None
        if name is None:
            missing += [column] if column in required else []
            continue
        positions[column] = names.index(name)
        if chosen == AUTO and name != column:
            guessed[column] = name
    if missing:
        raise CatalogError(_missing(path, names, missing))
    used = {names[position] for position in positions.values()}
    if twice := [name for name in names if name in used and names.count(name) > 1]:
        raise CatalogError(
            f"{path}: the header names {' and '.join(dict.fromkeys(twice))} more than once; rename "
            "or remove all but one."
        )
    unused = [name for name in dict.fromkeys(names) if name and name not in used]
    return FoundColumns(positions, guessed, unused)


def _find(path: Path, names: Sequence[str], column: str, chosen: str, required: bool) -> str | None:
    """The name of a column in the header; None if there is no such column or it is ambiguous."""
    if chosen != AUTO:
        if chosen in names:
            return chosen
        raise CatalogError(
            f"{path}: {OPTIONS[column]}={chosen}: no such column; the columns are {_list(names)}."
        )
    if column in names:
        return column
    spelled = [name for name in names if _plain(name) == column]
    others = [name for name in names if _plain(name) in _OTHER_NAMES.get(column, ())]
    found = list(dict.fromkeys(spelled or others))
    if len(found) > 1 and required:
        raise CatalogError(
            f"{path}: several columns may hold the {_WHAT[column]}: {_list(found)}. Name one with "
            f"the option {OPTIONS[column]}."
        )
    return found[0] if len(found) == 1 else None


def _plain(name: str) -> str:
    return re.sub(r"[\s.-]+", "_", name.strip().lower())


def _list(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:10]) + (", ..." if len(names) > 10 else "")


def _missing(path: Path, names: Sequence[str], missing: Sequence[str]) -> str:
    if any(mark in name for name in names for mark in _NOT_UTF8):
        return f"{path}: the header is not UTF-8; save the file as UTF-8."
    columns = (
        f"column {missing[0]} is" if len(missing) == 1 else f"columns {' and '.join(missing)} are"
    )
    found = _list(names) or "none"
    return f"{path}: {columns} missing; found: {found}. {_advice(names, missing)}"


def _advice(names: Sequence[str], missing: Sequence[str]) -> str:
    """Advice for a header that lacks required columns."""
    quoted = [name.strip("'\"` ").lower() for name in names]
    if any(name.startswith("'") for name in names) and set(missing) <= set(quoted):
        return "Its values are in single quotes; use double quotes or none."
    if names[0].startswith("#"):
        return "Remove the comment: the first line must name the columns."
    if any(_FILE_NAME.search(name) for name in names):
        return f"The header is missing: the first line must name the columns; {wanted()}"
    options = " and ".join(f"the {_WHAT[name]} with the option {OPTIONS[name]}" for name in missing)
    return f"Name the column of {options}."


def unused_column_remarks(unused: Sequence[str]) -> list[str]:
    """Remarks about columns of the table that are not used.

    :param unused: their names.
    """
    lines = []
    for names, words in (
        (_SPLIT_COLUMNS, "photos are split by it if split_column names it"),
        (_WEIGHT_COLUMNS, "all photos have the same weight unless class_weights is set"),
    ):
        if found := [name for name in unused if name.lower() in names]:
            lines.append(f"column {', '.join(found)} of the table is not used: {words}")
            unused = [name for name in unused if name not in found]
    if unused:
        few = ", ".join(unused[:10]) + (", ..." if len(unused) > 10 else "")
        lines.append(f"columns of the table that are not used: {few}")
    return lines


def wanted() -> str:
    """A description of a catalogue, for messages."""
    return (
        f"a catalogue is a table with the columns {', '.join(COLUMNS)}, of which "
        f"{' and '.join(REQUIRED)} are required."
    )
