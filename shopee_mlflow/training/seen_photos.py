"""Which photos a model has seen: copies of photos of the train or val split of its runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..data.splits import SPLITS, TRAIN, VAL, tie_copies
from ..errors import TrackingError
from ..modeling.metrics import score
from ..tracking.names import WEIGHTS_RUN_TAG
from ..tracking.runs import find_run, read_manifest

_COPY = ["content", "image_phash"]


@dataclass(frozen=True)
class SeenPhotos:
    """Which photos the model has seen, or that this is unknown.

    :ivar split: for each photo ``train``, ``val`` or ``""``: the split of the model's run that has
        a copy of it, which is a photo of equal bytes or phash. Also ``""`` where it is unknown.
    :ivar unknown: why the model's splits are not known; empty where they are.
    :ivar by_bytes: only equal bytes were found, since the run's manifest has no phashes.
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

    :param frame: columns ``content`` and ``image_phash``.
    :param run_id: the run that has logged the model; the runs whose weights it started from are
        found by their tags. None: the model does not name its run.
    """
    nothing = pd.Series("", index=frame.index)
    if not run_id:
        return SeenPhotos(nothing, "the model does not name the run that trained it")
    try:
        known = pd.concat(_manifests(run_id), ignore_index=True)
    except TrackingError as error:
        return SeenPhotos(nothing, str(error).splitlines()[0])
    by_bytes = "image_phash" not in known or bool(known["image_phash"].isna().any())
    known = known.reindex(columns=[*_COPY, "split"]).fillna("")
    # The final model of a cross-validation is trained on all folds.
    known["split"] = known["split"].where(known["split"].isin(SPLITS), TRAIN)
    known = known[known["split"].isin([TRAIN, VAL])]
    both = pd.concat([known[_COPY], frame[_COPY]], ignore_index=True)
    sets = tie_copies(both)
    theirs, mine = sets.iloc[: len(known)], sets.iloc[len(known) :].to_numpy()
    split = nothing
    for name in (VAL, TRAIN):  # a copy in train counts, whatever is in val
        copied = np.isin(mine, theirs[(known["split"] == name).to_numpy()])
        split = split.mask(copied, name)
    return SeenPhotos(split, by_bytes=by_bytes)


def _manifests(run_id: str) -> list[pd.DataFrame]:
    """The manifest of a run, and those of the runs whose weights it started from."""
    manifests, seen = [], set[str]()
    while run_id and run_id not in seen:
        seen.add(run_id)
        manifests.append(read_manifest(run_id)[0])
        run_id = find_run(run_id).data.tags.get(WEIGHTS_RUN_TAG, "")
    return manifests


def eval_scores(labels: np.ndarray, logits: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """``eval_*`` of the unseen photos, if there are any, and ``eval_seen_accuracy`` of the others.

    :param labels: (N,) int, true classes; ``logits`` (N, C) float; ``seen`` (N,) bool.
    """
    scores: dict[str, float] = {}
    if not seen.all():
        unseen = score(labels[~seen], logits[~seen])
        scores |= {f"eval_{name}": value for name, value in unseen.items()}
    if seen.any():
        scores["eval_seen_accuracy"] = float((logits[seen].argmax(axis=1) == labels[seen]).mean())
    return scores


def in_words(scores: dict[str, float], seen: SeenPhotos) -> list[str]:
    """The result as sentences, the score of unseen photos first."""
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
            "WARNING: photos that the model was trained on may be among them, which would raise "
            f"the accuracy; this cannot be checked: {seen.unknown}"
        )
    elif seen.by_bytes:
        lines.append(
            "WARNING: the model's run has no phashes, so only photos of equal bytes were "
            "recognized as seen, no resized copies."
        )
    return lines


def _warning(accuracy: float, seen: SeenPhotos) -> str:
    total, train, val = (len(seen.split), *((seen.split == n).sum() for n in (TRAIN, VAL)))
    found = train + val
    where = " and ".join(
        f"{count:,} in its {name} split" for name, count in ((TRAIN, train), (VAL, val)) if count
    )
    end = "" if found < total else " No photo is left that measures accuracy on new photos."
    return (
        f"WARNING: the model has seen {found:,} of the {total:,} photos or a copy of them, "
        f"{where}. Its accuracy of {accuracy:.1%} on these says nothing about new photos.{end}"
    )
