"""What the report of a training, or of a cross-validation, is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .label_review import LabelReview
from .pages import Table, shortened

# Photos, (n, S, S, 3) uint8, and their predicted classes (n,) -> heat maps (n, S, S) 0..1, or None.
ExplainFn = Callable[[np.ndarray, np.ndarray], np.ndarray | None]


@dataclass(frozen=True)
class StrangerFacts:
    """How well photos of no label group are told.

    :ivar words: the result in sentences.
    :ivar curve: columns known_kept, accuracy and, where measured, strangers_accepted (shares).
    :ivar accepted: the share of strangers that get a label group; None if it is not measured.
    """

    words: Sequence[str]
    curve: pd.DataFrame
    accepted: float | None = None


@dataclass(frozen=True)
class TrainingFacts:
    """The content of the page. Arrays and ``names`` have a row for each of T test photos.

    :ivar scores: name -> value: test_accuracy, test_accuracy_low, test_accuracy_high,
        best_val_accuracy, best_epoch.
    :ivar history: one row for each epoch.
    :ivar photos: rows of the test split, (n,) int64 -> their photos, (n, S, S, 3) uint8.
    :ivar names: columns image and label_group, and title where the catalogue has one.
    :ivar labels: (T,) int, the true classes; ``probabilities`` (T, C) float.
    :ivar label_names: names of ``classes``, in the same order; empty: the classes themselves.
    :ivar class_scores: as :func:`shopee_mlflow.modeling.metrics.class_report` returns it, and
        label_name where it is known.
    :ivar counts: the confusion matrix.
    :ivar calibration: as :func:`shopee_mlflow.modeling.metrics.calibration` returns it.
    :ivar calibrated: the temperature and the calibration errors before and after it, as
        :func:`shopee_mlflow.modeling.temperature.calibration_facts` returns them.
    :ivar subsets: name -> (photos, accuracy, low, high), for test photos with and without a copy.
    :ivar headline: the figures at the top, and ``learned``, the sentence below the curves, in
        place of those of a single training.
    :ivar strangers: photos of other label groups.
    :ivar folds: the results of the folds of a cross-validation, and ``review``, the labels that
        they dispute.
    """

    title: str
    lead: str
    options: Mapping[str, str]
    data_lines: Sequence[str]
    scores: Mapping[str, float]
    history: pd.DataFrame
    photos: Callable[[np.ndarray], np.ndarray]
    names: pd.DataFrame
    labels: np.ndarray
    probabilities: np.ndarray
    classes: Sequence[str]
    class_scores: pd.DataFrame
    counts: pd.DataFrame
    calibration: pd.DataFrame
    calibrated: Mapping[str, float | str]
    subsets: Mapping[str, tuple[int, float, float, float]]
    label_names: Sequence[str] = ()
    headline: Sequence[tuple[str, str]] = ()
    learned: str = ""
    folds: Table | None = None
    review: LabelReview | None = None
    strangers: StrangerFacts | None = None


def group_text(facts: TrainingFacts, label: int) -> str:
    """A label group and, if it has one, its name."""
    group = str(facts.classes[label])
    name = facts.label_names[label] if facts.label_names else group
    if name == group:
        return shortened(group, 40)
    return f"{shortened(name, 40)} ({shortened(group, 18)})"
