"""torchvision's reference: a DataLoader with worker processes and the transforms of its scripts.

The reference for classification decodes with Pillow and normalises in the workers, trains with
SGD on cross entropy and lowers the learning rate along a cosine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from ..job import Job, Split, read_splits
from ..loop import Training, describe, machine_of, run
from ..network import CompiledBatches, new_network
from .original import read

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos decoded with Pillow and transformed in a worker."""

    def __init__(self, split: Split, image_size: int) -> None:
        self.split = split
        self.transform = v2.Compose(
            [
                v2.Resize((image_size, image_size), antialias=True),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(_MEAN, _STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(read(self.split.files[row])), self.split.labels[row]


def new_loaders(job: Job, splits: dict[str, Split], pinned: bool) -> dict[str, Any]:
    """A loader for each split, with persistent workers."""
    return {
        name: DataLoader(
            Photos(split, job.image_size),
            job.batch_size,
            shuffle=name == "train",
            num_workers=job.workers,
            pin_memory=pinned,
            persistent_workers=job.workers > 0,
        )
        for name, split in splits.items()
    }


def measure(job: Job) -> dict[str, Any]:
    """Measure torchvision's reference."""
    machine = machine_of(job)
    order = torch.channels_last if job.channels_last else torch.contiguous_format
    model = new_network(job).to(memory_format=order).to(machine.device)
    splits = read_splits(job.catalog)
    if job.compile:
        CompiledBatches(model, job, len(splits["val"]))
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = CosineAnnealingLR(optimizer, T_max=job.epochs)
    training = Training(
        model,
        **new_loaders(job, splits, pinned=machine.device.type == "cuda"),
        photos={name: len(split) for name, split in splits.items()},
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(),
        device=machine.device,
        autocast=machine.autocast,
        channels_last=job.channels_last,
        after_epoch=lambda _: schedule.step(),
    )
    return {**run(job, training), "flags": describe(job, machine.precision)}
