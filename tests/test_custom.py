"""Trainings with a model, dataset, transform and optimizer of the caller."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import MakeCatalog
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.models import squeezenet1_1
from torchvision.transforms import v2

from shopee_mlflow import Classifier, TrainConfig, build_model, load_dataset, train
from shopee_mlflow.data.dataset import Dataset
from shopee_mlflow.errors import ConfigError, ModelError, TrackingError
from shopee_mlflow.modeling.device import choose_machine
from shopee_mlflow.tracking.run_log import NullRunLog
from shopee_mlflow.training.checkpoints import checkpoints_of
from shopee_mlflow.training.context import TrainingContext
from shopee_mlflow.training.custom import CustomParts, CustomTransform
from shopee_mlflow.training.resume import saved_on_disk
from shopee_mlflow.training.session import TrainingSession

SIZE = 32
CONFIG = TrainConfig(model="cnn", image_size=SIZE, epochs=2, batch_size=8, cache=False)


class TinyNet(nn.Module):
    """A network as people write one: normalised float photos -> logits."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32
        return self.head(self.features(images).mean(dim=(2, 3)))


@pytest.fixture
def shop(make_catalog: MakeCatalog) -> Path:
    return make_catalog()


@pytest.fixture
def dataset(shop: Path) -> Dataset:
    return load_dataset(shop, image_size=SIZE, cache=False)


@pytest.mark.parametrize("config", ["shop", {"data": "shop"}, None])
def test_a_config_of_another_type_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"config: must be a TrainConfig, not .*; as in train\("):
        train(config)


# --- load_dataset ---


def test_a_dataset_loads_by_its_path_and_options(shop: Path) -> None:
    dataset = load_dataset(str(shop), image_size=SIZE, split="random", cache=False)
    assert len(dataset) == 24
    assert dataset.config.split == "random"
    assert dataset.config.data == str(shop)
    again = load_dataset(dataset.config, split="leak_free")
    assert again.config == dataclasses.replace(dataset.config, split="leak_free")
    for config in (shop, CONFIG):
        with pytest.raises(ConfigError, match="imagesize: no such option. Did you mean image_size"):
            load_dataset(config, imagesize=64)
    with pytest.raises(ConfigError, match="image_size=9: must be a whole number at least 32"):
        load_dataset(shop, image_size=9)


def test_a_dataset_is_one_of_torch(dataset: Dataset) -> None:
    photo, label = dataset[5]
    assert (photo.mode, photo.size) == ("RGB", (SIZE, SIZE))
    assert (np.asarray(photo) == dataset.pixels[5]).all()
    assert type(label) is int
    assert dataset.classes[label] == dataset.frame["label_group"][5]
    assert dataset[-1] == dataset[len(dataset) - 1]
    assert len(list(dataset)) == len(dataset) == 24
    with pytest.raises(IndexError, match="row 24: the dataset has 24 photos"):
        dataset[24]
    rows = dataset.rows("train")
    loader = DataLoader(
        Subset(dataset, rows),  # type: ignore[arg-type]
        batch_size=len(rows),
        collate_fn=lambda pairs: (
            torch.stack([v2.functional.pil_to_tensor(photo) for photo, _ in pairs]),
            torch.tensor([label for _, label in pairs]),
        ),
    )
    ((images, labels),) = list(loader)
    assert images.shape == (len(rows), 3, SIZE, SIZE)
    assert labels.tolist() == dataset.frame["label"][rows].tolist()


def test_the_repr_of_a_dataset_fits_a_line(dataset: Dataset) -> None:
    assert repr(dataset) == (
        "Dataset(shop/train.csv: 24 photos, 3 label groups, train/val/test 20/3/1)"
    )


