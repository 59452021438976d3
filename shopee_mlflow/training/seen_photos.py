"""Find photos that a model has seen: copies of photos in the train or val split of its runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..data.splits import SPLITS, TRAIN, VAL, tie_copies
from ..errors import TrackingError
from ..modeling.metrics import score
from ..tracking.finding import find_run, read_manifest
from ..tracking.names import WEIGHTS_RUN_TAG

_COPY = ["content", "image_phash"]


@dataclass(frozen=True)
class SeenPhotos:
    """The photos that the model has seen, if this is known.

    :ivar split: for each photo, ``train`` or ``val`` if that split of the model's run has a copy of
        it, which is a photo with equal bytes or a phash within the run's ``near_bits``; ``""`` if
        there is none or it is unknown.
    :ivar unknown: why the model's splits are unknown; empty if they are known.
    :ivar by_bytes: whether copies were found only by equal bytes, since the run's manifest has no
        phashes.
    """

    split: pd.Series
    unknown: str = ""
    by_bytes: bool = False

    @property
    def mask(self) -> np.ndarray:
        """(N,) bool: whether each photo was seen."""
        return (self.split != "").to_numpy()


def find_seen(frame: pd.DataFrame, run_id: str | None) -> SeenPhotos:
    """Compare photos with the manifests of the runs that have trained a model.

    The option ``near_bits`` of the model's run decides which photos are copies, so the test split
    of a leak-free run is unseen. For runs without this option, phashes must be equal. If only the
    manifests of some of the runs can be read, the photos in these are found.

    :param frame: columns ``content`` and ``image_phash``.
    :param run_id: the run that has logged the model; None if it is unknown. The runs whose weights
        it started from are found by their tags.
    """
    nothing = pd.Series("", index=frame.index)
    if not run_id:
        return SeenPhotos(nothing, "the model does not record the run that trained it")
    manifests, near_bits, unread = _manifests(run_id)
    if not manifests:
        return SeenPhotos(nothing, unread)
    known = pd.concat(manifests, ignore_index=True)
    by_bytes = "image_phash" not in known or bool(known["image_phash"].isna().any())
    known = known.reindex(columns=[*_COPY, "split"]).fillna("")
    # The final model of a cross-validation is trained on all folds.
    known["split"] = known["split"].where(known["split"].isin(SPLITS), TRAIN)
    known = known[known["split"].isin([TRAIN, VAL])]
    both = pd.concat([known[_COPY], frame[_COPY]], ignore_index=True)
    sets = tie_copies(both, near_bits)
    theirs, mine = sets.iloc[: len(known)], sets.iloc[len(known) :].to_numpy()
    split = nothing
    for name in (VAL, TRAIN):  # a copy in train overrides one in val
        copied = np.isin(mine, theirs[(known["split"] == name).to_numpy()])
        split = split.mask(copied, name)
    return SeenPhotos(split, unread, by_bytes=by_bytes)


def _manifests(run_id: str) -> tuple[list[pd.DataFrame], int, str]:
    """The manifests of a run and of the runs whose weights it started from.

    :returns: the manifests, near_bits of the first run, and why another one cannot be read.
    """
    manifests, near_bits, seen = list[pd.DataFrame](), list[int](), set[str]()
    try:
        while run_id and run_id not in seen:
            seen.add(run_id)
            manifest, params = read_manifest(run_id)
            manifests.append(manifest)
            near_bits.append(int(params.get("near_bits", "0")))
            run_id = find_run(run_id).data.tags.get(WEIGHTS_RUN_TAG, "")
    except TrackingError as error:
        return manifests, near_bits[0] if near_bits else 0, str(error).splitlines()[0]
    return manifests, near_bits[0], ""


def eval_scores(labels: np.ndarray, logits: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Compute ``eval_*`` of the unseen photos and ``eval_seen_accuracy`` of the seen photos.

    Scores of an empty set are omitted.

    :param labels: (N,) int, true classes.
    :param logits: (N, C) float.
    :param seen: (N,) bool.
    """
    scores: dict[str, float] = {}
    if not seen.all():
        unseen = score(labels[~seen], logits[~seen])
        scores |= {f"eval_{name}": value for name, value in unseen.items()}
    if seen.any():
        scores["eval_seen_accuracy"] = float((logits[seen].argmax(axis=1) == labels[seen]).mean())
    return scores


def in_words(scores: dict[str, float], seen: SeenPhotos) -> list[str]:
    """The result as sentences, starting with the score of unseen photos."""
    unseen, total = int((~seen.mask).sum()), len(seen.split)
    lines = []
    if unseen:
        kind = "photos" if unseen == total else "photos that the model has not seen"
        lines.append(
            f"accuracy {scores['eval_accuracy']:.1%} of {unseen:,} {kind}, 95 % interval "
            f"{scores['eval_accuracy_low']:.1%} to {scores['eval_accuracy_high']:.1%}"
        )
    if unseen < total:
        lines.append(_warning(scores["eval_seen_accuracy"], seen))
    if seen.unknown:
        lines.append(
            "WARNING: it cannot be checked whether the model was trained on some of these photos, "
            f"which would make the accuracy too high: {seen.unknown}"
        )
    elif seen.by_bytes:
        lines.append(
            "WARNING: the model's run has no phashes, so seen photos were found only by equal "
            "bytes. Resized copies were not found."
        )
    return lines


def _warning(accuracy: float, seen: SeenPhotos) -> str:
    total, train, val = (len(seen.split), *((seen.split == n).sum() for n in (TRAIN, VAL)))
    found = train + val
    where = " and ".join(
        f"{count:,} in its {name} split" for name, count in ((TRAIN, train), (VAL, val)) if count
    )
    end = "" if found < total else " There are no photos to measure the accuracy on new photos."
    return (
        f"WARNING: the model has seen {found:,} of the {total:,} photos or a copy of them, "
        f"{where}. Its accuracy of {accuracy:.1%} on these does not apply to new photos.{end}"
    )
