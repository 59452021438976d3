"""Temperature scaling: logits divided by one number, so that probabilities fit the accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .metrics import calibration, chance_calibration_error, expected_calibration_error

# With fewer validation photos, the temperature would follow chance.
FEWEST_PHOTOS = 20
# One softer or sharper than this comes from logits that tell nothing.
LOWEST, HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    :ivar value: logits are divided by it; 1 leaves them unchanged.
    :ivar words: how it was found, or why it was not fitted.
    """

    value: float = 1.0
    words: str = "no temperature was fitted"


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> Temperature:
    """The temperature with the lowest loss on photos that were not used for training.

    The target of each photo is smoothed to (N + 1) / (N + 2) for its true class, as Platt does for
    his sigmoid. Otherwise the temperature would be 0 if all N photos are right.

    Sources: C. Guo et al., "On calibration of modern neural networks", ICML 2017; J. Platt,
    "Probabilistic outputs for support vector machines", 1999.

    :param labels: (N,) int, indices of the true classes; ``logits`` (N, C) float.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    count, classes = len(labels), logits.shape[1]
    if count < FEWEST_PHOTOS:
        return Temperature(
            words=f"probabilities are not calibrated: {count} validation photos are too few for a "
            f"temperature, which needs {FEWEST_PHOTOS}"
        )
    if classes < 2 or not np.isfinite(logits).all():
        return Temperature(words="probabilities are not calibrated: logits are not finite")
    true, wide = 1 - 1 / (count + 2), np.float64(logits)
    rest = (1 - true) / (classes - 1)

    def loss(log_temperature: float) -> float:
        log_p = log_softmax(wide / np.exp(log_temperature), axis=1)
        own = log_p[np.arange(count), labels]
        return -float((true * own + rest * (log_p.sum(axis=1) - own)).mean())

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    # Some problems are flat, as with equal logits; then nothing is changed.
    value = float(np.exp(found.x)) if loss(found.x) < loss(0.0) else 1.0
    return Temperature(value, f"temperature {value:.3g}, fitted on {count:,} validation photos")


def calibration_facts(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, temperature: Temperature
) -> dict[str, float | str]:
    """Expected calibration error before and after, each with its value by chance.

    :param before: (N, C) float, the logits of the network; ``after``: divided by the temperature.
    """
    facts: dict[str, float | str] = {"temperature": temperature.value, "words": temperature.words}
    for name, values in (("before", before), ("after", after)):
        table = calibration(labels, values)
        facts[f"error_{name}"] = expected_calibration_error(table)
        facts[f"chance_{name}"] = chance_calibration_error(table)
    return facts
