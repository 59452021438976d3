"""Fine-tune EfficientNet-B0 with another library, the way that library recommends.

A child process of benchmarks/time_to_accuracy.py: it reads a catalogue whose CSV file has a column
``split``, trains on the photos of ``train``, and writes the predicted label of each test photo.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from shopee_mlflow.modeling.initial_weights import read_weights

_SMOOTHING = 0.1


@dataclass(frozen=True)
class Task:
    """What a library is given.

    :ivar table: columns file, label (integers from 0) and split.
    :ivar state: initial weights of ``features.*``, in torchvision's layout.
    :ivar freeze: the last layer that keeps its weights, such as ``features.6``; or ``none``.
    :ivar lr: learning rate; 0 is fastai's default.
    :ivar flips_only: augment by horizontal flips alone instead of the library's policy.
    :ivar backbone_lr_divisor: of fastai: the first layers have this fraction of the learning rate.
    :ivar freeze_norms: of fastai: batch norms of frozen layers are frozen, too, which is not its
        default.
    :ivar device: cpu, in fp32, or cuda, in bf16 (autocast), as this project trains on it.
    """

    table: pd.DataFrame
    state: dict[str, Tensor]
    image_size: int
    epochs: int
    batch_size: int
    workers: int
    lr: float
    freeze: str
    flips_only: bool
    backbone_lr_divisor: float
    freeze_norms: bool
    device: str

    @property
    def classes(self) -> int:
        return int(self.table["label"].max()) + 1

    def split(self, name: str) -> pd.DataFrame:
        return self.table[self.table["split"] == name]

    def new_network(self) -> nn.Module:
        """torchvision's EfficientNet-B0 with the given weights and a new head."""
        import torchvision

        network = torchvision.models.efficientnet_b0(weights=None)
        head = nn.Linear(network.classifier[1].in_features, self.classes)
        network.classifier[1] = head
        network.load_state_dict({**network.state_dict(), **self.state})
        return network

    def frozen(self, network: nn.Module) -> list[nn.Module]:
        """The modules that keep their weights and statistics."""
        if self.freeze == "none":
            return []
        last = int(self.freeze.rpartition(".")[2])
        modules: list[nn.Module] = list(network.features[: last + 1])  # type: ignore[index]
        for module in modules:
            module.requires_grad_(False)
        return modules


def with_timm(task: Task) -> list[int]:
    """timm's loader, augmentation, loss, optimizer and schedule.

    Its loader leaves out the last, smaller batch of each epoch.
    Its training script recommends RandAugment, random erasing and label smoothing for this network.
    """
    from timm.data import ImageDataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    from .job import Split
    from .systems.timm_reference import ManifestReader

    policy: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "color_jitter": 0.0}
    if not task.flips_only:
        policy = {"auto_augment": "rand-m9-inc1", "re_prob": 0.2, "re_mode": "pixel"}

    def loader(name: str) -> Any:
        part = task.split(name)
        training = name == "train"
        return create_loader(
            ImageDataset("", reader=ManifestReader(Split(list(part["file"]), list(part["label"])))),
            input_size=(3, task.image_size, task.image_size),
            batch_size=task.batch_size,
            is_training=training,
            crop_pct=1.0,
            num_workers=task.workers,
            persistent_workers=True,
            device=torch.device(task.device),
            pin_memory=task.device == "cuda",
            **(policy if training else {}),
        )

    network = task.new_network()
    frozen = task.frozen(network)
    optimizer = create_optimizer_v2(network, opt="sgd", lr=task.lr, weight_decay=2e-5)
    schedule, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=task.epochs, warmup_epochs=1, warmup_lr=1e-4
    )
    loss = LabelSmoothingCrossEntropy(_SMOOTHING)
    _train(task, network, frozen, loader("train"), optimizer, loss, schedule.step)
    return _predict(task, network, loader("test"))


