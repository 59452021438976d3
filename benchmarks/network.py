"""The network that all references train, and how it is compiled."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from shopee_mlflow.modeling.initial_weights import read_weights

from .job import Job, count_classes

# With fewer full batches in a job, compiling evaluation takes longer than it saves.
_WORTH_COMPILING = 100


def new_network(job: Job) -> nn.Module:
    """torchvision's EfficientNet-B0 with the given weights and a head for our label groups."""
    torch.manual_seed(0)
    network = torchvision.models.efficientnet_b0(weights=None)
    network.classifier[1] = nn.Linear(network.classifier[1].in_features, count_classes(job.catalog))
    if job.weights:
        network.load_state_dict({**network.state_dict(), **body_state(job)})
    return network


def body_state(job: Job) -> dict[str, Tensor]:
    """The given weights without those of the head, which has other classes."""
    state = read_weights(job.weights).state if job.weights else {}
    return {name: tensor for name, tensor in state.items() if name.startswith("features.")}


class CompiledBatches:
    """Replace a module's ``forward``: full batches run compiled, smaller ones uncompiled.

    The last, smaller batch of an epoch therefore never compiles again.

    :ivar on: False: all batches run uncompiled.
    """

    def __init__(self, module: nn.Module, job: Job, val_photos: int) -> None:
        self._module, self._full = module, job.batch_size
        full_batches = val_photos // job.batch_size * job.epochs
        self._evaluation = full_batches >= _WORTH_COMPILING
        self._plain: Any = module.forward
        self._fast = torch.compile(self._plain, dynamic=False)
        self.on = True
        module.forward = self

    def __call__(self, inputs: Tensor) -> Tensor:
        wanted = self.on and len(inputs) == self._full
        if wanted and (self._module.training or self._evaluation):
            # The methods of fastai's tensor subclass would be traced one by one.
            output: Tensor = self._fast(inputs.as_subclass(Tensor))
        else:
            output = self._plain(inputs)
        return output
