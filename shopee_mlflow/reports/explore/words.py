"""What the figures of the report on a catalogue say, in sentences made from the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ...config import DataConfig
from ...data.near_copies import NEAR_BITS
from ...data.photo_survey import BAD, LEFT_OUT, MISSING, OK, OUTSIDE, PhotoSurvey
from ...data.selection import Selection
from ...data.survey import GROUP, IMAGE, KINDS, PHASHES, NearCopies, Survey

_ONE_TEST_PHOTO = 10
_MOSTLY = 0.95
_FEW_PAIRS = 20
_BRIGHT = 250
_LONG = 1.5
SINGULAR = {"files": "file", "phashes": "phash", "titles": "title"}


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 photo, 2,000 photos, no photo."""
    if number == 0:
        return f"no {noun}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent."""
    return f"{part / whole:.1%}" if whole else "0 %"


def listing(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def groups_in_words(groups: pd.Series) -> str:
    """The sizes of label groups, and what they mean for a test split."""
    two, largest = int((groups == 2).sum()), int(groups.max())
    with_most = int((groups == largest).sum())
    few = int((groups < _ONE_TEST_PHOTO).sum())
    words = f"{two:,} of {counted(len(groups), 'label group')} ({share(two, len(groups))}) have 2 "
    words += f"rows. The largest has {largest:,} rows"
    words += f", as have {with_most - 1:,} more. " if with_most > 1 else ". "
    if few == 0:
        return words + f"None has fewer than {_ONE_TEST_PHOTO} rows."
    return words + (
        f"{few:,} ({share(few, len(groups))}) have fewer than {_ONE_TEST_PHOTO} rows: a test split "
        "of 10 % gets less than one photo of each."
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
    words = f"In more than one row: {listing(again)}. "
    if PHASHES in survey.repeats and survey.repeats[PHASHES].distinct < files:
        distinct = survey.repeats[PHASHES].distinct
        return words + (
            f"A row is not a photo: {counted(len(survey.rows), 'row')} name "
            f"{counted(files, 'file')}, and these have {distinct:,} different phashes."
        )
    return words + f"{counted(len(survey.rows), 'row')} name {counted(files, 'file')}."


def near_in_words(near: NearCopies) -> str:
    """Whether a near phash means the same product here."""
    bits, same = near.pairs.bits, near.same_group
    if not len(bits):
        return f"No two phashes differ in 1 to {NEAR_BITS} bits: there are no near copies."
    words = (
        f"{counted(len(bits), 'pair')} of phashes differ in 1 to {NEAR_BITS} bits. Tied together "
        f"through any chain they form {counted(near.clusters, 'cluster')}, the largest of "
        f"{near.largest:,} phashes. "
    )
    if same is None:
        return words + "Without label groups nothing tells whether they show the same product."
    nearest, farthest = int(bits.min()), int(bits.max())
    close, far = same[bits == nearest], same[bits == farthest]
    if nearest == farthest:
        words += f"All are {nearest} bits apart; {share(close.sum(), len(close))} "
        words += "have a label group in common"
    else:
        words += f"Of those {nearest} bits apart, {share(close.sum(), len(close))} have a label "
        words += f"group in common, of those {farthest} bits apart {share(far.sum(), len(far))}"
    if len(bits) < _FEW_PAIRS:
        return words + ". So few pairs tell no more."
    if same.mean() >= _MOSTLY:
        return words + ": near phashes mostly show the same product."
    return words + ": a near phash alone does not prove that two photos show the same product."


def clusters_in_words(table: pd.DataFrame) -> str:
    """What the largest cluster says about near phashes."""
    top = table.iloc[0]
    words = f"Clusters of phashes that are at most {NEAR_BITS} bits from the next. "
    if "label_groups" not in table:
        return words
    words += f"The first has {top['rows']:,} rows of {counted(int(top['label_groups']), GROUP)}"
    words = words.replace(GROUP, "label group")
    if top["label_groups"] > 1:
        return words + (
            ". Where one cluster has many groups, photos look alike that are labelled differently: "
            "one product under several labels, or one template, frame or background."
        )
    return words + "."


def noise_in_words(survey: Survey) -> str:
    """How much stands under more than one label group."""
    found = {KINDS[c]: len(t) for c, t in survey.conflicts.items()}
    if not any(found.values()):
        return f"No {' or '.join(SINGULAR[n] for n in found)} stands under more than one group."
    counts = listing([counted(n, SINGULAR[name], name) for name, n in found.items()])
    return (
        f"Under more than one label group: {counts}. Either the groups are one product, or a label "
        "is wrong. Training leaves out files that stand under several of the groups it keeps; "
        "phashes and titles stay."
    )


def titles_in_words(survey: Survey) -> str:
    """How many titles hold byte escapes."""
    escaped = int(survey.escapes["rows"].sum())
    words = f"{counted(escaped, 'title')} of {len(survey.rows):,} hold UTF-8 bytes written as text."
    words = words if escaped else "No title holds bytes written as text."
    if survey.bytes_literals:
        n = counted(survey.bytes_literals, "title is a", "titles are")
        words += f" {n} Python bytes literal{'s' * (survey.bytes_literals > 1)}, b'...'."
    return words


def coverage_in_words(selection: Selection, groups: pd.Series) -> str:
    """What top_k keeps."""
    facts = selection.facts()
    words = (
        f"{facts['kept_groups']:,} of {counted(len(groups), 'label group')} are kept, with "
        f"{facts['kept_rows']:,} of {int(groups.sum()):,} rows "
        f"({share(facts['kept_rows'], groups.sum())}). {facts['kept_repeated_rows']:,} of these "
        f"repeat a file; {counted(facts['kept_files'], 'file')} are left"
    )
    if "kept_phashes" not in facts:
        return words + "."
    return words + (
        f" with {facts['kept_phashes']:,} different phashes, or {facts['kept_near_clusters']:,} "
        f"where phashes up to {NEAR_BITS} bits apart count as one."
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
        f"{row['copies']:,} of the test photos have an equal copy in train, "
        f"{row['near_copies']:,} an equal or near one."
    )


def sides_in_words(good: pd.DataFrame, image_size: int) -> str:
    """Photos that would be enlarged."""
    sides = good[["width", "height"]].min(axis=1).astype(int)
    small = int((sides < image_size).sum())
    words = f"Shorter sides of {_span(sides)} px, median {sides.median():,.0f}. "
    if small == 0:
        return words + f"None is below image_size={image_size}: no photo has to be enlarged."
    return words + (
        f"{counted(small, 'photo')} of {len(good):,} ({share(small, len(good))}) are below "
        f"image_size={image_size} and would be enlarged."
    )


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def aspect_in_words(good: pd.DataFrame) -> str:
    """How many photos are squeezed when they become squares."""
    square = int((good["width"] == good["height"]).sum())
    ratio = good[["width", "height"]].max(axis=1) / good[["width", "height"]].min(axis=1)
    words = f"{square:,} of {counted(len(good), 'photo')} ({share(square, len(good))}) are squares."
    if square == len(good):
        return words + " Resizing squeezes none."
    long = int((ratio > _LONG).sum())
    words += " Training squeezes the others into squares; "
    if long == 0:
        return words + f"none is more than {_LONG} times as long as wide."
    return words + (
        f"{long:,} {'is' if long == 1 else 'are'} more than {_LONG} times as long as wide, up to "
        f"{ratio.max():.1f} times."
    )


def bytes_in_words(good: pd.DataFrame) -> str:
    """The size of the files, together and each."""
    kb = good["bytes"].astype(float) / 1000
    return (
        f"{counted(len(good), 'photo')} of {_span(kb.round().astype(int))} kB, median "
        f"{kb.median():,.0f} kB, together {kb.sum() / 1000:,.0f} MB."
    )


def levels_in_words(photos: PhotoSurvey) -> str:
    """Brightness, beside the mean of ImageNet on which pretrained networks were normalised."""
    good = photos.good
    means = [float(good[name].mean()) / 255 for name in ("red", "green", "blue")]
    imagenet = (0.485, 0.456, 0.406)
    gap = sum(means) / 3 - sum(imagenet) / 3
    bright = float(photos.levels[:, _BRIGHT:].sum() / 3)
    like = "as bright as" if abs(gap) < 0.05 else "brighter than" if gap > 0 else "darker than"
    return (
        f"Means of red, green and blue {', '.join(f'{mean:.3f}' for mean in means)} of 1: on the "
        f"whole {like} ImageNet's {', '.join(map(str, imagenet))}. {bright:.1%} of the values are "
        f"{_BRIGHT} or more: white, or nearly."
    )


def phash_in_words(photos: PhotoSurvey) -> str:
    """Whether the catalogue's phashes are those of its photos."""
    bits = photos.good["phash_bits"].dropna().astype(int)
    equal, off = int((bits == 0).sum()), int((bits > NEAR_BITS).sum())
    words = f"{equal:,} of {counted(len(bits), 'phash', 'phashes')} are those of their photos. "
    if equal == len(bits):
        return words + "The column can be trusted."
    most, others = int(bits.max()), counted(len(bits) - equal, "other")
    if len(bits) - equal == 1:
        words += f"{others} differs in {counted(most, 'bit')}. "
    else:
        words += f"{others} differ in up to {counted(most, 'bit')}. "
    if off == 0:
        return words + "Such small differences come from another decoder or a re-encoded file."
    return words + (
        f"{off:,} differ in more than {NEAR_BITS}: the photos were changed, or the phashes are of "
        "other photos."
    )


def states_in_words(photos: PhotoSurvey) -> str:
    """How many of the catalogue's photos are there."""
    total = len(photos.table)
    seen = total - photos.count(MISSING) - photos.count(OUTSIDE)
    words = f"{seen:,} of {counted(total, 'file')} are there. "
    if photos.count(LEFT_OUT):
        looked = photos.count(OK) + photos.count(BAD)
        words += f"{looked:,} of them, chosen by chance, were looked at. "
    bad, good = photos.count(BAD), photos.count(OK)
    if bad:
        return words + f"{bad:,} of {bad + good:,} do{'es' * (bad == 1)} not decode."
    return words + ("All of these decode." if good else "")
