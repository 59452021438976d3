"""Architectures: every name builds a model with our head; weights load or are refused."""

from __future__ import annotations

import io
import json
import logging
import struct
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import list_models

from shopee_mlflow.errors import ModelError
from shopee_mlflow.modeling import architectures
from shopee_mlflow.modeling.architectures import architecture_names, build_model
from shopee_mlflow.modeling.initial_weights import read_weights
from shopee_mlflow.modeling.models import IMAGENET_MEAN, IMAGENET_STD, ProductClassifier

CLASSES = ["mug", "shoe", "bag", "cap", "jar"]
SMALL = "mobilenet_v3_small"


@pytest.fixture
def small() -> ProductClassifier:
    torch.manual_seed(0)
    return build_model("cnn", CLASSES, image_size=32).eval()


# One of each way in which torchvision keeps its last layer.
KINDS = [
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
    "convnext_tiny",
]
# Other RegNets are built like regnet_x_400mf, only larger, and cannot be built on the meta device.
OTHERS = [
    name
    for name in list_models(module=torchvision.models)
    if name not in KINDS and not name.startswith("regnet")
]


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
@pytest.mark.slow
def test_every_torchvision_classifier_gets_our_head(name: str) -> None:
    size = 224 if name.startswith(("vit", "maxvit")) else 128
    if name.startswith("regnet"):
        # Its builder computes widths from tensors, which the meta device has none of.
        model = build_model(name, CLASSES, size)
        images = torch.zeros(2, 3, size, size)
    else:
        with torch.device("meta"):
            network = architectures._torchvision_network(name, size)
            backbone, head = architectures._replace_head(network, len(CLASSES))
            model = ProductClassifier(backbone, head, CLASSES, size, name)
            images = torch.zeros(2, 3, size, size)
    model.train()
    features = model.embed(images)
    assert features.shape[0] == 2
    assert features.ndim == 2
    assert model(images).shape == (2, len(CLASSES))
    assert not any(isinstance(m, nn.Linear) and m.out_features == 1000 for m in model.modules())


def test_names_with_and_without_pretrained() -> None:
    names = architecture_names()
    assert {"cnn", "effnet", "effnet_pretrained", "resnet50", "resnet50_pretrained"} <= set(names)
    assert "cnn_pretrained" not in names


def test_an_unknown_name_lists_all_and_the_nearest() -> None:
    with pytest.raises(ModelError, match="model=resnet5: no such architecture. Did you mean resn"):
        build_model("resnet5", CLASSES)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 20), (7, 300)])
def test_any_size_and_both_types_of_tensor(
    small: ProductClassifier, height: int, width: int
) -> None:
    images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8)
    with torch.no_grad():
        from_bytes, from_floats = small(images), small(images.float() / 255)
    assert from_bytes.shape == (3, len(CLASSES))
    torch.testing.assert_close(from_bytes, from_floats)


def test_preprocessing_is_imagenets(small: ProductClassifier) -> None:
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(small.preprocess(white)[0, :, 5, 5], expected)


def test_tta_answers_with_the_mean_of_a_photo_and_its_mirror_image(
    small: ProductClassifier,
) -> None:
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        plain, mirrored = small(images).softmax(1), small(images.flip(3)).softmax(1)
        assert not torch.allclose(plain, mirrored, atol=1e-4)
        small.tta = True
        torch.testing.assert_close(small(images).softmax(1), (plain + mirrored) / 2)
        # Logarithms of probabilities: nothing is left to be normalised.
        torch.testing.assert_close(small(images), small(images).log_softmax(1))
        small.train()
        torch.testing.assert_close(small(images).softmax(1), plain)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 32, 32, 3)])
def test_another_shape_is_a_clear_error(small: ProductClassifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have the shape \(N, 3, H, W\)"):
        small(torch.zeros(shape))


def test_the_cnn_is_the_originals_without_its_last_relu() -> None:
    model = build_model("cnn", [str(i) for i in range(21)], image_size=256)
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim > 1]
    assert shapes == [
        (6, 3, 3, 3),
        (12, 6, 3, 3),
        (24, 12, 3, 3),
        (512, 24 * 30 * 30),
        (21, 512),
    ]
    assert isinstance(model.head, nn.Linear)


def test_a_dropout_before_the_head_moves_into_it() -> None:
    model = build_model("effnet", CLASSES, 64)
    assert isinstance(model.head, nn.Sequential)
    assert isinstance(model.head[0], nn.Dropout)
    assert not any(isinstance(m, nn.Dropout) for m in model.backbone.modules())


def test_a_size_that_the_network_cannot_take_is_said() -> None:
    with pytest.raises(ModelError, match="alexnet: cannot be built for image_size=32 .*Try image"):
        build_model("alexnet", CLASSES, 32)


