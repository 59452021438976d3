"""What the figures drawn from the CSV say, in sentences made from the same numbers."""

from __future__ import annotations

import pandas as pd

from ..config import DataConfig
from ..data.near_copies import NEAR_BITS
from .grammar import SINGULAR, counted, listing, part_of, share, verb
from .selection import Selection
from .survey import IMAGE, KINDS, PHASHES, NearCopies, Survey

_ONE_TEST_PHOTO = 10
_MOSTLY = 0.95
_FEW_PAIRS = 20


def groups_in_words(groups: pd.Series) -> str:
    """The sizes of label groups, and what they mean for a test split."""
    two, largest = int((groups == 2).sum()), int(groups.max())
    with_most = int((groups == largest).sum())
    few = int((groups < _ONE_TEST_PHOTO).sum())
    words = f"{part_of(two, len(groups), 'label groups')} {verb(two, 'has', 'have')} 2 rows. "
    words += f"The largest has {counted(largest, 'row')}"
    if with_most > 1:
        words += f", as {verb(with_most - 1, 'has', 'have')} {with_most - 1:,} more"
    if few == 0:
        return words + f". None has fewer than {_ONE_TEST_PHOTO} rows."
    return words + (
        f". {few:,} ({share(few, len(groups))}) {verb(few, 'has', 'have')} fewer than "
        f"{_ONE_TEST_PHOTO} rows: a test split of 10 % gets less than one photo of each."
    )


def repeats_in_words(survey: Survey) -> str:
    """How often files, phashes and titles come back."""
    again = [
        f"{counted(r.repeated, SINGULAR[KINDS[c]], KINDS[c])} (up to {r.most:,} times)"
        for c, r in survey.repeats.items()
        if r.repeated
    ]
    if not again:
        return "No value comes back: each row has its own."
    files = survey.repeats[IMAGE].distinct
    words = (
        f"In more than one row: {listing(again)}. {counted(len(survey.rows), 'row')} "
        f"{verb(len(survey.rows), 'names', 'name')} {counted(files, 'file')}"
    )
    phashes = survey.repeats.get(PHASHES)
    if phashes is None or phashes.distinct >= files:
        return f"{words}."
    return words + (
        f" with {counted(phashes.distinct, 'phash', 'different phashes')}: a row is not a photo."
    )


def near_in_words(near: NearCopies) -> str:
    """Whether a near phash means the same product here."""
    bits, same = near.pairs.bits, near.same_group
    if not len(bits):
        return f"No two phashes differ in 1 to {NEAR_BITS} bits: there are no near copies."
    words = (
        f"{counted(len(bits), 'pair')} of phashes {verb(len(bits), 'differs', 'differ')} in 1 to "
        f"{NEAR_BITS} bits. Tied together through any chain they form "
        f"{counted(near.clusters, 'cluster')}, the largest of {near.largest:,} phashes. "
    )
    if same is None:
        return words + "Without label groups nothing tells whether they show the same product."
    if len(bits) < _FEW_PAIRS:
        alike = int(same.sum())
        return words + (
            f"{alike:,} of the {counted(len(bits), 'pair')} {verb(alike, 'has', 'have')} a label "
            "group in common; so few pairs tell no more."
        )
    nearest, farthest = int(bits.min()), int(bits.max())
    words += f"Of those {counted(nearest, 'bit')} apart, {_alike(near, nearest)} have a label "
    words += "group in common"
    if farthest > nearest:
        words += f", of those {farthest} bits apart {_alike(near, farthest)}"
    if same.mean() >= _MOSTLY:
        return words + ": near phashes mostly show the same product."
    return words + ": a near phash alone does not prove that two photos show the same product."


def _alike(near: NearCopies, bits: int) -> str:
    assert near.same_group is not None
    same = near.same_group[near.pairs.bits == bits]
    return share(same.sum(), len(same))


def clusters_in_words(table: pd.DataFrame) -> str:
    """What the largest cluster says about near phashes."""
    top = table.iloc[0]
    words = f"Clusters of phashes that are at most {NEAR_BITS} bits from the next."
    if "label_groups" not in table:
        return words
    groups = counted(int(top["label_groups"]), "label group")
    words += f" The first has {top['rows']:,} rows of {groups}."
    if top["label_groups"] < 2:
        return words
    return words + (
        " Where one cluster has many groups, photos look alike that are labelled differently: one "
        "product under several labels, or one template, frame or background."
    )