def test_the_repr_of_a_dataset_has_its_relative_folder(
    make_catalog: MakeCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make_catalog()
    monkeypatch.chdir(shop.parent)
    dataset = load_dataset("shop", image_size=32)
    assert repr(dataset).startswith("Dataset(shop/train.csv: ")
    monkeypatch.chdir(shop)
    assert repr(load_dataset("train.csv", image_size=32)).startswith("Dataset(train.csv: ")


# --- train ---


@pytest.mark.slow
def test_a_training_with_own_objects(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    net = TinyNet()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    augment = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.3)])
    adam = functools.partial(torch.optim.Adam, lr=0.002)
    result = train(CONFIG, model=net, dataset=dataset, transform=augment, optimizer=adam)
    assert result.dataset is dataset
    assert "TinyNet on cpu" in capsys.readouterr().out
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    trained = result.model.backbone.state_dict()
    assert any(not torch.equal(trained[name], value) for name, value in before.items())
    run = mlflow.get_run(result.run_id)
    logged = {n: run.data.params[n] for n in ("model", "augment", "optimizer", "lr", "momentum")}
    assert logged == {
        "model": "TinyNet",
        "augment": "Compose",
        "optimizer": "Adam",
        "lr": "0.002",
        "momentum": "none",
    }
    assert run.data.params["data"] == dataset.config.data
    # The schedule still applies: one warm-up epoch, then half a cosine.
    assert result.history["lr"].max() <= 0.002
    photo, _ = dataset[int(dataset.rows("test")[0])]
    classifier = Classifier.load(result.uri)
    answer = classifier.predict(photo)
    expected = result.model.classes[int(result.test_logits[0].argmax())]
    assert answer["label_group"][0] == expected
    assert repr(result) == (
        f"TrainResult(run {result.run_id}, TinyNet, test accuracy "
        f"{result.scores['test_accuracy']:.1%} of {len(result.test_labels)} photos)"
    )
    again = train(CONFIG, model=net, dataset=dataset, transform=augment, optimizer=adam)
    np.testing.assert_array_equal(again.test_logits, result.test_logits)