def with_torchvision(task: Task) -> list[int]:
    """The transforms, loss, optimizer and schedule of torchvision's reference training."""
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    from .systems.original import read

    square = (task.image_size, task.image_size)
    last = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    last += [v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    random = [v2.RandomResizedCrop(square, antialias=True), v2.RandomHorizontalFlip()]

    class Photos(Dataset[tuple[Tensor, int]]):
        def __init__(self, name: str) -> None:
            self.part = task.split(name)
            first = random if name == "train" else [v2.Resize(square, antialias=True)]
            self.transform = v2.Compose([*first, *last])

        def __len__(self) -> int:
            return len(self.part)

        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            photo = self.part.iloc[row]
            return self.transform(read(photo["file"])), int(photo["label"])

    def loader(name: str) -> Any:
        train = name == "train"
        return DataLoader(
            Photos(name),
            task.batch_size,
            shuffle=train,
            num_workers=task.workers,
            persistent_workers=True,
            pin_memory=task.device == "cuda",
        )

    network = task.new_network()
    frozen = task.frozen(network)
    optimizer = torch.optim.SGD(network.parameters(), task.lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=task.epochs)
    loss = nn.CrossEntropyLoss(label_smoothing=_SMOOTHING)
    after = lambda _: schedule.step()  # noqa: E731
    _train(task, network, frozen, loader("train"), optimizer, loss, after)
    return _predict(task, network, loader("test"))


def with_fastai(task: Task) -> list[int]:
    """``vision_learner(...).fine_tune(...)`` with ``aug_transforms``.

    With frozen layers the first training, of the head, and the second have the same frozen layers.
    """
    import torchvision
    from fastai.callback.fp16 import AMPMode, MixedPrecision
    from fastai.callback.schedule import Learner  # gives Learner its fine_tune
    from fastai.callback.training import BnFreeze
    from fastai.data.transforms import Normalize
    from fastai.vision.augment import Resize, ResizeMethod, aug_transforms
    from fastai.vision.core import imagenet_stats
    from fastai.vision.data import ImageDataLoaders
    from fastai.vision.learner import default_split, vision_learner

    last = -1 if task.freeze == "none" else int(task.freeze.rpartition(".")[2])

    def groups(model: nn.Module) -> list[list[nn.Parameter]]:
        body = list(model[0][0].children())  # type: ignore[index]
        parts = [body[: last + 1], body[last + 1 :], [model[1]]]  # type: ignore[index]
        return [[p for module in part for p in module.parameters()] for part in parts]

    table = task.table.assign(is_valid=task.table["split"] != "train")
    loaders = ImageDataLoaders.from_df(
        table[table["split"] != "test"],
        path="/",
        fn_col="file",
        label_col="label",
        valid_col="is_valid",
        item_tfms=Resize(task.image_size, method=ResizeMethod.Squish),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
        bs=task.batch_size,
        num_workers=task.workers,
        persistent_workers=True,
        device=torch.device(task.device),
    )
    splitter = default_split if last < 0 else groups
    learner: Learner = vision_learner(
        loaders,
        torchvision.models.efficientnet_b0,
        pretrained=False,
        splitter=splitter,
        train_bn=not task.freeze_norms,
        cbs=[BnFreeze()] if task.freeze_norms else None,
    )
    body = {name.removeprefix("features."): tensor for name, tensor in task.state.items()}
    learner.model[0][0].load_state_dict(body)
    if task.device == "cuda":
        learner.add_cb(MixedPrecision(amp_mode=AMPMode.BF16))
    rate = task.lr or 2e-3  # the default of fine_tune
    with learner.no_bar(), learner.no_logging():
        if last < 0:
            learner.fine_tune(task.epochs - 1, rate, lr_mult=task.backbone_lr_divisor)
        else:
            learner.freeze()
            # The steps of fine_tune, whose second part would train all layers.
            learner.fit_one_cycle(1, slice(rate), pct_start=0.99)
            learner.freeze_to(1)
            rates = slice(rate / 2 / task.backbone_lr_divisor, rate / 2)
            learner.fit_one_cycle(task.epochs - 1, rates, pct_start=0.3, div=5.0)
        shares, _ = learner.get_preds(dl=learner.dls.test_dl(task.split("test")))
    vocabulary = [int(name) for name in learner.dls.vocab]
    return [vocabulary[i] for i in shares.argmax(1).tolist()]


def _train(
    task: Task,
    network: nn.Module,
    frozen: list[nn.Module],
    batches: Any,
    optimizer: torch.optim.Optimizer,
    loss: nn.Module,
    after_epoch: Any,
) -> None:
    network.to(task.device).to(memory_format=torch.channels_last)
    for number in range(1, task.epochs + 1):
        network.train()
        for module in frozen:
            module.eval()
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            images = _on_device(images, task)
            with _precision(task):
                error = loss(network(images), labels.to(task.device, non_blocking=True))
            error.backward()
            optimizer.step()
        after_epoch(number)


@torch.no_grad()
def _predict(task: Task, network: nn.Module, batches: Any) -> list[int]:
    network.eval()
    with _precision(task):
        answers = [network(_on_device(images, task)).argmax(1) for images, _ in batches]
    return torch.cat(answers).tolist()


def _on_device(images: Tensor, task: Task) -> Tensor:
    return images.to(task.device, memory_format=torch.channels_last, non_blocking=True)


def _precision(task: Task) -> torch.autocast:
    return torch.autocast(task.device, torch.bfloat16, enabled=task.device == "cuda")


def main() -> None:
    """Train one library on one catalogue and write its predictions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system", choices=("timm", "torchvision", "fastai"))
    parser.add_argument("catalog", type=Path)
    parser.add_argument("weights")
    parser.add_argument("answer", type=Path)
    parser.add_argument("settings", type=json.loads)
    options = parser.parse_args()
    torch.manual_seed(0)
    table = pd.read_csv(options.catalog / "train.csv", dtype=str)
    names = sorted(table["label_group"].unique())
    table["label"] = table["label_group"].map(names.index)
    table["file"] = [options.catalog / "train_images" / image for image in table["image"]]
    state = read_weights(options.weights).state
    body = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    task = Task(table, body, **options.settings)
    train = {"timm": with_timm, "torchvision": with_torchvision, "fastai": with_fastai}
    predicted = train[options.system](task)
    images = list(task.split("test")["image"])
    answer = dict(zip(images, (names[label] for label in predicted), strict=True))
    options.answer.write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
