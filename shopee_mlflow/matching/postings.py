"""Postings of a catalogue, checked: what each is called, and by what it can be matched."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..data.near_copies import PHASH
from ..errors import CatalogError
from .title_vectors import TitleVectors, title_vectors

_COLUMNS = ("posting_id", "image", "title", "image_phash", "label_group")


@dataclass(frozen=True)
class Postings:
    """Postings and their signals.

    :ivar frame: index 0, 1, ...; columns posting_id, image, title, image_phash and label_group,
        all text, empty where unknown.
    :ivar titles: None if titles do not tell postings apart; ``phashes`` and ``photos`` alike.
    :ivar photos: (N, features) float32, embeddings of length 1; zeros without a photo.
    :ivar remarks: lines about what is not used.
    """

    frame: pd.DataFrame
    titles: TitleVectors | None
    phashes: pd.Series | None
    photos: np.ndarray | None = None
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def labelled(self) -> bool:
        """Whether any posting has a label group."""
        return bool((self.frame["label_group"] != "").any())

    @property
    def signals(self) -> list[str]:
        """Names of the signals that are there."""
        known = {"titles": self.titles, "phashes": self.phashes, "photos": self.photos}
        return [name for name, value in known.items() if value is not None]


def check_postings(rows: pd.DataFrame, photos: np.ndarray | None = None) -> Postings:
    """Check the rows of a catalogue and compute the vectors of their titles.

    :param rows: those of :data:`_COLUMNS` that the catalogue has.
    :raises CatalogError: when postings cannot be told apart by name, or have no signal.
    """
    frame = pd.DataFrame(index=range(len(rows)))
    for name in _COLUMNS:
        frame[name] = rows[name].to_numpy() if name in rows else ""
    frame["posting_id"] = _names(frame, "posting_id" in rows)
    given = int((frame["image_phash"] != "").sum())
    frame["image_phash"] = valid_phashes(frame["image_phash"])
    valid = int((frame["image_phash"] != "").sum())
    remarks = []
    if invalid := given - valid:
        remarks.append(f"{invalid:,} values of image_phash are invalid and are not used")
    if len(frame) < 2:
        raise CatalogError("The catalogue has one posting; matching needs at least two.")
    alike = frame["title"].nunique() == 1 and frame["title"].iloc[0] != ""
    if alike:
        remarks.append("all titles are the same, so they are not used")
    titles = None if alike else title_vectors(list(frame["title"]))
    phashes = frame["image_phash"] if valid else None
    if titles is None and phashes is None and photos is None:
        why = "All titles are the same" if alike else "No posting has a title"
        raise CatalogError(
            f"{why}, and none has an image_phash or an embedded photo: there is nothing to match "
            "by. Name the column of titles with title_column, add a column image_phash, or name a "
            "folder of photos with images and a model with model."
        )
    return Postings(frame, titles, phashes, photos, remarks)


def valid_phashes(phashes: pd.Series) -> pd.Series:
    """Phashes in lower case; empty where they are not 16 hexadecimal digits."""
    lower = phashes.str.lower()
    return lower.where(lower.str.fullmatch(PHASH.pattern), "")


def _names(frame: pd.DataFrame, named: bool) -> pd.Series:
    """The names of postings: their ids, or the names of their files.

    :raises CatalogError: when two have the same, or one has none or one with a space.
    """
    column = "posting_id" if named else "image"
    names = frame[column]
    if (names == "").any():
        row = int((names == "").to_numpy().argmax()) + 1
        hint = "" if named else "; add a column posting_id"
        raise CatalogError(f"Row {row:,} has no {column}, so its matches have no name{hint}.")
    if (twice := names[names.duplicated()]).size:
        hint = "give each posting its own" if named else "add a column posting_id"
        raise CatalogError(
            f"{column}: {len(twice):,} values repeat an earlier one, such as {twice.iloc[0]!r}; "
            f"{hint}."
        )
    spaced = names[names.str.contains(r"\s")]
    if spaced.size:
        raise CatalogError(
            f"{column}: {spaced.iloc[0]!r} holds a space, and matches are separated by spaces; "
            "use ids without spaces."
        )
    return names
