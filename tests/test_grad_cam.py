"""Grad-CAM: the map highlights what the prediction depends on; the model is unchanged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shopee_mlflow.modeling.architectures import build_model
from shopee_mlflow.modeling.grad_cam import grad_cam
from shopee_mlflow.modeling.models import ProductClassifier

SIDE = 32


def corner_model(architecture: str = "corners") -> ProductClassifier:
    """Says red for the brightest red, green for green: each class looks at one channel."""
    conv = nn.Conv2d(3, 2, 1, bias=False)
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:, :, None, None])
        head.weight.copy_(torch.eye(2))
    backbone = nn.Sequential(
        conv, nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return ProductClassifier(backbone, head, ["red", "green"], SIDE, architecture)


def corners() -> Tensor:
    """Black, with red in the upper left corner and green in the lower right one; uint8."""
    photo = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    photo[:, 0, :8, :8] = 255
    photo[:, 1, -8:, -8:] = 255
    return photo


@pytest.mark.parametrize(("label", "hot"), [(0, "upper left"), (1, "lower right")])
def test_the_map_is_hottest_where_the_class_comes_from(label: int, hot: str) -> None:
    maps = grad_cam(corner_model(), corners(), torch.tensor([label]))
    assert maps is not None
    assert maps.shape == (1, SIDE, SIDE)
    upper, lower = maps[0, :6, :6], maps[0, -6:, -6:]
    warm, cold = (upper, lower) if hot == "upper left" else (lower, upper)
    assert warm.min() > 0.99
    assert cold.max() == 0
    assert maps[0, 12:20, 12:20].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "effnet", "resnet18", "densenet121", "vgg11"])
def test_maps_of_whole_networks(name: str) -> None:
    """One map a photo, as large as the photo, from 0 to 1 with the highest at 1."""
    torch.manual_seed(0)
    model = build_model(name, ["a", "b", "c"], 64)
    photos = torch.randint(0, 256, (2, 3, 48, 80), dtype=torch.uint8)
    maps = grad_cam(model, photos, torch.tensor([2, 0]))
    assert maps is not None
    assert maps.shape == (2, 48, 80)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.isfinite().all()
    for heat in maps:
        # Resizing lowers the peak; a map that is 0 everywhere speaks of nothing.
        assert heat.max() == 0 or heat.max() == pytest.approx(1)


def test_tta_does_not_mirror_the_map() -> None:
    model = corner_model()
    plain = grad_cam(model, corners(), torch.tensor([0]))
    model.tta = True
    assert plain is not None
    torch.testing.assert_close(grad_cam(model, corners(), torch.tensor([0])), plain)


def test_floats_and_bytes_give_the_same_map() -> None:
    model, photos = corner_model(), corners()
    kept = photos.clone()
    floats = photos.float() / 255
    as_bytes = grad_cam(model, photos, torch.tensor([0]))
    as_floats = grad_cam(model, floats, torch.tensor([0]))
    assert as_bytes is not None
    assert as_floats is not None
    torch.testing.assert_close(as_bytes, as_floats)
    assert torch.equal(photos, kept)
    assert not floats.requires_grad, "the caller's tensor stays as it was"


@pytest.mark.parametrize(("name", "side"), [("vit_b_32", 32), ("swin_t", 32), ("maxvit_t", 224)])
def test_transformers_have_no_such_map(name: str, side: int) -> None:
    model = build_model(name, ["a", "b"], side)
    assert grad_cam(model, corners(), torch.tensor([0])) is None


def test_without_a_feature_map_there_is_nothing_to_show() -> None:
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = ProductClassifier(flat, nn.Linear(3, 2), ["a", "b"], SIDE, "flat")
    assert grad_cam(model, corners(), torch.tensor([0])) is None


def test_frozen_layers_are_looked_through() -> None:
    model = corner_model()
    before = grad_cam(model, corners(), torch.tensor([1]))
    model.requires_grad_(False)
    with torch.no_grad():
        after = grad_cam(model, corners(), torch.tensor([1]))
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_left_as_it_was(mode: bool) -> None:
    """A frozen backbone stays in eval mode while the head trains, so modes are kept one by one."""
    model = corner_model().train(mode)
    model.backbone.eval()
    model.backbone.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    grad_cam(model, corners(), torch.tensor([0]))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_gone_after_a_failure() -> None:
    model = corner_model().train()
    with pytest.raises(ValueError, match="must have the shape"):
        grad_cam(model, torch.zeros(3, SIDE, SIDE), torch.tensor([0]))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_the_map_is_of_all_branches_that_a_block_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """squeezenet's last block ends in a concatenation of two layers."""
    model = build_model("squeezenet1_1", ["a", "b"], 64).eval()
    seen: list[int] = []
    real = torch.autograd.grad

    def grad(outputs: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(inputs.shape[1])
        return real(outputs, inputs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    assert grad_cam(model, torch.rand(1, 3, 64, 64), torch.tensor([0])) is not None
    assert seen == [512]
