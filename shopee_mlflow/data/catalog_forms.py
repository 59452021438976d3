"""Read a catalogue in any of its forms: a table, a folder with a table, or class folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..data_config import AUTO, NONE, SAMPLE, DataConfig
from ..errors import CatalogError
from ..options import expand_path
from ..sample import sample_catalog
from .catalog_csv import (
    CatalogTable,
    existing_path,
    find_images,
    find_table,
    looking_for,
    read_table,
    tables_in,
)
from .class_folders import may_have_class_folders, read_class_folders
from .columns import OPTIONS, REQUIRED, ColumnChoice, unused_column_remarks
from .corrections import check_corrections_file
from .folder_kinds import check_catalog_folder
from .photo_files import inside_folder
from .pixel_cache import Progress
from .splits import TEST, TRAIN, VAL, parse_splits
from .tables import check_table_kind

# How many file names of a table are tried to find the folder of its photos.
_NAMES_TRIED = 50

# Title of a long step -> callback(done, total) for its progress.
Watch = Callable[[str], Progress | None]


@dataclass(frozen=True)
class Catalog:
    """The rows of a catalogue and the folder of its photos.

    :ivar rows: columns of text: those of :data:`~.columns.COLUMNS` and ``label_name`` that the
        catalogue has, and ``split`` if it has one (train, val, test, or "" for a row without one).
    :ivar folder: the folder to which file names are relative; None without photos.
    :ivar source: the table, or the folder with the class folders.
    :ivar remarks: lines of text about how the catalogue was read.
    """

    rows: pd.DataFrame
    folder: Path | None
    source: Path
    remarks: list[str] = field(default_factory=list)


def check_paths(config: DataConfig) -> None:
    """Check that the files and folders of the catalogue exist, before anything that takes time.

    :raises CatalogError: otherwise, or when one is something else.
    """
    for option in ("data", "val_csv", "test_csv"):
        if (name := getattr(config, option)) not in (SAMPLE, NONE):
            path = existing_path(name, option)
            with looking_for(name, option):
                if not path.is_dir():
                    check_table_kind(path)
                elif not may_have_class_folders(path):
                    check_catalog_folder(name, option)
    check_corrections_file(config.corrections)


def load_catalog(
    config: DataConfig,
    watch: Watch,
    *,
    required: Sequence[str] = REQUIRED,
    photos: bool = True,
) -> Catalog:
    """Read the catalogue that the options name; draw the sample if it does not exist yet.

    :param required: columns that a table must have.
    :param photos: whether a folder of photos must exist.
    :raises CatalogError: when the catalogue cannot be used.
    """
    data = config.data
    if data == SAMPLE:
        data = str(sample_catalog(config.sample_px, progress=watch("drawing the sample catalogue")))
    elif (found := _class_folders(config)) is not None:
        return found
    else:
        check_catalog_folder(data)
    images = None if config.images == AUTO else config.images
    choice = ColumnChoice.of(config)
    tables = [(find_table(data), TRAIN)]
    for option, split in (("val_csv", VAL), ("test_csv", TEST)):
        if (file := getattr(config, option)) != NONE:
            tables.append((find_table(file, option), split))
    read = [_read(path, images, choice, required, photos) for path, _ in tables]
    if len(read) == 1:
        return read[0]
    return _joined(read, [split for _, split in tables])


def folder_name(source: Path) -> str:
    """The name of the folder of a catalogue.

    :param source: see :attr:`Catalog.source`.
    """
    path = source.absolute()
    return path.name if path.is_dir() else path.parent.name


def _class_folders(config: DataConfig) -> Catalog | None:
    """Read class folders; None if ``data`` has none, or has a table named train."""
    with looking_for(config.data):
        folder = expand_path(config.data)
        if not folder.is_dir() or config.images != AUTO:
            return None
        tables = tables_in(folder)
        if any(table.name.lower().startswith("train.") for table in tables):
            return None
        found = read_class_folders(folder, config.label_folder)
    if found is None:
        return None
    if config.val_csv != NONE or config.test_csv != NONE:
        raise CatalogError(
            f"data={config.data}: has class folders, which cannot be combined with val_csv and "
            "test_csv; move the photos to folders train, val and test, or name a table in data."
        )
    rows, remarks = found.rows, list(found.remarks)
    remarks += [
        f"{table.name} in the folder is not used: the folders are the labels" for table in tables
    ]
    if "split" in rows:
        if config.split_column == NONE:
            rows = rows.drop(columns="split")
        else:
            remarks.append(_split_remark("the folders train, val and test"))
    return Catalog(rows, found.folder, found.folder, remarks)


def _split_remark(where: str) -> str:
    return f"the split is taken from {where}"


def _read(
    path: Path, images: str | None, choice: ColumnChoice, required: Sequence[str], photos: bool
) -> Catalog:
    table = read_table(path, required, choice)
    names = list(table.rows["image"].head(_NAMES_TRIED)) if "image" in table.rows else []
    try:
        folder = find_images(path, images, names)
    except CatalogError:
        if photos or images:
            raise
        folder = None
    rows, remarks = _with_split(table, choice)
    # With split_column=none, the user knows that the column split is not used.
    unused = [n for n in table.unused if choice.split != NONE or n.lower() != "split"]
    remarks = [*_guess_remarks(table), *remarks, *unused_column_remarks(unused)]
    return Catalog(rows, folder, path, remarks)


def _guess_remarks(table: CatalogTable) -> list[str]:
    return [
        f"column {name!r} is read as {column}"
        + (f"; to read another, name it with {OPTIONS[column]}" if column in OPTIONS else "")
        for column, name in table.guessed.items()
    ]


def _with_split(table: CatalogTable, choice: ColumnChoice) -> tuple[pd.DataFrame, list[str]]:
    """The rows with their splits, named train, val and test.

    A column named split that holds no splits is left out, with a remark.
    """
    rows = table.rows
    if "split" not in rows:
        return rows, []
    name = choice.split if choice.split != AUTO else table.guessed.get("split", "split")
    splits = parse_splits(rows["split"], name, certain=choice.split != AUTO)
    if splits is None:
        few = ", ".join(sorted(set(rows["split"]))[:3])
        words = f"column {name!r} is not used: its values ({few}, ...) are not train, val or test"
        return rows.drop(columns="split"), [words]
    return rows.assign(split=splits), [_split_remark(f"column {name!r}")]


def _joined(parts: Sequence[Catalog], splits: Sequence[str]) -> Catalog:
    """Join several tables to one catalogue.

    Rows of val_csv and test_csv are val and test. Rows of the first table are train, unless it has
    a split of its own.
    """
    first = parts[0]
    folders = [part.folder for part in parts if part.folder is not None]
    folder = Path(os.path.commonpath([each.absolute() for each in folders])) if folders else None
    frames, remarks = [], [*first.remarks]
    for part, split in zip(parts, splits, strict=True):
        rows = part.rows
        if split != TRAIN or "split" not in rows:
            rows = rows.assign(split=split)
        if folder is not None and part.folder is not None and part.folder.absolute() != folder:
            rows = rows.assign(image=_below(folder, part.folder.absolute(), rows["image"]))
        frames.append(rows)
    remarks.append(_split_remark(f"{', '.join(part.source.name for part in parts)}"))
    return Catalog(
        pd.concat(frames, ignore_index=True).fillna(""),
        folder,
        first.source,
        list(dict.fromkeys(remarks)),
    )


def _below(root: Path, folder: Path, names: pd.Series) -> list[str]:
    """Make names relative to a parent folder; names that leave their own folder are unchanged."""
    start = folder.relative_to(root).as_posix()
    return [f"{start}/{name}" if inside_folder(folder, name) else name for name in names]
