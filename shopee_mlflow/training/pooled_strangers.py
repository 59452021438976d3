"""Photos of no label group in a cross-validation: the scores of all folds as one measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..modeling.strangers import FEW_STRANGERS, KEPT, StrangerResult, auroc, stranger_curve


def pool_strangers(
    folds: Sequence[StrangerResult], rows: Sequence[np.ndarray], right: np.ndarray
) -> StrangerResult:
    """The measurements of all folds as one; without a detector.

    Each known photo is scored once, by the model that has not seen it; each stranger is scored by
    the model of every fold. The scores are above the threshold of their fold, so the curve shows
    what happens if all thresholds are moved alike.

    :param rows: the rows of the test photos of each fold.
    :param right: (N,) bool, whether the out-of-fold prediction of each photo is right.
    """
    for fold in folds:
        if not len(fold.known_scores):
            return StrangerResult(words=fold.words[:1])
    known = np.concatenate([fold.known_scores for fold in folds])
    others = np.concatenate([fold.stranger_scores for fold in folds])
    curve = stranger_curve(known, right[np.concatenate(rows)], others)
    if not len(others):
        return StrangerResult(words=folds[0].words[:1], curve=curve)
    means = pd.DataFrame([fold.facts for fold in folds]).mean()
    limit = np.quantile(known, 1 - KEPT, method="lower")
    facts = {
        "photos_measured": float(len(others) / len(folds)),
        "known_photos": float(len(known)),
        "kept_test": float((known >= 0).mean()),
        "strangers_accepted": float((others >= 0).mean()),
        "strangers_accepted_at_95_kept": float((others >= limit).mean()),
        "auroc": auroc(known, others),
        "by_probability_accepted": float(means["by_probability_accepted"]),
        "by_probability_auroc": float(means["by_probability_auroc"]),
    }
    return StrangerResult(words=_in_words(facts), facts=facts, curve=curve)


def _in_words(facts: dict[str, float]) -> list[str]:
    few = " (too few for a precise share)" if facts["photos_measured"] < FEW_STRANGERS else ""
    return [
        f"strangers: {facts['photos_measured']:,.0f} photos of left-out label groups are scored by "
        f"the model of each fold, and {facts['known_photos']:,.0f} photos by the model that has "
        "not seen them; the other left-out photos are references",
        f"{facts['strangers_accepted']:.1%} of the photos of left-out label groups{few} get a "
        f"label group, and {facts['kept_test']:.1%} of the known photos keep theirs (AUROC "
        f"{facts['auroc']:.3f}); where {KEPT:.0%} are kept, "
        f"{facts['strangers_accepted_at_95_kept']:.1%} of the strangers get one. By their "
        f"probability, on average over the folds, it would be "
        f"{facts['by_probability_accepted']:.1%} (AUROC {facts['by_probability_auroc']:.3f})",
    ]
