"""Optimizers by name, learning rates and their schedule, and the average of weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..config import TrainConfig
from ..data_config import AUTO

_log = logging.getLogger(__name__)

# Name -> torch's optimizer and the options that are its arguments. One line per optimizer.
OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], tuple[str, ...]]] = {
    "sgd": (SGD, ("momentum", "nesterov")),
    "adamw": (AdamW, ()),
}
# Learning rates of lr=auto, for fine-tuning pretrained weights.
AUTO_LR = {"sgd": 0.02, "adamw": 0.001}
# Number of different learning rates that layerwise_lr uses in a backbone.
_STEPS = 10


def learning_rate(config: TrainConfig) -> float:
    """The option ``lr``, or the optimizer's rate for ``auto``."""
    return AUTO_LR[config.optimizer] if config.lr == AUTO else float(config.lr)


def make_optimizer(
    module: nn.Module, config: TrainConfig, backbone: nn.Module | None = None
) -> Optimizer:
    """Create the optimizer that the options name, for the parameters that require gradients.

    :param backbone: the part of the module to which ``backbone_lr_factor`` applies.
    """
    kind, options = OPTIMIZERS[config.optimizer]
    if config.nesterov and "nesterov" not in options:
        _log.warning("nesterov=true: has no effect with optimizer=%s.", config.optimizer)
    rate, factors = learning_rate(config), _backbone_factors(backbone, config)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = config.decay_norms or parameter.ndim > 1
            decay = config.weight_decay if decays else 0.0
            groups.setdefault((factors.get(parameter, 1.0), decay), []).append(parameter)
    return kind(
        [
            {"params": parameters, "lr": rate * factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ],
        lr=rate,
        **{name: getattr(config, name) for name in options},
    )


def weight_average(module: nn.Module, config: TrainConfig, steps: int) -> AveragedModel | None:
    """The exponential moving average of weights and batch norm statistics; None with ``ema=0``.

    :param steps: number of steps in the training.
    """
    if not config.ema:
        return None
    span = 1 / (1 - config.ema)
    if span > steps:
        _log.warning(
            "ema=%g averages about %.0f steps, but the training has %d: the average will be close "
            "to the initial weights. Use a lower ema or more epochs.",
            *(config.ema, span, steps),
        )
    average = get_ema_multi_avg_fn(config.ema)
    return AveragedModel(module, multi_avg_fn=average, use_buffers=True)


def _backbone_factors(backbone: nn.Module | None, config: TrainConfig) -> dict[nn.Parameter, float]:
    """Factors of the learning rate, in [backbone_lr_factor, 1].

    With ``layerwise_lr`` they decrease geometrically, in steps, from the last layer to the first.
    """
    if config.layerwise_lr and config.backbone_lr_factor == 1:
        _log.warning("layerwise_lr=true: has no effect with backbone_lr_factor=1; set it below 1.")
    if backbone is None:
        return {}
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    count, factor = len(parameters), config.backbone_lr_factor
    if not parameters and factor < 1:
        _log.warning("backbone_lr_factor=%g: has no effect, as the backbone is frozen.", factor)
    if not config.layerwise_lr:
        return dict.fromkeys(parameters, factor)
    return {
        parameter: factor ** (math.ceil(_STEPS * (count - position) / count) / _STEPS)
        for position, parameter in enumerate(parameters)
    }


def learning_rate_curve(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate schedule: a linear warm-up, then constant or half a cosine down to 0.

    :returns: a function that takes the step number and returns the factor of all learning rates.
    """
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
