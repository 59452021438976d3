"""timm's loader, loss, optimizer and schedule, with the step of its training script."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import timm
import torch
from timm.data import ImageDataset, create_loader
from timm.data.readers.reader import Reader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from ..job import Job, Split, read_splits
from ..loop import Training, describe, machine_of, run
from ..network import CompiledBatches, new_network

_WARMUP_EPOCHS = 5  # the default of timm's script


class ManifestReader(Reader):
    """Files and labels of a split, as timm's datasets expect them."""

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[BinaryIO, int]:
        return self.split.files[row].open("rb"), self.split.labels[row]

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:  # noqa: ARG002
        file: Path = self.split.files[index]
        return file.name if basename else str(file)


def new_loader(job: Job, split: Split, training: bool, device: torch.device) -> Any:
    """timm's loader with its prefetcher, which normalises on the device; no augmentation."""
    return create_loader(
        ImageDataset("", reader=ManifestReader(split)),
        input_size=(3, job.image_size, job.image_size),
        batch_size=job.batch_size,
        is_training=training,
        no_aug=True,
        interpolation="bilinear",
        crop_pct=1.0,
        num_workers=job.workers,
        pin_memory=device.type == "cuda",
        device=device,
    )


def measure(job: Job) -> dict[str, Any]:
    """Measure timm. Its training loader drops the last, smaller batch of each epoch."""
    machine = machine_of(job)
    order = torch.channels_last if job.channels_last else torch.contiguous_format
    model = new_network(job).to(memory_format=order).to(machine.device)
    splits = read_splits(job.catalog)
    if job.compile:
        CompiledBatches(model, job, len(splits["val"]))
    loaders = {
        name: new_loader(job, split, name == "train", machine.device)
        for name, split in splits.items()
    }
    photos = {name: len(split) for name, split in splits.items()}
    photos["train"] = len(loaders["train"]) * job.batch_size
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01, momentum=0.9, weight_decay=2e-5)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=job.epochs,
        warmup_epochs=min(_WARMUP_EPOCHS, job.epochs - 1),
    )
    training = Training(
        model,
        **loaders,
        photos=photos,
        optimizer=optimizer,
        loss=LabelSmoothingCrossEntropy(0.1),
        device=machine.device,
        autocast=machine.autocast,
        channels_last=job.channels_last,
        after_epoch=schedule.step,
    )
    flags = describe(job, machine.precision, f"timm {timm.__version__}")
    return {**run(job, training), "flags": flags}
