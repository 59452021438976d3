"""Clean the rows of a catalogue, which gives a table of photos and labels, and record each step."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ..data_config import NONE
from ..errors import CatalogError
from ..options import expand_path
from .label_checks import label_remarks
from .photo_files import NO_FILE, SPECIAL_FILE, file_problem, find_photo_files

PHASH = re.compile(r"[0-9a-f]{16}")
# The most reasons listed for a step, and the most examples listed for a reason.
_MOST_REASONS, _MOST_EXAMPLES = 6, 3


@dataclass(frozen=True)
class Step:
    """One step of cleaning: how many rows (or photos) it removed, and how many are left.

    :ivar reasons: reason -> number of photos and names of some of them; empty if the step has only
        one reason.
    """

    name: str
    words: str
    removed: int
    left: int
    examples: tuple[str, ...] = ()
    reasons: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)


class LeftOut(NamedTuple):
    """A row that was left out."""

    image: str
    label_group: str
    step: str
    reason: str


@dataclass
class Cleaning:
    """The record of all steps, in order, with notes and remarks about rows that were kept.

    :ivar notes: name -> number of rows or photos.
    :ivar remarks: lines of text.
    :ivar left_out: every row that a step removed, except those outside the largest label groups,
        which the option ``largest_groups`` excludes.
    :ivar corrections: the corrections that were applied: image, label_group, action,
        new_label_group; None without the option ``corrections``.
    """

    rows: int
    steps: list[Step] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    corrections: pd.DataFrame | None = None

    def keep(
        self,
        frame: pd.DataFrame,
        kept: pd.Series,
        name: str,
        words: str,
        reasons: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Keep the rows where ``kept`` is true; record the removed ones under ``name``.

        :param reasons: the reason for each removed row, in order; None: ``words``.
        """
        removed = frame[~kept]
        why = [words] * len(removed) if reasons is None else list(reasons)
        examples = tuple(dict.fromkeys(removed["image"]))[:_MOST_EXAMPLES]
        counted = {} if reasons is None else _count_reasons(list(removed["image"]), why)
        self.steps.append(Step(name, words, len(removed), int(kept.sum()), examples, counted))
        if name != "outside_largest_groups":
            columns = (removed["image"], removed["label_group"], why)
            self.left_out += [
                LeftOut(image, label, name, reason)
                for image, label, reason in zip(*columns, strict=True)
            ]
        return frame[kept]

    def left_out_table(self) -> pd.DataFrame:
        """Rows that were left out: image, label_group, step, reason; all text."""
        return pd.DataFrame(self.left_out, columns=list(LeftOut._fields), dtype=str)

    def counts(self) -> dict[str, int]:
        """Name -> number of rows or photos: all rows, what each step removed, what is left."""
        left = self.steps[-1].left if self.steps else self.rows
        removed = {step.name: step.removed for step in self.steps}
        return {"rows": self.rows, **removed, **self.notes, "images": left}

    def lines(self) -> list[str]:
        """The record as lines of text."""
        lines = [f"{self.rows:>7,} rows in the catalogue"]
        for step in self.steps:
            few = f" ({_few(step.examples, step.removed)})"
            hint = few if step.removed > 0 and step.name in _WORTH_NAMING else ""
            lines.append(f"{step.left:>7,} left: {step.removed:,} {step.words}{hint}")
            lines += _reason_lines(step)
        lines += [f"        {_NOTES[name].format(count)}" for name, count in self.notes.items()]
        return lines + [f"        {remark}" for remark in self.remarks]


def _few(examples: Sequence[str], count: int) -> str:
    return ", ".join(examples) + (", ..." if count > _MOST_EXAMPLES else "")


def _count_reasons(
    images: Sequence[str], reasons: Sequence[str]
) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Reason -> how many photos and the first of them, the most frequent first.

    Reasons that differ only in their numbers count as one.
    """
    kinds: dict[str, list[int]] = {}
    for row, reason in enumerate(reasons):
        kinds.setdefault(re.sub(r"\d[\d,.]*", "0", reason), []).append(row)
    ordered = sorted(kinds.values(), key=lambda rows: -len(rows))
    return {
        reasons[rows[0]]: (len(rows), tuple(images[row] for row in rows[:_MOST_EXAMPLES]))
        for rows in ordered
    }


def _reason_lines(step: Step) -> Iterator[str]:
    """Lines with the reasons of a step, if they add information to the step's own line."""
    if not set(step.reasons) - {NO_FILE}:
        return
    for reason, (count, examples) in list(step.reasons.items())[:_MOST_REASONS]:
        yield f"          {count:,}: {' '.join(reason.split())} ({_few(examples, count)})"
    more = len(step.reasons) - _MOST_REASONS
    if more > 0:
        yield f"          and {more} other reasons"


