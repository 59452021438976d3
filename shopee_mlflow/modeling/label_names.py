"""Readable names of label groups: a column of the catalogue, else the most typical title."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..data.titles import decode_escapes

_LONGEST = 60
_WORD = r"\w+"


def label_names(frame: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """A name of at most 60 characters for each label group.

    A name is the most frequent value of ``label_name``, else the title nearest to the mean of the
    group's titles, else the label group itself.

    :param frame: column label_group, and label_name and title if the catalogue has them.
    :param classes: label groups.
    :returns: their names, in the same order.
    """
    names = {label: label for label in classes}
    if "title" in frame:
        names |= _typical_titles(frame)
    if "label_name" in frame:
        names |= _most_frequent(frame)
    return [_short(names[label]) for label in classes]


def _most_frequent(frame: pd.DataFrame) -> dict[str, str]:
    """Label group -> its most frequent label_name; of several, the first in alphabetical order."""
    filled = frame[frame["label_name"] != ""]
    counts = filled.groupby(["label_group", "label_name"]).size().rename("rows").reset_index()
    order = ["label_group", "rows", "label_name"]
    counts = counts.sort_values(order, ascending=[True, False, True])
    first = counts.drop_duplicates("label_group")
    return dict(zip(first["label_group"], first["label_name"], strict=True))


def _typical_titles(frame: pd.DataFrame) -> dict[str, str]:
    """Label group -> the title with the highest cosine similarity to the mean TF-IDF vector."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    table = frame[["label_group", "title"]].assign(title=frame["title"].map(_plain))
    table = table[table["title"].str.contains(_WORD)].reset_index(drop=True)
    if table.empty:
        return {}
    vectors = TfidfVectorizer(token_pattern=_WORD).fit_transform(table["title"]).tocoo()
    group, _ = pd.factorize(table["label_group"])
    # The sum of a group's vectors ranks its titles in the same order as their mean.
    cells = group[vectors.row] * vectors.shape[1] + vectors.col
    _, cell = np.unique(cells, return_inverse=True)
    sums = np.bincount(cell, vectors.data)[cell]
    table["similarity"] = np.bincount(vectors.row, vectors.data * sums, len(table)).round(9)
    table["length"] = table["title"].str.len()
    order = ["label_group", "similarity", "length", "title"]
    table = table.sort_values(order, ascending=[True, False, True, True])
    first = table.drop_duplicates("label_group")
    return dict(zip(first["label_group"], first["title"], strict=True))


def _plain(title: str) -> str:
    """A title in one line, with decoded byte escapes and without control characters."""
    return " ".join(re.sub("[\ufffd\x00-\x1f\x7f-\x9f]", " ", decode_escapes(title)).split())


def _short(name: str) -> str:
    if len(name) <= _LONGEST:
        return name
    words = textwrap.shorten(name, _LONGEST, placeholder="…")
    return words if len(words) > 1 else name[: _LONGEST - 1] + "…"
