"""fastai's ``vision_learner(...).fine_tune(...)``: one epoch with a frozen body, then all of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import fastai
import pandas as pd
import torch
import torchvision
from fastai.callback.channelslast import *  # noqa: F403 - gives Learner its to_channelslast
from fastai.callback.fp16 import AMPMode
from fastai.callback.schedule import *  # noqa: F403 - gives Learner its fine_tune
from fastai.data.transforms import Normalize
from fastai.learner import Callback, CancelFitException, Learner
from fastai.vision.augment import Resize, ResizeMethod
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders
from fastai.vision.learner import vision_learner

from shopee_mlflow.modeling.device import Machine
from shopee_mlflow.modeling.metrics import score

from ..job import IMAGES, MANIFEST, Job
from ..loop import describe, machine_of, wait_for
from ..network import CompiledBatches, body_state
from ..stopwatch import Stopwatch

# Share of the budget for the epoch with a frozen body.
_FROZEN_SHARE = 0.25


class Watch(Callback):
    """Time fastai's loop, and end a fit when the budget is used up."""

    def __init__(self, watch: Stopwatch, compiled: CompiledBatches | None, device: torch.device):
        self.watch, self.compiled, self.device = watch, compiled, device
        self.fits = 0

    def before_fit(self) -> None:
        self.fits += 1
        if self.compiled:
            # Compiling the frozen epoch separately would take longer than the epoch.
            self.compiled.on = self.fits > 1

    def before_epoch(self) -> None:
        self.watch.begin_epoch(new_phase=self.fits > 1 and self.epoch == 0)

    def before_train(self) -> None:
        self.asked = time.perf_counter()

    def before_batch(self) -> None:
        self.came = time.perf_counter()

    def after_batch(self) -> None:
        if not self.training:
            return
        wait_for(self.device)
        done = time.perf_counter()
        self.watch.add(self.came - self.asked, done - self.came, len(self.yb[0]))
        self.asked = done
        if self.iter < self.n_iter - 1:
            self._stop_if_enough()

    def before_validate(self) -> None:
        self.began = time.perf_counter()

    def after_validate(self) -> None:
        self.watch.end_epoch(time.perf_counter() - self.began)

    def after_epoch(self) -> None:
        if self.epoch < self.n_epoch - 1:
            self._stop_if_enough()

    def _stop_if_enough(self) -> None:
        if self.watch.enough(_FROZEN_SHARE if self.fits == 1 else 1 - _FROZEN_SHARE):
            raise CancelFitException


def new_loaders(job: Job, table: pd.DataFrame, device: torch.device) -> Any:
    """fastai's loaders; photos are stretched to squares, and normalised in batches."""
    table = table[table["split"] != "test"].assign(is_valid=lambda t: t["split"] == "val")
    return ImageDataLoaders.from_df(
        table,
        path=Path(job.catalog) / IMAGES,
        fn_col="image",
        label_col="label",
        valid_col="is_valid",
        item_tfms=Resize(job.image_size, method=ResizeMethod.Squish),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
        bs=job.batch_size,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        device=device,
    )


def new_learner(job: Job, loaders: Any, machine: Machine) -> Learner:
    """fastai's learner, with the given weights in the body."""
    learner = vision_learner(loaders, torchvision.models.efficientnet_b0, pretrained=False)
    if job.weights:
        state = body_state(job)
        learner.model[0][0].load_state_dict(
            {name.removeprefix("features."): tensor for name, tensor in state.items()}
        )
    mixed = machine.precision == "bf16"
    if job.channels_last:
        learner.to_channelslast(use_amp=mixed, amp_mode=AMPMode.BF16)
    elif mixed:
        learner.to_bf16()
    return learner


def measure(job: Job) -> dict[str, Any]:
    """Measure fastai. Its training loader drops the last, smaller batch of each epoch."""
    machine = machine_of(job)
    table = pd.read_csv(Path(job.catalog) / MANIFEST)
    loaders = new_loaders(job, table, machine.device)
    learner = new_learner(job, loaders, machine)
    compiled = None
    if job.compile:
        compiled = CompiledBatches(learner.model, job, len(loaders.valid_ds))
    watch = Stopwatch(job)
    callback = Watch(watch, compiled, machine.device)
    watch.begin_training()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(job.epochs - 1, freeze_epochs=1, cbs=callback)
        figures = _finish(job, learner, watch, table)
    return {**figures, "flags": describe(job, machine.precision, f"fastai {fastai.__version__}")}


def _finish(job: Job, learner: Learner, watch: Stopwatch, table: pd.DataFrame) -> dict[str, Any]:
    """Test a training that reached its end; scale the times of any other."""
    epoch_photos = len(learner.dls.train) * job.batch_size
    if watch.passes[-1].complete and len(watch.passes) == job.epochs:
        test = learner.dls.test_dl(table[table["split"] == "test"], with_labels=True)
        shares, labels = learner.get_preds(dl=test)
        figures = watch.figures(epoch_photos, None, None)
        scores = score(labels.numpy(), shares.log().numpy())
        return {**figures, "test": {**scores, "photos": len(labels)}}
    # The first of them may compile.
    cold, seconds = _validation_seconds(learner), _validation_seconds(learner)
    test_photos = int((table["split"] == "test").sum())
    per_photo = seconds / len(learner.dls.valid_ds)
    return watch.figures(epoch_photos, seconds, per_photo * test_photos, cold - seconds)


def _validation_seconds(learner: Learner) -> float:
    began = time.perf_counter()
    learner.validate()
    return time.perf_counter() - began
