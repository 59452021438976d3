"""Where a network looks: Grad-CAM on its last feature map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import ProductClassifier

# Networks whose features are no map of the photo by channel, or are mixed across it on the way.
_NOT_CONVOLUTIONAL = ("vit_", "swin_", "maxvit")


def grad_cam(model: ProductClassifier, images: Tensor, classes: Tensor) -> Tensor | None:
    """Grad-CAM: how much each part of a photo speaks for a class.

    Channels of the last feature map, weighted by the mean gradient of the class's logit, summed,
    negative values dropped.

    Source: R. Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via
    gradient-based localization", ICCV 2017.

    :param images: (N, 3, H, W), as the model takes them.
    :param classes: (N,) int64, the class to explain of each photo.
    :returns: (N, H, W) float, 0..1, on the CPU; None where the network has no such map.
    """
    if model.architecture.startswith(_NOT_CONVOLUTIONAL):
        return None
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            kept[:] = [output]

    # Blocks, too, and not layers alone: a block may join the maps of several layers, and ends
    # after them.
    hooks = [module.register_forward_hook(keep) for module in model.backbone.modules()]
    try:
        with torch.enable_grad():
            # Not model(...), which may look at the mirror image as well.
            logits = model.head(model.embed(_with_gradient(model, images)))
            if not kept or not kept[0].requires_grad:
                return None
            chosen = logits.gather(1, classes[:, None].to(logits.device)).sum()
            (slope,) = torch.autograd.grad(chosen, kept[0])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    weights = slope.mean(dim=(2, 3), keepdim=True)
    maps = F.relu((weights * kept[0].detach()).sum(dim=1, keepdim=True))
    side = images.shape[-2:]
    maps = F.interpolate(maps, size=side, mode="bilinear", align_corners=False)[:, 0]
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / highest.where(highest > 0, 1)).float().cpu()


def _with_gradient(model: ProductClassifier, images: Tensor) -> Tensor:
    """Photos as floats that a gradient flows to, so that frozen layers do not end it."""
    images = images.to(next(model.parameters()).device)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return images.detach().requires_grad_(True)
