"""Cleaning: a catalogue's rows become a table of photos and labels, and every step is counted."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..errors import CatalogError

PHASH = re.compile(r"[0-9a-f]{16}")
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*")


@dataclass(frozen=True)
class Step:
    """One step of cleaning: how many rows (or photos) it took out, and how many are left."""

    name: str
    words: str
    removed: int
    left: int
    examples: tuple[str, ...] = ()


@dataclass
class Cleaning:
    """The record of all steps, in order, and of what is worth knowing without removing a row."""

    rows: int
    steps: list[Step] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def keep(self, frame: pd.DataFrame, kept: pd.Series, name: str, words: str) -> pd.DataFrame:
        """The rows of ``frame`` where ``kept`` is true; the others are counted under ``name``."""
        removed = frame[~kept]
        examples = tuple(dict.fromkeys(removed["image"]))[:3]
        self.steps.append(Step(name, words, len(removed), int(kept.sum()), examples))
        return frame[kept]

    def counts(self) -> dict[str, int]:
        """Name -> number of rows or photos: all rows, what each step removed, what is left."""
        left = self.steps[-1].left if self.steps else self.rows
        removed = {step.name: step.removed for step in self.steps}
        return {"rows": self.rows, **removed, **self.notes, "images": left}

    def lines(self) -> list[str]:
        """The record as lines for people."""
        lines = [f"{self.rows:>7,} rows in the catalogue"]
        for step in self.steps:
            few = f" ({', '.join(step.examples)}{', ...' if step.removed > 3 else ''})"
            hint = few if step.removed > 0 and step.name in _WORTH_NAMING else ""
            lines.append(f"{step.left:>7,} left: {step.removed:,} {step.words}{hint}")
        lines += [f"        {_NOTES[name].format(count)}" for name, count in self.notes.items()]
        return lines


_WORTH_NAMING = {"unsafe_paths", "missing_files", "conflicting_files", "bad_images"}
_NOTES = {
    "noisy_files": "{:,} of the kept photos also stand under a group that is not kept",
    "invalid_phashes": "{:,} entries of image_phash are no phash and were computed again",
}


def select_rows(frame: pd.DataFrame, largest_groups: int, cleaning: Cleaning) -> pd.DataFrame:
    """The part of cleaning that needs no photo: complete rows, largest groups, each file once.

    Groups of equal size are ordered by their label, so the choice never depends on row order.

    :param largest_groups: how many of the largest groups to keep; 0 keeps all.
    :returns: one row a file, sorted by file name.
    :raises CatalogError: when no row is left.
    """
    complete = (frame["image"] != "") & (frame["label_group"] != "")
    kept = cleaning.keep(frame, complete, "incomplete_rows", "without image or label_group")
    everything = kept
    sizes = kept["label_group"].value_counts()
    ranked = sorted(sizes.index, key=lambda label: (-sizes[label], label))
    chosen = ranked[:largest_groups] if largest_groups else ranked
    words = (
        f"outside the {len(chosen):,} largest label groups"
        if largest_groups
        else "outside (all kept)"
    )
    kept = cleaning.keep(kept, kept["label_group"].isin(chosen), "outside_largest_groups", words)
    # Sorted first, so that of repeated rows the same one stays whatever the order in the file.
    order = ("image", "label_group", "posting_id", "title", "image_phash")
    by = [name for name in order if name in kept]
    kept = kept.sort_values(by, kind="stable")
    first = ~kept.duplicated(["image", "label_group"])
    kept = cleaning.keep(kept, first, "repeated_rows", "that repeat a file of their group")
    single = ~kept["image"].duplicated(keep=False)
    kept = cleaning.keep(
        kept, single, "conflicting_files", "of files that stand under more than one label"
    )
    if kept.empty:
        raise CatalogError("No row of the catalogue is left:\n" + "\n".join(cleaning.lines()))
    groups = everything.groupby("image")["label_group"].nunique()
    noisy = int((groups.reindex(kept["image"]) > 1).sum())
    if noisy:
        cleaning.notes["noisy_files"] = noisy
    return kept.reset_index(drop=True)


def locate_files(frame: pd.DataFrame, folder: Path, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out rows whose path leaves the folder or whose file is not there; add ``file``.

    :returns: the frame with a column ``file`` of Path.
    """
    root = folder.resolve()
    files = frame["image"].map(lambda name: inside_folder(root, name))
    frame = frame.assign(file=files)
    frame = cleaning.keep(
        frame, files.notna(), "unsafe_paths", "whose path leaves the folder of photos"
    )
    there = frame["file"].map(is_file).astype(bool)
    kept = cleaning.keep(frame, there, "missing_files", f"whose file is not in {folder}")
    if kept.empty:
        raise CatalogError(
            f"None of the catalogue's photos is in {folder}:\n" + "\n".join(cleaning.lines())
        )
    return kept.reset_index(drop=True)


