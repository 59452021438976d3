"""Grad-CAM: which parts of a photo a prediction depends on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .models import ProductClassifier


def grad_cam(model: ProductClassifier, images: Tensor, classes: Tensor) -> Tensor | None:
    """Compute Grad-CAM maps from the last feature map.

    The map's channels are weighted by the mean gradient of the class's logit and summed; negative
    values become 0.

    Source: R. Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via
    gradient-based localization", ICCV 2017.

    :param images: (N, 3, H, W), as the model takes them.
    :param classes: (N,) int64, the class to explain for each photo.
    :returns: (N, H, W) float, 0..1, on the CPU; None for a network without such a map.
    """
    if any("Attention" in type(module).__name__ for module in model.backbone.modules()):
        # Attention mixes all positions, so that a place on the map is no place on the photo.
        return None
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001
        # Photos are square, so their maps (N, C, H, W) are, too.
        if (
            isinstance(output, Tensor)
            and output.ndim == 4
            and 1 < output.shape[2] == output.shape[3]
        ):
            kept[:] = [output]

    # Hooks on blocks as well as layers: a block may combine the maps of several layers.
    hooks = [module.register_forward_hook(keep) for module in model.backbone.modules()]
    try:
        with torch.enable_grad():
            # Not model(...), which with tta also evaluates the mirror image.
            logits = model.head(model.embed(_with_gradient(model, images)))
            if not kept or not kept[0].requires_grad:
                return None
            chosen = logits.gather(1, classes[:, None].to(logits.device)).sum()
            (gradient,) = torch.autograd.grad(chosen, kept[0])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = F.relu((weights * kept[0].detach()).sum(dim=1, keepdim=True))
    side = images.shape[-2:]
    maps = F.interpolate(maps, size=side, mode="bilinear", align_corners=False)[:, 0]
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return (maps / highest.where(highest > 0, 1)).float().cpu()


def _with_gradient(model: ProductClassifier, images: Tensor) -> Tensor:
    """Photos as floats that require a gradient, so that it flows through frozen layers."""
    images = images.to(next(model.parameters()).device)
    if images.dtype == torch.uint8:
        images = images.float() / 255
    return images.detach().requires_grad_(True)
