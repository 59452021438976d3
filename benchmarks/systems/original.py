"""The original's pipeline: one process decodes every full-size photo in every epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from ..job import Job, Split, read_splits
from ..loop import Training, machine_of, plainly, run
from ..network import new_network


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos that are decoded at full size, resized and converted at each access."""

    def __init__(self, split: Split, image_size: int) -> None:
        self.split = split
        self.transform = transforms.Compose(
            [transforms.Resize((image_size, image_size)), transforms.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(read(self.split.files[row])), self.split.labels[row]


def read(file: Path) -> Image.Image:
    """Decode a photo at full size."""
    with Image.open(file) as image:
        return image.convert("RGB")


def measure(job: Job) -> dict[str, Any]:
    """Measure the original. Faults that do not affect time are fixed: validation runs in eval
    mode, and the head has a class for each label group."""
    job = dataclasses.replace(job, compile=False, channels_last=False, workers=0)
    device = machine_of(job).device
    model = new_network(job).to(device)
    splits = read_splits(job.catalog)
    loaders = {
        name: DataLoader(Photos(split, job.image_size), job.batch_size, shuffle=name == "train")
        for name, split in splits.items()
    }
    training = Training(
        model,
        **loaders,
        photos={name: len(split) for name, split in splits.items()},
        optimizer=SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4),
        loss=nn.CrossEntropyLoss(),
        device=device,
        autocast=plainly,
        channels_last=False,
        after_epoch=lambda _: None,
    )
    return {**run(job, training), "flags": "none: one process"}
