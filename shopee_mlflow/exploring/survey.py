"""Facts and tables from a catalogue's CSV alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..data.columns import COLUMNS
from ..data.label_checks import label_remarks, lookalike_labels, missing_value_labels, shown_label
from ..data.near_copies import PHASH, NearPairs, connected, near_phashes
from ..data.titles import count_bytes_literals, escaped_titles

IMAGE, PHASHES, TITLE, GROUP = "image", "image_phash", "title", "label_group"
# Most pairs of near phashes in a table.
MOST_LISTED = 100_000
# Columns whose values may repeat or be under several label groups -> their plurals.
KINDS = {IMAGE: "files", PHASHES: "phashes", TITLE: "titles"}
SINGULAR = {IMAGE: "file", PHASHES: "phash", TITLE: "title"}


@dataclass(frozen=True)
class Repeats:
    """The number of rows of each value of a column, without empty values.

    :ivar counts: value -> rows, the most frequent first.
    """

    counts: pd.Series

    @property
    def distinct(self) -> int:
        """The number of distinct values."""
        return len(self.counts)

    @property
    def repeated(self) -> int:
        """The number of values in more than one row."""
        return int((self.counts > 1).sum())

    @property
    def most(self) -> int:
        """The rows of the most frequent value."""
        return int(self.counts.max()) if len(self.counts) else 0

    def table(self) -> pd.DataFrame:
        """Values in more than one row: columns value, rows."""
        again = self.counts[self.counts > 1]
        return pd.DataFrame({"value": again.index.astype("str"), "rows": again.to_numpy()})


@dataclass(frozen=True)
class NearCopies:
    """Phashes that differ in few bits.

    :ivar phashes: every distinct phash, sorted.
    :ivar pairs: pairs of indices of ``phashes``.
    :ivar same_group: for each pair whether some label group has both; None without labels.
    :ivar cluster: for each phash the number of its cluster; most clusters have one phash.
    """

    phashes: list[str]
    pairs: NearPairs
    same_group: np.ndarray | None
    cluster: np.ndarray

    @property
    def clusters(self) -> int:
        """The number of clusters with more than one phash."""
        return int((np.bincount(self.cluster) > 1).sum()) if len(self.cluster) else 0

    @property
    def largest(self) -> int:
        """The phashes of the largest cluster."""
        return int(np.bincount(self.cluster).max()) if len(self.cluster) else 0

    def pair_table(self) -> pd.DataFrame:
        """The nearest pairs, at most ``MOST_LISTED`` of them.

        :returns: columns image_phash, other_phash, bits, same_group.
        """
        nearest = np.argsort(self.pairs.bits, kind="stable")[:MOST_LISTED]
        names = np.array(self.phashes, dtype=object)
        table = pd.DataFrame(
            {
                PHASHES: names[self.pairs.left[nearest]],
                "other_phash": names[self.pairs.right[nearest]],
                "bits": self.pairs.bits[nearest].astype(int),
            }
        )
        if self.same_group is not None:
            table["same_group"] = self.same_group[nearest]
        return table


@dataclass(frozen=True)
class Survey:
    """The facts of a CSV.

    :ivar rows: the rows of the catalogue, with clean phashes.
    :ivar columns: one row per column: column, filled, empty, distinct.
    :ivar absent: known columns that this catalogue lacks.
    :ivar invalid_phashes: entries of image_phash that are not a phash.
    :ivar groups: label group -> rows, the largest first; None without labels.
    :ivar repeats: for each of ``KINDS`` that is present.
    :ivar conflicts: for each of ``KINDS`` that is present, values under several label groups.
    :ivar near: None without phashes.
    :ivar escapes: titles with byte escapes, raw and decoded.
    :ivar bytes_literals: titles that are bytes literals of Python.
    :ivar lookalikes: label groups that look the same: columns set (a number, equal for those that
        look the same), label_group, escaped (with escapes for what cannot be seen), rows.
    :ivar missing_labels: label groups that read like a missing value: label_group, rows.
    """

    rows: pd.DataFrame
    columns: pd.DataFrame
    absent: tuple[str, ...]
    invalid_phashes: int
    groups: pd.Series | None
    repeats: dict[str, Repeats]
    conflicts: dict[str, pd.DataFrame]
    near: NearCopies | None
    escapes: pd.DataFrame
    bytes_literals: int
    lookalikes: pd.DataFrame
    missing_labels: pd.DataFrame

    def label_remarks(self) -> list[str]:
        """Lines about lookalike label groups and those that read like a missing value."""
        return label_remarks(self.groups.index) if self.groups is not None else []

    def facts(self) -> dict[str, int]:
        """Name -> number; unknown facts are left out."""
        facts = {"rows": len(self.rows)}
        for column, repeats in self.repeats.items():
            name = KINDS[column]
            facts |= {
                f"distinct_{name}": repeats.distinct,
                f"repeated_{name}": repeats.repeated,
                f"most_rows_of_{name}": repeats.most,
            }
        for column, table in self.conflicts.items():
            facts[f"conflicting_{KINDS[column]}"] = len(table)
        if self.groups is not None:
            facts |= {
                "label_groups": len(self.groups),
                "groups_of_two": int((self.groups == 2).sum()),
                "largest_group": int(self.groups.max()) if len(self.groups) else 0,
            }
            facts["lookalike_labels"] = len(self.lookalikes)
            facts["missing_value_labels"] = len(self.missing_labels)
        if PHASHES in self.columns["column"].to_numpy():
            facts["invalid_phashes"] = self.invalid_phashes
        if self.near is not None:
            facts |= {
                "near_pairs": len(self.near.pairs),
                "near_clusters": self.near.clusters,
                "largest_near_cluster": self.near.largest,
            }
        if TITLE in self.rows:
            facts["titles_with_escapes"] = int(self.escapes["rows"].sum())
            facts["titles_as_bytes"] = self.bytes_literals
        return facts


def survey_catalog(rows: pd.DataFrame, computed: Mapping[str, str] | None = None) -> Survey:
    """Survey a catalogue as :func:`shopee_mlflow.data.catalog_csv.read_catalog` returns it.

    :param computed: phashes of photos by file name, for rows without a valid one.
    """
    columns = _columns(rows)
    absent = tuple(name for name in COLUMNS if name not in rows)
    rows, invalid = _clean_phashes(rows, computed or {})
    known = [column for column in KINDS if column in rows]
    labelled = GROUP in rows
    groups = _counts(rows[GROUP]) if labelled else None
    known_groups = pd.Series(dtype="int64") if groups is None else groups
    titles = rows[TITLE] if TITLE in rows else pd.Series([], dtype="str")
    return Survey(
        rows=rows,
        columns=columns,
        absent=absent,
        invalid_phashes=invalid,
        groups=groups,
        repeats={column: Repeats(_counts(rows[column])) for column in known},
        conflicts={column: _conflicts(rows, column) for column in known} if labelled else {},
        near=_near_copies(rows) if PHASHES in rows else None,
        escapes=escaped_titles(titles),
        bytes_literals=count_bytes_literals(titles),
        lookalikes=_lookalikes(known_groups),
        missing_labels=_missing_labels(known_groups),
    )


def cluster_table(survey: Survey) -> pd.DataFrame:
    """Clusters of several phashes, sorted by number of rows, descending.

    Columns cluster, phashes, files, rows, label_groups where there are labels, and members, the
    phashes themselves.
    """
    if survey.near is None:
        return pd.DataFrame(columns=["cluster", "phashes", "files", "rows", "members"])
    several = (np.bincount(survey.near.cluster) > 1)[survey.near.cluster]
    numbered = zip(survey.near.phashes, survey.near.cluster.tolist(), several, strict=True)
    number = {phash: cluster for phash, cluster, more in numbered if more}
    rows = survey.rows[survey.rows[PHASHES].isin(number.keys())]
    wanted: dict[str, tuple[str, Any]] = {
        "phashes": (PHASHES, "nunique"),
        "files": (IMAGE, "nunique"),
        "rows": (IMAGE, "size"),
    }
    if GROUP in rows:
        wanted["label_groups"] = (GROUP, "nunique")
    wanted["members"] = (PHASHES, lambda members: " ".join(sorted(set(members))))
    by_cluster = rows.assign(cluster=rows[PHASHES].map(number)).groupby("cluster")
    table = by_cluster.agg(**wanted).reset_index()
    return table.sort_values(["rows", "cluster"], ascending=[False, True]).reset_index(drop=True)


def _columns(rows: pd.DataFrame) -> pd.DataFrame:
    filled = [int((rows[name] != "").sum()) for name in rows]
    return pd.DataFrame(
        {
            "column": [str(name) for name in rows],
            "filled": filled,
            "empty": [len(rows) - count for count in filled],
            "distinct": [rows[name][rows[name] != ""].nunique() for name in rows],
        }
    )


def _lookalikes(groups: pd.Series) -> pd.DataFrame:
    found = [
        {"set": number, GROUP: label, "escaped": shown_label(label), "rows": int(groups[label])}
        for number, alike in enumerate(lookalike_labels(groups.index), 1)
        for label in alike
    ]
    return pd.DataFrame(found, columns=["set", GROUP, "escaped", "rows"])


def _missing_labels(groups: pd.Series) -> pd.DataFrame:
    found = [
        {GROUP: label, "rows": int(groups[label])} for label in missing_value_labels(groups.index)
    ]
    return pd.DataFrame(found, columns=[GROUP, "rows"])


def _clean_phashes(rows: pd.DataFrame, computed: Mapping[str, str]) -> tuple[pd.DataFrame, int]:
    """Clean phashes: 16 lower-case digits, or empty; invalid ones are replaced by the photo's.

    The column is left out if it has no phash at all.
    """
    if PHASHES not in rows and not computed:
        return rows, 0
    given = rows[PHASHES].str.lower() if PHASHES in rows else pd.Series("", rows.index, dtype="str")
    valid = given.str.fullmatch(PHASH)
    invalid = int((~valid & (given != "")).sum())
    if not valid.all():
        given = given.where(valid, rows[IMAGE].map(lambda name: computed.get(name, "")))
    if (given == "").all():
        return rows.drop(columns=PHASHES, errors="ignore"), invalid
    return rows.assign(**{PHASHES: given.astype("str")}), invalid


def _counts(values: pd.Series) -> pd.Series:
    """Value -> rows, sorted by frequency, then name, without empty values."""
    counts = values[values != ""].value_counts()
    return counts.sort_index().sort_values(ascending=False, kind="stable")


def _conflicts(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Values of a column under several label groups, sorted by number of groups, descending.

    :returns: columns value, rows, label_groups (how many), groups (their names and rows).
    """
    there = rows[(rows[column] != "") & (rows[GROUP] != "")]
    groups = there.groupby(column)[GROUP].nunique()
    several = groups.index[groups > 1]
    parts = there[there[column].isin(several)].groupby([column, GROUP]).size()
    found = [
        {
            "value": str(value),
            "rows": int(part.sum()),
            "label_groups": len(part),
            "groups": ", ".join(f"{label} ({count})" for label, count in part.droplevel(0).items()),
        }
        for value, part in parts.groupby(level=0)
    ]
    table = pd.DataFrame(found, columns=["value", "rows", "label_groups", "groups"])
    order = ["label_groups", "rows", "value"]
    return table.sort_values(order, ascending=[False, False, True]).reset_index(drop=True)


def _near_copies(rows: pd.DataFrame) -> NearCopies:
    there = rows[rows[PHASHES] != ""]
    phashes = sorted(there[PHASHES].unique())
    pairs = near_phashes(phashes)
    same = None
    if GROUP in rows:
        labels = there[there[GROUP] != ""].groupby(PHASHES)[GROUP].agg(set).to_dict()
        groups = [labels.get(phash, set()) for phash in phashes]
        ends = zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)
        same = np.array([not groups[a].isdisjoint(groups[b]) for a, b in ends], dtype=bool)
    return NearCopies(phashes, pairs, same, connected(len(phashes), pairs.left, pairs.right))
