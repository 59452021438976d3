"""Labels to review, side by side with the training photos that the model sees as most similar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.titles import decode_escapes
from .pages import Gallery, Tile, photo_picture, shortened


@dataclass(frozen=True)
class LabelIssue:
    """A photo whose label is disputed, and the training photos nearest to it.

    :ivar images: file names: of the photo, then of the training photos; ``groups`` their label
        groups, ``photos`` their pixels, each (S, S, 3) uint8.
    :ivar title: of the photo; may be empty.
    """

    images: Sequence[str]
    groups: Sequence[str]
    photos: Sequence[np.ndarray] = field(repr=False)
    title: str
    given_probability: float
    proposed: str
    proposed_probability: float


@dataclass(frozen=True)
class LabelReview:
    """The labels to review.

    :ivar shown: the most doubtful ones.
    :ivar disputed: number of labels to review, of ``photos``; ``reviewed`` were reviewed before.
    :ivar names: label group -> its name.
    """

    shown: Sequence[LabelIssue]
    disputed: int
    reviewed: int
    photos: int
    names: Mapping[str, str]

    @property
    def text(self) -> str:
        """What to do about them."""
        before = f" The corrections name {self.reviewed:,} others." if self.reviewed else ""
        if not self.disputed:
            return f"The predictions of the folds dispute no label.{before}"
        many = f"{self.disputed:,} of {self.photos:,} labels"
        return (
            f"The predictions of the folds dispute {many}.{before} A disputed label is "
            "wrong, or the photo is hard: look at it. cv/label_issues.csv among the artifacts "
            "lists them, the most doubtful first. Fill in its column action with relabel (to "
            "new_label_group, which you may change), drop or keep, and give the file to the option "
            "corrections. Rows without an action change nothing."
        )

    @property
    def galleries(self) -> list[Gallery]:
        """A gallery for each label: the photo, then the training photos nearest to it."""
        return [self._gallery(number, issue) for number, issue in enumerate(self.shown, start=1)]

    def _gallery(self, number: int, issue: LabelIssue) -> Gallery:
        given, proposed = self._name(issue.groups[0]), self._name(issue.proposed)
        lines = [
            f"given {given} ({issue.given_probability:.0%})",
            f"proposed {proposed} ({issue.proposed_probability:.0%})",
        ]
        lines += [shortened(decode_escapes(issue.title), 80)] if issue.title else []
        texts = [lines, *([f"near: {self._name(group)}"] for group in issue.groups[1:])]
        tiles = [
            Tile(
                photo_picture(photo, f"Photo of {self._name(group)}"),
                [*text, shortened(image, 18)],
            )
            for photo, group, image, text in zip(
                issue.photos, issue.groups, issue.images, texts, strict=True
            )
        ]
        return Gallery(f"{number}. {given}, or {proposed}?", "", tiles)

    def _name(self, group: str) -> str:
        name = self.names.get(group, group)
        short = shortened(group, 18)
        return short if name == group else f"{shortened(name, 40)} ({short})"