def noise_in_words(survey: Survey) -> str:
    """How much stands under more than one label group."""
    found = {KINDS[c]: len(t) for c, t in survey.conflicts.items()}
    if not any(found.values()):
        names = listing([SINGULAR[name] for name in found], "or")
        return f"No {names} stands under more than one label group."
    counts = listing([counted(n, SINGULAR[name], name) for name, n in found.items()])
    return (
        f"Under more than one label group: {counts}. Either the groups are one product, or a label "
        "is wrong. Training leaves out files that stand under several of the groups it keeps; "
        "phashes and titles stay."
    )


def titles_in_words(survey: Survey) -> str:
    """How many titles hold byte escapes."""
    escaped, literals = int(survey.escapes["rows"].sum()), survey.bytes_literals
    words = "No title holds bytes written as text."
    if escaped:
        some = part_of(escaped, len(survey.rows), "rows")
        words = f"{some} {verb(escaped, 'has', 'have')} a title with UTF-8 bytes written as text."
    if literals:
        what = verb(literals, "title is a Python bytes literal", "titles are Python bytes literals")
        words += f" {literals:,} {what}, b'...'."
    return words


def coverage_in_words(selection: Selection) -> str:
    """What largest_groups keeps."""
    facts = selection.facts()
    groups, rows = facts["kept_groups"], facts["kept_rows"]
    words = (
        f"largest_groups keeps {groups:,} of {counted(selection.groups, 'label group')} with "
        f"{part_of(rows, selection.cleaning.rows, 'rows')}."
    )
    for count, what in (
        (facts["kept_repeated_rows"], "repeat a file of their group"),
        (facts["kept_conflicting_rows"], "are of files under several of these groups"),
    ):
        if count:
            words += f" {count:,} of them {what}."
    words += f" Left: {counted(facts['kept_files'], 'file')}"
    if "kept_phashes" not in facts:
        return f"{words}."
    return words + (
        f" with {counted(facts['kept_phashes'], 'phash', 'different phashes')}, or "
        f"{facts['kept_near_clusters']:,} where those up to {NEAR_BITS} bits apart count as one."
    )


def leaks_in_words(splits: pd.DataFrame) -> str:
    """What copies on both sides of a split mean for its score."""
    parts = {str(mode): part for mode, part in splits.groupby("split")}
    random, leak_free = parts["random"], parts["leak_free"]
    words = f"A dot a seed, {counted(splits['seed'].nunique(), 'seed')}; lines are means. "
    if random["near_copies"].sum() == 0:
        return words + "No copy came across: a random split does no harm here."
    if random["copies"].sum():
        words += (
            f"With split=random {_rate(random, 'copies')} of the test photos have an equal copy in "
            "train: its score is in part memory. "
        )
    if leak_free["near_copies"].sum():
        return words + (
            "split=leak_free ties equal copies together, not near ones: "
            f"{_rate(leak_free, 'near_copies')} have a near copy in train all the same."
        )
    return words + "split=leak_free lets none across, not even near ones."


def leak_table(splits: pd.DataFrame) -> pd.DataFrame:
    """The same numbers: of each kind of split the mean, and in brackets the least and the most."""
    return pd.DataFrame(
        [
            {
                "split": mode,
                "test photos": round(float(part["test"].mean())),
                "with an equal copy in train": _mean(part, "copies"),
                "with an equal or near copy": _mean(part, "near_copies"),
            }
            for mode, part in splits.groupby("split")
        ]
    )


def _mean(part: pd.DataFrame, name: str) -> str:
    counts = part[name]
    return f"{counts.mean():,.1f} ({counts.min():,} to {counts.max():,}), {_rate(part, name)}"


def _rate(part: pd.DataFrame, name: str) -> str:
    return share(part[name].sum(), part["test"].sum())


def chosen_split_in_words(splits: pd.DataFrame, config: DataConfig) -> str:
    """The split that the options themselves ask for."""
    row = splits[(splits["split"] == config.split) & (splits["seed"] == config.split_seed)].iloc[0]
    return (
        f"With the options of this report (split={config.split}, split_seed={config.split_seed}): "
        f"{row['train']:,} photos to train, {row['val']:,} to validate, {row['test']:,} to test; "
        f"{row['copies']:,} of the test photos {verb(row['copies'], 'has', 'have')} an equal copy "
        f"in train, {row['near_copies']:,} an equal or near one."
    )
