"""Fast inference: convolutions and batch norms merged, photos in channels-last memory order."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from .models import ProductClassifier


def fuse_layers(layers: nn.Module) -> nn.Module:
    """A copy in eval mode with batch norms merged into convolutions; same values to ~1e-5.

    As it is where the graph cannot be traced.
    """
    try:
        return fuse(layers.eval())
    except (fx.proxy.TraceError, TypeError, RuntimeError):
        return layers


class FastClassifier(nn.Module):
    """A classifier made ready for answering: photos -> logits.

    :param model: a :class:`ProductClassifier`, or an exported program of one.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.device = torch.device(device)
        if isinstance(model, ProductClassifier):
            model = copy.deepcopy(model)
            model.backbone = fuse_layers(model.backbone)
            model = model.to(self.device).to(memory_format=torch.channels_last)
        self.model = model

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 on any device -> (N, classes) float32 logits on the CPU."""
        return self.model(images.to(self.device, non_blocking=True)).float().cpu()
