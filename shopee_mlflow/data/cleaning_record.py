"""The record of how a catalogue was cleaned: what each step left out, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from .photo_files import NO_FILE

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
