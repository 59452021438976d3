"""Confidence intervals for photos in sets of copies, whose predictions depend on each other.

The intervals describe how the scores of these predictions vary with the photos that were drawn.
They do not include how they vary with the photos and the seed of the trainings: with k folds there
is no unbiased estimate of that (Y. Bengio and Y. Grandvalet, "No unbiased estimator of the variance
of k-fold cross-validation", Journal of Machine Learning Research 5 (2004), 1089-1105).
"""

from __future__ import annotations

import numpy as np

_RESAMPLES = 2000
_LEVEL = 0.95


def clustered_interval(right: np.ndarray, sets: np.ndarray) -> tuple[float, float]:
    """95 % interval of a share: Wilson's, for the effective number of photos.

    The effective number is n divided by the design effect, which is the variance of the mean,
    computed over sets of copies, divided by the variance for n independent photos. Without copies,
    the interval is about :func:`.metrics.wilson_interval`. If all photos are right, or all wrong,
    each set counts once.

    Source: E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected
    number of positive counts estimated from survey data", Survey Methodology 24 (1998), 193-201,
    for the effective number; C. Franco et al., "Comparative study of confidence intervals for
    proportions in complex sample surveys", Journal of Survey Statistics and Methodology 7 (2019),
    334-364, for Wilson's interval with it.

    :param right: (N,) bool; ``sets`` (N,) int, the number of the set of copies of each photo.
    :returns: lower and upper bound, 0..1.
    """
    from scipy.stats import norm

    number, share = np.unique(sets, return_inverse=True)[1], float(right.mean())
    count = int(number.max()) + 1
    effective = float(count)
    if 0 < share < 1 and count > 1:
        residuals = np.bincount(number, right - share)
        variance = count / (count - 1) * (residuals**2).sum() / len(right) ** 2
        # At most n. It could exceed n if each set has right and wrong predictions.
        effective = share * (1 - share) / max(variance, share * (1 - share) / len(right))
    # scipy's interval takes whole numbers of photos only.
    z2 = norm.ppf((1 + _LEVEL) / 2) ** 2
    centre = (share + z2 / (2 * effective)) / (1 + z2 / effective)
    spread = share * (1 - share) / effective + z2 / (4 * effective**2)
    half = np.sqrt(z2 * spread) / (1 + z2 / effective)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def macro_f1_interval(
    labels: np.ndarray, predicted: np.ndarray, sets: np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the macro F1 score by 2,000 bootstrap samples of sets of copies.

    A label without photos in a sample is left out of its mean. The samples of small label groups
    score too low on average, since some of their photos are missing and others are repeated. So
    the percentiles are moved by the difference between the score and the mean of the samples. If
    all photos are right, the interval is 1 to 1.

    Source: C. A. Field and A. H. Welsh, "Bootstrapping clustered data", Journal of the Royal
    Statistical Society B 69 (2007), 369-390.

    :param labels: (N,) int, true classes; ``predicted`` (N,) int; ``sets`` (N,) int.
    """
    number = np.unique(sets, return_inverse=True)[1]
    count, classes = int(number.max()) + 1, int(max(labels.max(), predicted.max())) + 1
    rng = np.random.default_rng(seed)
    correct = labels == predicted
    values = []
    for sample in range(1 + _RESAMPLES):
        # The first one is the photos themselves.
        drawn = rng.integers(count, size=count) if sample else np.arange(count)
        times = np.bincount(drawn, minlength=count)[number]
        true = np.bincount(labels, times, classes)
        total = true + np.bincount(predicted, times, classes)
        hits = np.bincount(labels[correct], times[correct], classes)
        values.append((2 * hits / np.maximum(total, 1))[total > 0].mean())
    moved = np.array(values[1:]) + values[0] - np.mean(values[1:])
    low, high = np.quantile(moved, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).clip(0, 1)
    return float(low), float(high)
