"""Labels that out-of-fold predictions dispute, by confident learning.

Source: C. Northcutt, L. Jiang and I. Chuang, "Confident learning: estimating uncertainty in dataset
labels", Journal of Artificial Intelligence Research 70 (2021), 1373-1411.
"""

from __future__ import annotations

import numpy as np


def normalized_margin(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Probability of the given label minus that of the most probable other one; (N,), -1..1.

    The lower it is, the more the predictions dispute the label.

    :param labels: (N,) int, the given labels.
    :param probabilities: (N, C) float, predicted by a model that has not seen these photos.
    """
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    margin: np.ndarray = probabilities[rows, labels] - others.max(axis=1)
    return margin


def disputed(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the predictions confidently belong to another label than the given one.

    A prediction belongs confidently to a label if its probability is at least the mean of the
    photos with this label. If there are several, the most probable one counts. Labels that are the
    most probable ones are not disputed.

    :param labels: (N,) int, the given labels; each class has a photo.
    :param probabilities: (N, C) float, predicted by a model that has not seen these photos.
    """
    classes = range(probabilities.shape[1])
    usual = np.array([probabilities[labels == c, c].mean() for c in classes])
    confident = np.where(probabilities >= usual, probabilities, -np.inf)
    other = (confident.argmax(axis=1) != labels) & np.isfinite(confident.max(axis=1))
    result: np.ndarray = other & (probabilities.argmax(axis=1) != labels)
    return result
