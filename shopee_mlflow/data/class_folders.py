"""Read a catalogue without a table: a folder of photos per label, optionally in split folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..data_config import AUTO
from ..errors import CatalogError
from .catalog_csv import CONTROLS
from .photo_sources import PhotoSource, check_photo_folder, photos_below
from .splits import TRAIN, split_named

FIRST, PATH = "first", "path"
# Folders that programs create.
_OTHERS = ("__macosx", "__pycache__")
# Common names of folders that hold the photos of a table. They are not labels.
_IMAGE_FOLDERS = ("images", "image", "photos", "photo", "imgs", "img", "pictures")


@dataclass(frozen=True)
class ClassFolders:
    """The photos of a folder with class folders.

    :ivar folder: the folder that holds the class folders.
    :ivar rows: columns image (path relative to ``folder``), label_group ("" for a photo beside the
        class folders), and split if there are folders of splits.
    :ivar remarks: lines of text about what was skipped.
    """

    folder: Path
    rows: pd.DataFrame
    remarks: list[str] = field(default_factory=list)


def read_class_folders(data: Path, label_folder: str = AUTO) -> ClassFolders | None:
    """Read ``data/LABEL/photo.jpg``, or ``data/train/LABEL/photo.jpg`` beside val and test.

    A folder that contains only another folder is replaced by that folder.

    :param label_folder: ``first``: the label is the first folder of a photo's path; ``path``: the
        whole path, such as ``food/rice``; ``auto``: either, if they are the same for all photos.
    :returns: None if there are no class folders.
    :raises CatalogError: when the label is ambiguous, or the folder was named by mistake.
    """
    if not may_have_class_folders(data):
        return None
    folder = _without_wrappers(data)
    check_photo_folder(folder, f"data={data}")
    found = photos_below(folder)
    parts = [photo.name.split("/") for photo in found.photos]
    kept = [not any(_is_other(part) for part in path[:-1]) for path in parts]
    parts = [path for path, keep in zip(parts, kept, strict=True) if keep]
    splits = {path[0]: split_named(path[0]) for path in parts if len(path) > 1}
    # A label may be called "test". Folders are splits only if one is train and all name splits.
    split = len(splits) > 1 and all(splits.values()) and TRAIN in splits.values()
    below = [path[split:-1] for path in parts]
    labels = _labels(data, below, label_folder)
    named = {label for label in labels if label}
    if len(named) < 2 or all(_is_image_folder(label) for label in named):
        return None
    rows = {"image": ["/".join(path) for path in parts], "label_group": labels}
    if broken := [name for name in rows["image"] if CONTROLS.search(name)]:
        raise CatalogError(
            f"data={data}: {len(broken):,} photos have a control character in their name or that "
            f"of a folder, such as {broken[0]!r}. Rename them."
        )
    if split:
        rows["split"] = [splits[path[0]] if len(path) > 1 else "" for path in parts]
    return ClassFolders(folder, pd.DataFrame(rows, dtype=str), _remarks(found, kept))


def may_have_class_folders(data: Path) -> bool:
    """Whether a folder has two folders or more, perhaps inside another one."""
    return len(_folders_of(_without_wrappers(data))) >= 2


def _remarks(found: PhotoSource, kept: Sequence[bool]) -> list[str]:
    lines = [found.passed_over_in_words()] if found.passed_over else []
    hidden = len(kept) - sum(kept)
    return lines + ([f"{hidden:,} photos in hidden folders were skipped"] if hidden else [])


def _without_wrappers(folder: Path) -> Path:
    """The folder, or the single folder inside that holds everything, as in unpacked archives."""
    while True:
        inside = [path for path in folder.iterdir() if not _is_other(path.name)]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        folder = inside[0]


def _folders_of(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not _is_other(path.name)]


def _is_other(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OTHERS


def _is_image_folder(name: str) -> bool:
    return name.lower().rpartition("_")[2] in _IMAGE_FOLDERS


def _labels(data: Path, below: Sequence[list[str]], label_folder: str) -> list[str]:
    """The label of each photo; "" for a photo outside of class folders."""
    if label_folder == PATH:
        return ["/".join(folders) for folders in below]
    labels = [folders[0] if folders else "" for folders in below]
    if label_folder == FIRST:
        return labels
    direct = {folders[0] for folders in below if len(folders) == 1}
    deep = next((folders for folders in below if folders and folders[0] not in direct), None)
    if deep:
        raise CatalogError(
            f"data={data}: the label of photos in {'/'.join(deep)} may be {deep[0]!r} or "
            f"{'/'.join(deep)!r}. Choose one with label_folder=first or label_folder=path."
        )
    return labels
