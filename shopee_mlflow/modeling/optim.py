"""Optimizers by name, and the learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from ..config import TrainConfig

# Name -> torch's optimizer and the options that are its arguments. One line per optimizer.
OPTIMIZERS: dict[str, tuple[type[Optimizer], tuple[str, ...]]] = {
    "sgd": (SGD, ("lr", "momentum", "weight_decay")),
    "adamw": (AdamW, ("lr", "weight_decay")),
}


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainConfig) -> Optimizer:
    """Create the optimizer that the options describe, for the parameters with gradients."""
    kind, options = OPTIMIZERS[config.optimizer]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return kind(trained, **{name: getattr(config, name) for name in options})


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