@pytest.mark.slow
def test_a_module_that_the_model_needs_is_named(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import torchvision\nclass Net(torchvision.models.SqueezeNet):\n    pass\n"
    (tmp_path / "their_net.py").write_text(source)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        net = importlib.import_module("their_net").Net("1_1", num_classes=3)
        result = train(dataclasses.replace(CONFIG, epochs=1), model=net, dataset=dataset)
        assert Classifier.load(result.uri).classes == dataset.classes
    monkeypatch.delitem(sys.modules, "their_net")
    # MLflow puts the folder of a loaded model's code on the path, and the tests run in tmp_path.
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    with pytest.raises(TrackingError, match="needs the Python module their_net"):
        Classifier.load(result.uri)


def test_results_that_the_store_refuses_are_left_as_a_model_that_loads(
    dataset: Dataset,
) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    context = TrainingContext(dataset, choose_machine("cpu"), custom=CustomParts(TinyNet()))
    session = TrainingSession(config, context, NullRunLog())
    with (
        pytest.raises(TrackingError, match=r"gone\n.*Classifier.load loads the folder model in it"),
        saved_on_disk(session),
    ):
        raise TrackingError("gone")
    folder = checkpoints_of("none").folder
    assert Classifier.load(folder / "model").classes == dataset.classes


@pytest.mark.slow
def test_a_trained_model_is_trained_further(dataset: Dataset) -> None:
    first = train(CONFIG, dataset=dataset)
    config = dataclasses.replace(CONFIG, freeze="backbone", epochs=1, warmup_epochs=0)
    second = train(config, model=first.model, dataset=dataset)
    assert mlflow.get_run(second.run_id).data.params["model"] == "cnn"
    body = first.model.backbone.state_dict()
    for name, value in second.model.backbone.state_dict().items():
        assert torch.equal(value, body[name]), name
    assert not torch.equal(second.model.head.weight, first.model.head.weight)


@pytest.mark.slow
def test_a_network_of_torchvision_is_frozen_at_a_stage(dataset: Dataset) -> None:
    net = squeezenet1_1(num_classes=3)
    config = dataclasses.replace(CONFIG, freeze="features.9", epochs=1, augment="flip")
    result = train(config, model=net, dataset=dataset)
    trained = result.model.backbone.state_dict()
    changed = {n for n, value in net.state_dict().items() if not torch.equal(value, trained[n])}
    assert changed
    assert all(int(name.split(".")[1]) > 9 for name in changed if name.startswith("features."))


def test_a_model_that_does_not_fit_is_refused_in_words(dataset: Dataset) -> None:
    class Pair(TinyNet):
        def forward(self, images: torch.Tensor) -> Any:
            return super().forward(images), images

    class Narrow(TinyNet):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(images.flatten(1))

    other = build_model("cnn", ["a", "b", "c"], SIZE)
    larger = build_model("cnn", dataset.classes, 64)
    refusals: list[tuple[nn.Module, str]] = [
        (TinyNet(21), "TinyNet returns .2, 21. for 2 photos, but the data have 3 label groups"),
        (Pair(), "Pair must return a tensor of logits, not tuple"),
        (Narrow(), r"Narrow fails on photos \(2, 3, 32, 32\) \(mat1 and mat2 shapes"),
        (other, r"label groups a, b, c \(3\), and the data group0, group1, group2"),
        (larger, "the model has image_size 64, and the data 32"),
    ]
    for model, words in refusals:
        with pytest.raises(ModelError, match=words):
            train(CONFIG, model=model, dataset=dataset)


def test_what_cannot_be_combined_is_refused_before_anything_is_read() -> None:
    config = TrainConfig(data="nowhere", freeze="backbone", resume="last")
    frozen = TinyNet().requires_grad_(False)
    optimizer = torch.optim.SGD(frozen.parameters(), lr=1)
    with pytest.raises(ConfigError) as caught:
        train(config, model=frozen, transform=torch.flip, optimizer=optimizer)  # type: ignore
    words = [problem.split(":")[0] for problem in caught.value.problems]
    assert words == ["resume=last", "freeze=backbone", "model", "transform", "optimizer"]
    for given, message in (
        (
            {"model": "resnet50"},
            "must be a torch.nn.Module, not 'resnet50'; to use an architecture",
        ),
        ({"transform": "flip"}, "transform: must be a function of photos, not 'flip'"),
        ({"optimizer": "adam"}, "optimizer: must be a function, such as optimizer=lambda"),
        ({"optimizer": list}, "must return a torch.optim.Optimizer, not"),
        ({"dataset": "shop"}, "dataset: must be what load_dataset returns, not str"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(CONFIG, **given)  # type: ignore[arg-type]


def test_weights_are_not_loaded_into_a_model_of_the_caller(tmp_path: Path) -> None:
    torch.save(TinyNet().state_dict(), tmp_path / "w.pth")
    config = dataclasses.replace(CONFIG, weights=str(tmp_path / "w.pth"))
    with pytest.raises(ConfigError, match="w.pth: has no effect on your own model"):
        train(config, model=TinyNet())


def test_options_of_the_data_are_those_of_the_dataset(dataset: Dataset) -> None:
    config = dataclasses.replace(CONFIG, image_size=64)
    with pytest.raises(ConfigError, match="image_size=64: the dataset was loaded with image_size="):
        train(config, dataset=dataset)
    dataset.frame.loc[0, "split"] = "test"
    with pytest.raises(ConfigError, match="were modified after loading; load it again"):
        train(CONFIG, dataset=dataset)


def test_an_optimizer_of_other_parameters_is_refused(dataset: Dataset) -> None:
    net = TinyNet()
    with pytest.raises(ConfigError, match="only the parameters in its argument"):
        train(
            CONFIG,
            model=net,
            dataset=dataset,
            optimizer=lambda _: torch.optim.SGD(net.parameters(), lr=0.1),
        )


# --- transform ---


def test_torchvisions_transforms_draw_for_each_photo_and_functions_get_batches() -> None:
    images = torch.arange(64, dtype=torch.uint8).repeat(32, 3, 8, 1)
    values = np.random.default_rng(0).integers(2**63, size=32)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    flipped = CustomTransform(v2.RandomHorizontalFlip()).apply(images.clone(), values)
    again = CustomTransform(v2.RandomHorizontalFlip()).apply(images.clone(), values)
    assert torch.equal(flipped, again)
    assert len({bool(torch.equal(one, images[0])) for one in flipped}) == 2
    assert torch.equal(torch.rand(2), expected), "torch's own random numbers were used"
    seen = []

    def darker(batch: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(batch.shape))
        return batch / 510

    assert CustomTransform(darker).apply(images, values).max() <= 0.5
    assert seen == [(32, 3, 8, 64)]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Resize(16), r"Resize must return photos of \(3, 32, 32\), not \(3, 16, 16\)"),
        (lambda images: images.numpy(), "<lambda> must return photos of .*, not ndarray"),
        (lambda images: images.long(), "must return uint8 or float photos, not torch.int64"),
        (lambda images: images.float() / 255 - 0.5, "floats must be 0..1, since the model itself"),
    ],
)
def test_a_transform_that_returns_no_photos_is_refused(
    dataset: Dataset, transform: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(CONFIG, dataset=dataset, transform=transform)
