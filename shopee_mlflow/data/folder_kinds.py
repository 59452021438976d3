"""Recognize a folder that is no catalogue, and say what it is."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice
from pathlib import Path

from ..errors import CatalogError
from ..options import expand_path
from .catalog_csv import ANY_TABLE, CSV_NAME, looking_for
from .photo_sources import files_below, has_photo_name

_MOST_FILES = 10_000
_KINDS_NAMED = 3
_WANTED = f"a folder of photos for each label group (two or more), or a table such as {CSV_NAME}"


def check_catalog_folder(data: str, option: str = "data") -> None:
    """Check that a folder without class folders has a table, even one that must be converted.

    :raises CatalogError: saying what is in the folder instead.
    """
    folder = expand_path(data)
    with looking_for(data, option):
        if not folder.is_dir() or any(ANY_TABLE.search(file.name) for file in folder.iterdir()):
            return
        if (folder / "MLmodel").is_file():
            raise CatalogError(
                f"{option}={data}: is a logged model, not a catalogue. Train from it with the "
                "option weights, or use it with the option model of predict and evaluate."
            )
        files = list(islice(files_below(folder), _MOST_FILES))
    photos = [file for file in files if has_photo_name(file)]
    if photos:
        where = Path(os.path.commonpath([file.parent for file in photos])).relative_to(folder)
        inside = "" if where == Path() else f" in {where.as_posix()}/"
        raise CatalogError(
            f"{option}={data}: holds {_count(len(photos), 'photo')}{inside}, but no label groups. "
            f"Needed is {_WANTED} with the columns image and label_group."
        )
    kinds = Counter(file.suffix.lower() or "without suffix" for file in files)
    named = ", ".join(kind for kind, _ in kinds.most_common(_KINDS_NAMED))
    content = f"holds {_count(len(files), 'file')} ({named}) but no photos" if files else "is empty"
    raise CatalogError(f"{option}={data}: {content}. Needed is {_WANTED}.")


def _count(number: int, noun: str) -> str:
    """A number of things, which were counted up to a limit only."""
    more = " or more" if number == _MOST_FILES else ""
    return f"{number:,}{more} {noun}{'s' * (number != 1)}"
