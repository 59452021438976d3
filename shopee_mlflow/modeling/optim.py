"""The learning rate over a training."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..config import TrainConfig


def learning_rate_curve(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Step number -> factor of ``lr``: a linear warm-up, then constant or half a cosine to 0."""
    total = max(config.epochs * steps_per_epoch, 1)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(total - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return factor