_WORTH_NAMING = {
    *("dropped_by_corrections", "excluded", "unsafe_paths", "missing_files"),
    *("conflicting_files", "bad_images"),
}
_NOTES = {
    "relabelled_photos": "{:,} photos have a new label group from the corrections",
    "confirmed_labels": "{:,} photos keep their label group by the corrections",
    "files_in_several_splits": "{:,} files are in several splits; each stays in test, else in val",
    "val_leaks": "{:,} val photos have a copy in train",
    "val_leaks_into_test": "{:,} test photos have a copy in val",
    "noisy_files": "{:,} of the kept photos also have a label group that is not kept",
    "plain_photos": "{:,} photos are plain or nearly empty; they count as copies only if their "
    "bytes are equal",
    "copies_of_other_groups": "{:,} photos have a copy under another label group; split=leak_free "
    "keeps both in one split",
    "invalid_phashes": "{:,} values of image_phash are invalid and were computed again",
}


# Common names of columns whose purpose is served by options here.
_SPLIT_COLUMNS = (
    *("split", "fold", "folds", "kfold", "subset", "set", "partition", "usage"),
    *("dataset_split", "data_split", "is_train", "is_test", "is_valid", "is_val"),
)
_WEIGHT_COLUMNS = ("weight", "weights", "sample_weight", "sample_weights", "class_weight")


def column_remarks(unused: Sequence[str]) -> list[str]:
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


