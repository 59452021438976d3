"""The labels that a cross-validation disputes, as a list to review and as photos to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..data.dataset import Dataset
from ..modeling.metrics import softmax
from ..reports.label_review import LabelIssue, LabelReview
from .nearest_photos import NEAREST

_MOST_SHOWN = 12


def label_issues(data: Dataset, logits: np.ndarray, nearest: pd.DataFrame) -> pd.DataFrame:
    """The photos predicted as another label group than theirs, the most doubtful labels first.

    The rank is the self-confidence: the probability of the given label, predicted by the model that
    has not seen the photo. docs/label_issues.md compares it with other ranks.

    Source: C. Northcutt, L. Jiang and I. Chuang, "Confident learning: estimating uncertainty in
    dataset labels", Journal of Artificial Intelligence Research 70 (2021), 1373-1411.

    Photos that the option ``corrections`` names have been reviewed. They come first, as they were
    reviewed, so that the list replaces the earlier one.

    :param data: its splits are the folds.
    :param logits: (N, C) float, in the order of the dataset's rows.
    :param nearest: as :func:`.nearest_photos` returns it, of all photos.
    :returns: the columns of a list of corrections, then given_probability, new_probability, fold,
        the nearest training photos with their label groups, and title if there is one. The
        proposed label is in new_label_group; action is empty.
    """
    labels, probabilities = data.frame["label"].to_numpy(np.int64), softmax(logits)
    given = probabilities[np.arange(len(labels)), labels]
    predicted = probabilities.argmax(axis=1)
    reviewed = data.cleaning.corrections
    done = set() if reviewed is None else set(reviewed["image"])
    rows = np.flatnonzero((predicted != labels) & ~data.frame["image"].isin(done))
    rows = rows[np.argsort(given[rows], kind="stable")]
    table = data.frame.loc[rows, ["image", "label_group"]].assign(
        action="",
        new_label_group=[data.classes[c] for c in predicted[rows]],
        given_probability=given[rows].round(6),
        new_probability=probabilities[rows].max(axis=1).round(6),
        fold=data.frame.loc[rows, "split"],
    )
    group = data.frame.set_index("image")["label_group"]
    found = nearest.set_index("image").reindex(table["image"])
    for name in NEAREST:
        table[name] = found[name].to_numpy()
        table[f"{name}_label_group"] = table[name].map(group).fillna("")
    if "title" in data.frame:
        table["title"] = data.frame.loc[rows, "title"]
    return table if reviewed is None else pd.concat([reviewed, table])


def open_issues(issues: pd.DataFrame) -> pd.DataFrame:
    """The rows that have not been reviewed."""
    return issues[issues["action"] == ""]


def label_review(issues: pd.DataFrame, data: Dataset, label_names: Sequence[str]) -> LabelReview:
    """The most doubtful labels, with photos, for the page of a cross-validation."""
    row_of = pd.Series(data.frame.index, index=data.frame["image"])
    images, groups = (data.frame[name].to_numpy() for name in ("image", "label_group"))
    todo = open_issues(issues)
    shown = []
    for issue in todo.head(_MOST_SHOWN).to_dict("records"):
        rows = np.array([row_of[issue[name]] for name in ("image", *NEAREST) if issue[name]])
        shown.append(
            LabelIssue(
                images=list(images[rows]),
                groups=list(groups[rows]),
                photos=list(data.photos(rows)),
                title=str(issue.get("title", "")),
                given_probability=float(issue["given_probability"]),
                proposed=str(issue["new_label_group"]),
                proposed_probability=float(issue["new_probability"]),
            )
        )
    return LabelReview(
        shown,
        len(todo),
        len(issues) - len(todo),
        len(data),
        dict(zip(data.classes, label_names, strict=True)),
    )
