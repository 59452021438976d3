"""Matches as tables: one row a posting, one a pair with its reasons, and groups."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..data.near_copies import connected
from .matcher import Matches
from .postings import Postings

_NEAR_BITS = 6
# Cosines from which a title or a photo counts as a reason.
_LIKE_TITLES, _LIKE_PHOTOS = 0.5, 0.8
_SHOWN = {"words": "words", "characters": "characters", "bits": "phash_bits", "photos": "photos"}


def matches_table(postings: Postings, matches: Matches) -> pd.DataFrame:
    """The form of the competition: posting_id, and matches, ids separated by spaces.

    Each posting matches itself first; the others follow by descending probability.
    """
    names = postings.frame["posting_id"].to_numpy()
    found: list[list[str]] = [[name] for name in names]
    order = matches.pairs.best_first(matches.chances)
    for pair in order[matches.chosen[order]]:
        found[matches.pairs.query[pair]].append(names[matches.pairs.match[pair]])
    return pd.DataFrame({"posting_id": names, "matches": [" ".join(each) for each in found]})


def pairs_table(postings: Postings, matches: Matches) -> pd.DataFrame:
    """The predicted pairs, one row for each direction, by posting and descending probability.

    Columns posting_id, match, probability, the similarities, why, and, for labelled postings,
    same_group.
    """
    order = matches.pairs.best_first(matches.chances)
    order = order[matches.chosen[order]]
    query, match = matches.pairs.query[order], matches.pairs.match[order]
    frame = postings.frame
    table = pd.DataFrame(
        {
            "posting_id": frame["posting_id"].to_numpy()[query],
            "match": frame["posting_id"].to_numpy()[match],
            "probability": matches.chances[order].round(4),
        }
    )
    for name, column in _SHOWN.items():
        if name in matches.found:
            table[column] = matches.found[name][order].round(4)
    table["why"] = _reasons(table)
    if postings.labelled:
        groups = frame["label_group"].to_numpy()
        known = (groups[query] != "") & (groups[match] != "")
        same = np.where(groups[query] == groups[match], "yes", "no")
        table["same_group"] = np.where(known, same, "")
    return table


def groups_table(postings: Postings, matches: Matches) -> pd.DataFrame:
    """The group of each posting: columns posting_id, group and size.

    Groups are connected sets of pairs that match in both directions. One direction alone would
    join groups by a single doubtful pair.
    """
    pairs = matches.pairs
    mutual = matches.chosen & matches.chosen[pairs.reverse]
    group = connected(len(postings), pairs.query[mutual], pairs.match[mutual])
    sizes = np.bincount(group)[group]
    return pd.DataFrame({"posting_id": postings.frame["posting_id"], "group": group, "size": sizes})


def _reasons(table: pd.DataFrame) -> pd.Series:
    """What speaks for each pair: title, photo, phash; neighbours if nothing else does."""
    reasons = pd.Series("", index=table.index, dtype="str")
    for column, word, holds in (
        ("words", "title", lambda value: value >= _LIKE_TITLES),
        ("characters", "title", lambda value: value >= _LIKE_TITLES),
        ("photos", "photo", lambda value: value >= _LIKE_PHOTOS),
        ("phash_bits", "phash", lambda value: value <= _NEAR_BITS),
    ):
        if column in table:
            new = holds(table[column]) & ~reasons.str.contains(word)
            reasons = reasons.mask(new, reasons + " " + word)
    return reasons.str.strip().replace("", "neighbours")