def drop_bad_images(
    frame: pd.DataFrame, reasons: dict[int, str], policy: str, cleaning: Cleaning
) -> pd.DataFrame:
    """Leave out photos that do not decode, or stop at them with ``policy="error"``.

    The index of the frame is kept: it is the row of the decoded pixels.
    """
    if reasons and policy == "error":
        few = [f"{frame['image'][row]}: {reasons[row]}" for row in list(reasons)[:10]]
        raise CatalogError(
            f"{len(reasons)} photos do not decode (bad_images=skip would leave them out):\n  "
            + "\n  ".join(few)
        )
    good = pd.Series(~frame.index.isin(list(reasons)), index=frame.index)
    return cleaning.keep(frame, good, "bad_images", "that do not decode")


def drop_conflicting_contents(frame: pd.DataFrame, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out photos whose very bytes stand under more than one label, by another file name."""
    labels = frame.groupby("content")["label_group"].transform("nunique")
    return cleaning.keep(
        frame,
        labels == 1,
        "conflicting_contents",
        "equal, byte for byte, to a photo of another label",
    )


def drop_small_groups(frame: pd.DataFrame, minimum: int, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out label groups with fewer than ``minimum`` photos.

    :raises CatalogError: when fewer than two groups are left to tell apart.
    """
    sizes = frame.groupby("label_group")["image"].transform("size")
    frame = cleaning.keep(
        frame, sizes >= minimum, "small_groups", f"in groups of fewer than {minimum} photos"
    )
    groups = frame["label_group"].nunique()
    if groups < 2:
        raise CatalogError(
            f"A classifier needs two label groups with at least {minimum} photos each, and "
            f"{groups} {'is' if groups == 1 else 'are'} left:\n" + "\n".join(cleaning.lines())
        )
    return frame


def fill_phashes(
    frame: pd.DataFrame, compute: Callable[[list[Path]], list[str]], cleaning: Cleaning
) -> pd.DataFrame:
    """A column ``image_phash`` of 16 hexadecimal digits, computed where it is missing or invalid.

    :param compute: files -> phashes.
    """
    if "image_phash" in frame:
        phashes = frame["image_phash"].str.lower()
        valid = phashes.map(lambda text: bool(PHASH.fullmatch(text))).astype(bool)
        if not valid.all():
            cleaning.notes["invalid_phashes"] = int((~valid).sum())
    else:
        phashes = pd.Series("", index=frame.index)
        valid = pd.Series(False, index=frame.index)
    missing = frame.index[~valid]
    if missing.empty:
        return frame.assign(image_phash=phashes)
    computed = pd.Series(compute(list(frame.loc[missing, "file"])), index=missing, dtype=str)
    return frame.assign(image_phash=pd.concat([phashes[valid], computed]))


def inside_folder(root: Path, name: str) -> Path | None:
    """The file's real path when it lies in the folder, symbolic links followed; else None."""
    if "\0" in name:
        return None
    if _PLAIN_NAME.fullmatch(name):
        # What most names are: no way out of the folder but by a link, which costs less to find out.
        with suppress(OSError):
            path = root / name
            if stat.S_ISREG(path.lstat().st_mode):
                return path
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError):
        return None
    return path if path.is_relative_to(root) and path != root else None


def is_file(path: Path) -> bool:
    """Whether a path is a file that can be seen."""
    try:
        return path.is_file()
    except OSError:
        # A name that is too long, or a folder that may not be entered.
        return False