def save_state(tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    """A torchvision state dict with a 7-class head and some keys changed, or taken out (None)."""
    torch.manual_seed(1)
    state = torchvision.models.get_model(SMALL, weights=None, num_classes=7).state_dict()
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_local_weights_are_loaded_and_a_head_of_another_size_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = save_state(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = build_model(f"{SMALL}_pretrained", CLASSES, 64, file)
    assert "the head has 7 classes and is not loaded" in caplog.text
    state = torch.load(file, weights_only=True)
    torch.testing.assert_close(
        model.backbone.state_dict()["features.0.0.weight"], state["features.0.0.weight"]
    )


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    wrong = {
        "features.0.0.weight": torch.zeros(1),
        "features.1.extra": torch.zeros(2),
        "features.0.1.bias": None,
    }
    file = save_state(tmp_path, **wrong)
    with pytest.raises(ModelError, match="3 keys do not fit") as caught:
        build_model(SMALL, CLASSES, 64, file)
    text = str(caught.value)
    assert "missing: features.0.1.bias" in text
    assert "unknown: features.1.extra" in text
    assert "shape: features.0.0.weight is (1,), expected (16, 3, 3, 3)" in text


def test_weights_of_our_own_cnn(tmp_path: Path, small: ProductClassifier) -> None:
    torch.save(small.state_dict(), tmp_path / "cnn.pth")
    again = build_model("cnn", CLASSES, 32, tmp_path / "cnn.pth")
    torch.testing.assert_close(again.state_dict(), small.state_dict())


class Malicious:
    """Unpickling this would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.target,))


@pytest.mark.fault
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": Malicious(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="not a state dict that can be read safely"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_state_dict(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError, match="state dict|safely"):
        build_model(SMALL, CLASSES, 64, tmp_path / "w.pth")


def small_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return torchvision.models.get_model(SMALL, weights=None).state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in small_state().items()}


@pytest.mark.fault
@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda: prefixed("module."), "prefix 'module.' removed"),
        (lambda: prefixed("_orig_mod."), "prefix '_orig_mod.' removed"),
        (lambda: prefixed("module._orig_mod."), "prefix '_orig_mod.' removed"),
        (
            lambda: {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
            "read from 'state_dict'; prefix 'model.' removed",
        ),
        (
            lambda: {
                "state_dict": {
                    **prefixed("model."),
                    "criterion.weight": torch.ones(3),
                    "val_f1.tp": torch.zeros(3, dtype=torch.int64),
                }
            },
            "prefix 'model.' removed from the names; left out criterion.weight, val_f1.tp",
        ),
        (lambda: {"model_state_dict": small_state(), "epoch": 1}, "read from 'model_state_dict'"),
        (
            lambda: {
                "model": small_state(),
                "model_ema": {**prefixed("module."), "n_averaged": torch.tensor(3)},
            },
            "read from 'model', not from model_ema",
        ),
        (
            lambda: {"model_ema": {**prefixed("module."), "n_averaged": torch.tensor(3)}},
            "read from 'model_ema'",
        ),
        (lambda: {"state_dict_ema": small_state()}, "read from 'state_dict_ema'"),
        (lambda: {"ema": {"module": small_state()}}, "read from 'ema'; read from 'module'"),
    ],
)
def test_checkpoints_of_common_tools_are_unwrapped(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wrap: Callable[[], dict[str, object]],
    said: str,
) -> None:
    torch.save(wrap(), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        model = build_model(SMALL, CLASSES, 64, tmp_path / "w.pth")
    key = "features.0.0.weight"
    torch.testing.assert_close(model.backbone.state_dict()[key], small_state()[key])
    assert len([r for r in caplog.records if said in r.getMessage()]) == 1


def test_layers_beside_a_prefix_are_never_left_out(tmp_path: Path) -> None:
    state = prefixed("model.")
    others = {"head.weight": torch.ones(3, 4), "head.bias": torch.ones(3), "gamma": torch.ones(3)}
    for name, value in others.items():
        torch.save({**state, name: value}, tmp_path / "w.pth")
        with pytest.raises(ModelError, match="the file has names like model"):
            build_model(SMALL, CLASSES, 64, tmp_path / "w.pth")


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[:3]])
def test_weights_of_our_own_classifier(
    tmp_path: Path, classes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(4)
    trained = build_model(SMALL, CLASSES, 64)
    torch.save(trained.state_dict(), tmp_path / "own.pth")
    again = build_model(SMALL, classes, 64, tmp_path / "own.pth")
    torch.testing.assert_close(again.backbone.state_dict(), trained.backbone.state_dict())
    assert ("has no names of label groups" in caplog.text) == (classes == CLASSES)
    if classes == CLASSES:
        torch.testing.assert_close(again.state_dict(), trained.state_dict())


@pytest.mark.fault
def test_a_whole_model_is_refused_without_torchs_advice_to_load_it_unsafely(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"pickled torch\.nn\.modules\.linear\.Linear") as caught:
        read_weights(tmp_path / "whole.pt")
    assert "weights_only" not in str(caught.value)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)


def zipped(names: list[str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"text")
    return stream.getvalue()


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>404: Not Found</html>", "an HTML or XML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:6f\n", "Run git lfs pull"),
        (zipped(["word/document.xml"]), "a ZIP archive of something else"),
        (zipped(["m/data.pkl", "m/constants.pkl", "m/code/m.py"]), "a TorchScript model"),
        (zipped(["m/data.pkl"])[:-10], "damaged or incomplete"),
        (b"\x08\x08\x12\x07pytorch\x1a\x032.8", "an ONNX model"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b'{"error": 404}', "JSON text"),
    ],
    # A ZIP archive holds the time of its making, and the names of tests must not change.
    ids=["html", "lfs", "zip", "torchscript", "damaged", "onnx", "hdf5", "gzip", "json"],
)
def test_other_kinds_of_weight_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        build_model(SMALL, CLASSES, 64, tmp_path / "w.pth")


def holding_itself() -> dict[str, object]:
    content: dict[str, object] = {"epoch": 3}
    content["model"] = content
    return content


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (holding_itself, r"holds no state dict .*Its keys: epoch, model"),
        (lambda: dict(enumerate(small_state().values())), "holds no state dict"),
        (lambda: {k: v.to("meta") for k, v in small_state().items()}, "without values"),
        (lambda: {"a.weight": torch.eye(3).to_sparse()}, "quantized or sparse"),
        (lambda: {k: v.to(torch.int8) for k, v in small_state().items()}, "torch.int8"),
        (lambda: {k: v.to(torch.complex64) for k, v in small_state().items()}, "torch.complex64"),
        (lambda: {k: v * float("nan") for k, v in small_state().items()}, "NaN or infinite"),
        (lambda: {k: (v * 1e7).half() for k, v in small_state().items()}, "NaN or infinite"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_content_that_is_no_weights_is_refused(
    tmp_path: Path, content: Callable[[], object], said: str
) -> None:
    torch.save(content(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=said):
        build_model(SMALL, CLASSES, 64, tmp_path / "w.pth")


def test_the_only_state_dict_of_a_checkpoint_is_found_by_its_content(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "student": small_state(), "optimizer": {}}, tmp_path / "w.pth")
    model = build_model(SMALL, CLASSES, 64, tmp_path / "w.pth")
    key = "features.0.0.weight"
    torch.testing.assert_close(model.backbone.state_dict()[key], small_state()[key])


def test_a_head_without_its_weight_starts_from_random_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = build_model("cnn", CLASSES, 32).state_dict()
    torch.save({k: v for k, v in state.items() if k != "head.weight"}, tmp_path / "w.pth")
    build_model("cnn", CLASSES, 32, tmp_path / "w.pth")
    assert "the head has no weight and is not loaded" in caplog.text


def test_safetensors_are_read_where_the_package_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(head)) + head + struct.pack("<f", 1.0))
    if find_spec("safetensors") is None:
        with pytest.raises(ModelError, match="Install the package safetensors"):
            read_weights(file)
        library = SimpleNamespace(load_file=lambda file: {"a": torch.ones(1)})
        monkeypatch.setattr("shopee_mlflow.modeling.state_files.find_spec", lambda name: name)
        monkeypatch.setitem(sys.modules, "safetensors.torch", library)
    torch.testing.assert_close(read_weights(file).state, {"a": torch.ones(1)})


def test_names_of_another_library_are_shown_beside_ours(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": torch.zeros(1)}, tmp_path / "timm.pth")
    with pytest.raises(ModelError, match="names like conv_stem.weight, .* names like features.0.0"):
        build_model(SMALL, CLASSES, 64, tmp_path / "timm.pth")


def test_a_wrapped_state_dict_is_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(1)}}, tmp_path / "wrapped.pth")
    assert list(read_weights(tmp_path / "wrapped.pth").state) == ["a"]


def test_offline_the_error_names_the_file_and_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", "empty-hub")
    with pytest.raises(
        ModelError, match="mobilenet_v3_small-.*cannot be downloaded from"
    ) as caught:
        build_model(f"{SMALL}_pretrained", CLASSES, 64)
    text = str(caught.value)
    assert "Name or service not known" in text
    assert "checkpoints/mobilenet_v3_small-" in text
    assert "weights=PATH" in text


def test_downloaded_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    state = torchvision.models.get_model(SMALL, weights=None).state_dict()
    asked: list[str] = []

    def answer(url: str, **options: object) -> dict[str, torch.Tensor]:
        asked.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", answer)
    model = build_model(f"{SMALL}_pretrained", CLASSES, 64)
    assert len(asked) == 1
    assert asked[0].endswith(".pth")
    torch.testing.assert_close(
        model.backbone.state_dict()["features.0.0.weight"], state["features.0.0.weight"]
    )


def test_a_real_trained_backbone(shared_weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = build_model("effnet_pretrained", CLASSES, 64, shared_weights)
    assert "the head has 7 classes" in caplog.text
    state = read_weights(shared_weights).state
    torch.testing.assert_close(
        model.backbone.state_dict()["features.8.0.weight"], state["features.8.0.weight"]
    )