def drop_excluded(frame: pd.DataFrame, file: str, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out the rows whose file name or posting id is in a list.

    :param file: a text file with one name or id per line; ``none``: no list.
    :raises CatalogError: when the file cannot be read or is empty.
    """
    if file == NONE:
        return frame
    names = _read_names(file)
    columns = [column for column in ("image", "posting_id") if column in frame]
    listed = frame[columns].isin(names).any(axis=1)
    known = {name for column in columns for name in frame.loc[listed, column]}
    if unknown := [name for name in names if name not in known]:
        few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        cleaning.remarks.append(
            f"{len(unknown):,} of {len(names):,} names in {file} are not an image or posting_id of "
            f"the catalogue: {few}"
        )
    return cleaning.keep(frame, ~listed, "excluded", f"in the list {file}")


def _read_names(file: str) -> list[str]:
    """The distinct lines of a text file, without blank lines."""
    try:
        path = expand_path(file)
        if file_problem(path) == SPECIAL_FILE:
            raise OSError(errno.EINVAL, f"it is {SPECIAL_FILE}")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise CatalogError(
            f"exclude={file}: cannot be read ({reason}), relative to {Path.cwd()}. Name a text "
            "file with one file name or posting id per line."
        ) from error
    # splitlines would also split at other characters, which names may hold.
    names = list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))
    if not names:
        raise CatalogError(f"exclude={file}: is empty; use exclude=none to leave nothing out.")
    return names


def select_rows(frame: pd.DataFrame, largest_groups: int, cleaning: Cleaning) -> pd.DataFrame:
    """Select rows without reading photos: complete rows, the largest groups, each file once.

    Groups of equal size are ordered by their label, so the choice never depends on row order.

    :param largest_groups: how many of the largest groups to keep; 0 keeps all.
    :returns: one row per file, sorted by file name.
    :raises CatalogError: when no row is left.
    """
    complete = (frame["image"] != "") & (frame["label_group"] != "")
    kept = cleaning.keep(frame, complete, "incomplete_rows", "without image or label_group")
    if "split" in kept:
        kept = cleaning.keep(kept, kept["split"] != "", "without_split", "without a split")
    everything = kept
    cleaning.remarks += label_remarks(everything["label_group"])
    kept = _keep_largest(everything, largest_groups, cleaning)
    # Sorted first, so that the order in the file does not decide which repeated row is kept.
    order = ("image", "label_group", "split", "posting_id", "title", "image_phash", "label_name")
    by = [name for name in order if name in kept]
    kept = kept.sort_values(by, kind="stable", key=_test_first)
    if "split" in kept:
        several = int((kept.groupby("image")["split"].nunique() > 1).sum())
        cleaning.notes |= {"files_in_several_splits": several} if several else {}
    first = ~kept.duplicated(["image", "label_group"])
    kept = cleaning.keep(kept, first, "repeated_rows", "that repeat a file of their group")
    single = ~kept["image"].duplicated(keep=False)
    kept = cleaning.keep(kept, single, "conflicting_files", "of files with more than one label")
    if kept.empty:
        raise CatalogError("No row of the catalogue is left:\n" + "\n".join(cleaning.lines()))
    groups = everything.groupby("image")["label_group"].nunique()
    noisy = int((groups.reindex(kept["image"]) > 1).sum())
    if noisy:
        cleaning.notes["noisy_files"] = noisy
    return kept.reset_index(drop=True)


def _keep_largest(frame: pd.DataFrame, largest_groups: int, cleaning: Cleaning) -> pd.DataFrame:
    """Keep the largest label groups, and add a remark on what is left out."""
    sizes = frame["label_group"].value_counts()
    ranked = sorted(sizes.index, key=lambda label: (-sizes[label], label))
    chosen = ranked[:largest_groups] if largest_groups else ranked
    words = (
        f"outside the {len(chosen):,} largest label groups"
        if largest_groups
        else "outside the label groups, which are all kept"
    )
    inside = frame["label_group"].isin(chosen)
    kept = cleaning.keep(frame, inside, "outside_largest_groups", words)
    if len(chosen) < len(ranked):
        cleaning.remarks.append(
            f"keeping {len(chosen):,} of {len(ranked):,} label groups, "
            f"{kept['image'].nunique():,} of {frame['image'].nunique():,} photos; "
            "largest_groups=0 keeps all"
        )
    return kept


def _test_first(column: pd.Series) -> pd.Series:
    """A sort key: test before val before train; other columns are sorted by their values."""
    return column.map({"test": "0", "val": "1"}).fillna("2") if column.name == "split" else column


def locate_files(frame: pd.DataFrame, folder: Path, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out rows whose path leaves the folder or whose file is missing; add ``file``.

    :returns: the frame with a column ``file`` of Path.
    """
    found = find_photo_files(folder, list(frame["image"]))
    if found.note:
        cleaning.remarks.append(found.note)
    frame = frame.assign(file=pd.Series(found.files, index=frame.index, dtype=object))
    inside = frame["file"].notna()
    problems = pd.Series(found.problems, index=frame.index, dtype=str)[inside]
    frame = cleaning.keep(frame, inside, "unsafe_paths", "whose path leaves the folder of photos")
    readable = problems == ""
    kept = cleaning.keep(
        frame,
        readable,
        "missing_files",
        f"whose file is not in {folder}",
        list(problems[~readable]),
    )
    if kept.empty:
        raise CatalogError(
            f"None of the catalogue's photos is in {folder}:\n" + "\n".join(cleaning.lines())
        )
    return kept.reset_index(drop=True)


def drop_bad_images(
    frame: pd.DataFrame, reasons: dict[int, str], policy: str, cleaning: Cleaning
) -> pd.DataFrame:
    """Leave out photos that do not decode, or raise an error with ``policy="error"``.

    The index of the frame is unchanged: it has the row numbers of the decoded pixels.
    """
    if reasons and policy == "error":
        few = [f"{frame['image'][row]}: {reasons[row]}" for row in list(reasons)[:10]]
        raise CatalogError(
            f"{len(reasons)} photos do not decode (bad_images=skip would leave them out):\n  "
            + "\n  ".join(few)
        )
    good = pd.Series(~frame.index.isin(list(reasons)), index=frame.index)
    why = [reasons[row] for row in frame.index[~good]]
    return cleaning.keep(frame, good, "bad_images", "that do not decode", why)


def drop_conflicting_contents(frame: pd.DataFrame, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out photos whose bytes occur in several files with different labels."""
    labels = frame.groupby("content")["label_group"].transform("nunique")
    return cleaning.keep(
        frame,
        labels == 1,
        "conflicting_contents",
        "equal, byte for byte, to a photo of another label",
    )


def drop_small_groups(frame: pd.DataFrame, minimum: int, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out label groups with fewer than ``minimum`` photos.

    :raises CatalogError: when fewer than two groups are left.
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


def drop_untrained_groups(frame: pd.DataFrame, cleaning: Cleaning) -> pd.DataFrame:
    """Leave out label groups without a photo in train, if the catalogue has a split.

    :raises CatalogError: when fewer than two groups are left.
    """
    if "split" not in frame:
        return frame
    trained = frame["label_group"].isin(frame.loc[frame["split"] == "train", "label_group"])
    frame = cleaning.keep(frame, trained, "untrained_groups", "in groups without a photo in train")
    if frame["label_group"].nunique() < 2:
        raise CatalogError(
            "A classifier needs two label groups with photos in train, and fewer are left:\n"
            + "\n".join(cleaning.lines())
        )
    return frame


def fill_phashes(
    frame: pd.DataFrame, compute: Callable[[list[Path]], list[str]], cleaning: Cleaning
) -> pd.DataFrame:
    """Add ``image_phash``, 16 hexadecimal digits, and compute missing and invalid values.

    :param compute: takes files, returns their phashes.
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
