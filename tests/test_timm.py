"""Backbones of timm: names, sizes, normalisation, freezing, weights, and the logged model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeCatalog
from torch import nn

from shopee_mlflow import TrainConfig, build_model, train
from shopee_mlflow.config import resolve
from shopee_mlflow.errors import ModelError
from shopee_mlflow.modeling.architectures import check_architecture
from shopee_mlflow.modeling.freezing import split_model, stages
from shopee_mlflow.modeling.grad_cam import grad_cam
from shopee_mlflow.modeling.initial_weights import read_weights
from shopee_mlflow.tracking.registry import load_classifier

timm: Any = pytest.importorskip("timm", reason="timm is not installed")

CLASSES = ["a", "b", "c"]
CONVOLUTIONAL, TRANSFORMER = "timm/test_efficientnet", "timm/test_vit3"


def photos(side: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("name", [CONVOLUTIONAL, TRANSFORMER, "timm/test_resnet"])
@pytest.mark.parametrize("side", [48, 96])
def test_photos_of_any_size_in_and_logits_out(name: str, side: int) -> None:
    model = build_model(name, CLASSES, side).eval()
    with torch.no_grad():
        assert model(photos(side)).shape == (2, 3)
        assert model(photos(40)).shape == (2, 3)
        assert model.embed(photos(side)).ndim == 2


def test_photos_are_normalised_as_the_weights_expect() -> None:
    about = timm.get_pretrained_cfg(TRANSFORMER.removeprefix("timm/"))
    model = build_model(TRANSFORMER, CLASSES, 96)
    white = model.preprocess(torch.full((1, 3, 96, 96), 255, dtype=torch.uint8))
    expected = [(1 - mean) / std for mean, std in zip(about.mean, about.std, strict=True)]
    assert white[0, :, 0, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "stage"), [(CONVOLUTIONAL, "blocks.2"), (TRANSFORMER, "blocks.3")]
)
def test_a_network_is_frozen_at_a_stage(name: str, stage: str) -> None:
    model = build_model(name, CLASSES, 96).eval()
    assert stage in stages(model)
    parts = split_model(model, stage)
    assert parts.frozen is not None
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            parts.trainable(parts.frozen(photos(96))), model(photos(96)), rtol=1e-5, atol=1e-6
        )


def test_a_map_of_a_convolutional_network_and_none_of_a_transformer() -> None:
    convolutional = build_model(CONVOLUTIONAL, CLASSES, 96)
    chosen = torch.tensor([0, 1])
    maps = grad_cam(convolutional, photos(96), chosen)
    assert maps is not None
    assert maps.shape == (2, 96, 96)
    assert grad_cam(build_model(TRANSFORMER, CLASSES, 96), photos(96), chosen) is None


def test_weights_in_timms_layout_are_loaded_without_their_head(tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = timm.create_model("test_efficientnet", num_classes=7)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "timm.pth")
    model = build_model(f"{CONVOLUTIONAL}_pretrained", CLASSES, 96, tmp_path / "timm.pth")
    key = "blocks.1.0.conv_exp.weight"
    torch.testing.assert_close(model.backbone.state_dict()[key], other.state_dict()[key])


def test_position_embeddings_of_another_size_are_resized(tmp_path: Path) -> None:
    other = timm.create_model("test_vit3")
    torch.save(other.state_dict(), tmp_path / "vit.pth")
    model = build_model(TRANSFORMER, CLASSES, 96, tmp_path / "vit.pth")
    here, there = (each.state_dict()["pos_embed"] for each in (model.backbone, other))
    assert here.shape[1] < there.shape[1]
    key = "blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(model.backbone.state_dict()[key], other.state_dict()[key])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ModelError, match=f"other.pth: does not fit model={CONVOLUTIONAL}"):
        build_model(CONVOLUTIONAL, CLASSES, 96, tmp_path / "other.pth")


@pytest.mark.fault
def test_weights_of_a_deeper_network_are_refused(tmp_path: Path) -> None:
    deeper = timm.create_model("test_vit3", depth=10)
    torch.save(deeper.state_dict(), tmp_path / "deeper.pth")
    with pytest.raises(ModelError, match=r"does not fit model=.*it has more layers, such as block"):
        build_model(TRANSFORMER, CLASSES, 96, tmp_path / "deeper.pth")


@pytest.mark.fault
def test_weights_without_statistics_of_batch_norm_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_efficientnet").state_dict()
    torch.save({k: v for k, v in state.items() if "running" not in k}, tmp_path / "part.pth")
    with pytest.raises(ModelError, match=r"weights are missing, such as bn1\.running_mean"):
        build_model(CONVOLUTIONAL, CLASSES, 96, tmp_path / "part.pth")


@pytest.mark.parametrize("name", ["coat_lite_tiny", "inception_next_atto", "test_efficientnet"])
def test_layers_with_two_names_and_parts_of_heads_are_no_other_network(
    tmp_path: Path, name: str
) -> None:
    torch.manual_seed(5)
    state = timm.create_model(name).state_dict()
    torch.save(state, tmp_path / "timm.pth")
    loaded = build_model(f"timm/{name}", CLASSES, 224, tmp_path / "timm.pth").backbone.state_dict()
    common = loaded.keys() & state.keys()
    assert len(common) > 0.9 * len(loaded)
    torch.testing.assert_close({k: loaded[k] for k in common}, {k: state[k] for k in common})


def test_weights_of_our_own_classifier(tmp_path: Path) -> None:
    trained = build_model(CONVOLUTIONAL, CLASSES, 96)
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    again = build_model(CONVOLUTIONAL, CLASSES, 96, read_weights(tmp_path / "own.pth"))
    torch.testing.assert_close(again.state_dict(), trained.state_dict())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/efficientnt_b0", "no such architecture. Did you mean timm/efficientnet_b0"),
        ("timm/test_vit3.wrong_tag", r"no weights .wrong_tag. for test_vit3. Available: r160_in1k"),
        ("timm/resnet18.ra2_in1k", "no weights .ra2_in1k. for resnet18. Available: a1_in1k"),
        ("timm/nest_base_pretrained", "no pretrained weights for nest_base; omit _pretrained"),
        ("timm/resnet14t_pretrained", None),
        ("timm/", "no such architecture"),
    ],
)
def test_names(name: str, said: str | None) -> None:
    if said is None:
        check_architecture(name)
    else:
        with pytest.raises(ModelError, match=said):
            check_architecture(name)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("shopee_mlflow.modeling.timm_models.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the package timm.*pip install"):
        build_model(CONVOLUTIONAL, CLASSES, 96)


@pytest.mark.fault
def test_a_timm_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("import package_of_another_version")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm")
    with pytest.raises(ModelError, match=r"timm cannot be imported \(No module named 'package_of_"):
        build_model(CONVOLUTIONAL, CLASSES, 96)


def test_photos_too_small_for_a_network() -> None:
    with pytest.raises(ModelError, match="timm/inception_v3: cannot be built for image_size=32"):
        build_model("timm/inception_v3", CLASSES, 32)


def test_without_a_network_the_error_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", no_network)
    with pytest.raises(ModelError, match=r"cannot be loaded from the Hugging Face hub") as caught:
        build_model(f"{CONVOLUTIONAL}_pretrained", CLASSES, 96)
    assert "Name or service not known" in str(caught.value)
    assert "weights=PATH" in str(caught.value)


def test_downloaded_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    state = timm.create_model("test_efficientnet").state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *a, **k: dict(state))
    model = build_model(f"{CONVOLUTIONAL}_pretrained", CLASSES, 96)
    key = "conv_stem.weight"
    torch.testing.assert_close(model.backbone.state_dict()[key], state[key])


@pytest.mark.slow
def test_a_training_behind_a_frozen_prefix_and_its_logged_model(make_catalog: MakeCatalog) -> None:
    options = {"data": str(make_catalog()), "model": CONVOLUTIONAL, "image_size": "48"}
    options |= {"epochs": "2", "batch_size": "8", "freeze": "blocks.1"}
    result = train(resolve(TrainConfig, options))
    uri = f"models:/{result.model_id}"
    loaded = load_classifier(uri)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(photos(48)), result.model(photos(48)))
    import mlflow

    needed = Path(mlflow.pyfunc.get_model_dependencies(uri)).read_text(encoding="utf-8")
    assert f"timm=={timm.__version__}" in needed
