"""torch.compile for the training step: on request, or when the run is long enough to benefit."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..config import TrainConfig
from ..data_config import AUTO
from ..errors import ConfigError
from .device import Machine

# Floating-point operations in a training above which compiling saves time, by device. Measured for
# EfficientNet-B0 on two CPU cores (55e9 operations a second): compiling took 100 seconds and made
# steps 10 % faster, so it breaks even after about 17 minutes. Not measured on a GPU.
_PAYS_FROM = {"cpu": 100e12, "cuda": 20e15}
# A backward pass computes two products for each product of the forward pass.
_PASSES = 3
_COMPILERS = ("g++", "clang++", "c++")

_log = logging.getLogger(__name__)


def compile_step(
    module: nn.Module, example: Tensor, photos: int, config: TrainConfig, machine: Machine
) -> Callable[[Tensor], Tensor] | None:
    """Compile the module as a function of a batch; None if it should run uncompiled.

    The function shares the module's weights and is compiled at its first call. With compile=auto
    the decision depends on a count of operations: with a measured time, equal runs could differ.

    :param example: inputs of the module, in a batch of any size.
    :param photos: number of photos in an epoch.
    :raises ConfigError: when compile=true and this machine cannot compile.
    """
    if config.compile == "false":
        return None
    lacking = _lacking(machine.device.type)
    if config.compile == "true" and lacking:
        raise ConfigError([f"compile=true: {lacking}; set compile=auto or false"])
    if config.compile == AUTO and (lacking or not _pays(module, example, photos, config)):
        return None
    return _Compiled(module, required=config.compile == "true")


class _Compiled:
    """A compiled module that falls back to the uncompiled one unless compile=true."""

    def __init__(self, module: nn.Module, required: bool) -> None:
        self._module, self._required = module, required
        self._step: Callable[[Tensor], Tensor] = torch.compile(module)
        self._works = False

    def __call__(self, inputs: Tensor) -> Tensor:
        if self._works:
            return self._step(inputs)
        try:
            logits = self._step(inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().split("\n")[0]
            if self._required:
                raise ConfigError([f"compile=true: torch.compile failed: {reason}"]) from error
            _log.warning("torch.compile failed, training continues without it: %s", reason)
            self._step, logits = self._module, self._module(inputs)
        self._works = True
        return logits


def _pays(module: nn.Module, example: Tensor, photos: int, config: TrainConfig) -> bool:
    enough = _PAYS_FROM.get(example.device.type)
    if enough is None:
        return False
    return training_operations(module, example) * photos * config.epochs > enough


def training_operations(module: nn.Module, example: Tensor) -> float:
    """Floating-point operations of a training step for one photo: convolutions and products."""
    was_training = module.training
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example[:1])
    module.train(was_training)
    return float(_PASSES * counter.get_total_flops())


def _lacking(device: str) -> str:
    """What this machine lacks for compiling; empty if nothing."""
    compilers = [os.environ["CXX"]] if os.environ.get("CXX") else list(_COMPILERS)
    if not any(shutil.which(name) for name in compilers):
        return f"there is no C++ compiler ({' or '.join(compilers)})"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return "" if device in _PAYS_FROM else f"it is not known to work on {device}"
