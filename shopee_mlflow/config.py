"""The options of train, tune and cross-validate: name, type, default, limits, help and role.

Options have the same names on the command line, in ``experiments/*.yaml``, in Python and in
MLflow. The YAML file overrides the defaults, and the command line overrides the file. All problems
of a configuration are collected and raised together.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .data_config import AUTO, NONE, DataConfig
from .errors import ConfigError
from .options import Group, Role, as_text, expand_path, option, parse_option
from .yaml_file import read_yaml

PRETRAINED = "_pretrained"
ARCFACE = "arcface"
# A model URI, or the id of a run or of a logged model.
_MODEL_REFERENCE = re.compile(r"[a-z][a-z0-9+.-]+:/.+|(?:m-)?[0-9a-f]{32}")
# Augmentations by name; data/transforms.py says what each does.
AUGMENTATIONS = (NONE, "original", "flip", "crop", "light", "strong")
# Metrics that can select the best epoch; higher is better.
MONITORED = ("val_accuracy", "val_macro_f1", "val_balanced_accuracy", "val_top5_accuracy")


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Options of a training run. docs/recipes.md has the measurements behind the defaults."""

    model: str = option(
        "effnet_pretrained",
        "cnn, effnet, effnet_pretrained, a torchvision classifier such as resnet50_pretrained, or "
        "timm/NAME",
        begins=Group.MODEL,
        details="Names with _pretrained start from torchvision's weights, the others from random "
        "ones. Models of timm need the extra timm.",
    )
    weights: str = option(
        AUTO,
        "a state-dict file, model URI, run id or logged model to start from; auto: *_pretrained "
        "models download theirs",
        Role.SETUP,
    )
    freeze: str = option(
        NONE,
        "last frozen stage, e.g. features.5; backbone: all but the head",
        details="With none, all layers are trained. Activations of frozen layers are cached.",
    )
    activation_dtype: str = option(
        AUTO,
        "dtype of cached activations; auto: float32, float16 above 4 GiB",
        Role.RECORD,
        choices=(AUTO, "float32", "float16"),
    )
    augment: str = option(
        "flip",
        "none, original (flips, grayscale), flip, crop, light (also colour) or strong "
        "(TrivialAugment, erasing)",
        choices=AUGMENTATIONS,
        former={"true": "original", "false": NONE},
        begins=Group.TRAINING,
        details="Augmentation of training photos. original: with probability 0.5 one of horizontal "
        "flip, vertical flip, grayscale; flip: horizontal flip with probability 0.5; crop: random "
        "resized crop and flip; light: crop and mild changes of colour; strong: crop, "
        "TrivialAugment and random erasing.",
    )
    variants: int = option(
        4,
        "cached random augmentations per photo, with frozen layers",
        minimum=1,
        maximum=1000,
        details="Behind frozen layers, augment=crop, light and strong use this many fixed draws "
        "for each photo, whose activations are cached.",
    )
    mix: str = option(
        NONE,
        "blend (mixup) or paste (cutmix) pairs of photos; freeze=none",
        choices=(NONE, "mixup", "cutmix"),
        details="Each training photo and its label are mixed with another: mixup blends the "
        "photos, cutmix pastes a part of the other one.",
    )
    mix_alpha: float = option(
        0.2, "parameter of mix's beta distribution; larger values mix more", above=0, maximum=100
    )
    epochs: int = option(20, "passes over the training photos", minimum=1, maximum=100_000)
    batch_size: int = option(32, "photos in a batch", minimum=1, maximum=65_536)
    accumulate: int = option(
        1, "batches in a training step, whose gradients are accumulated", minimum=1, maximum=65_536
    )
    sampling: str = option(
        "uniform",
        "uniform, or balanced: all label groups are equally likely",
        choices=("uniform", "balanced"),
        details="An epoch has as many photos as the train split. uniform: each photo once; "
        "balanced: drawn with replacement.",
    )
    optimizer: str = option("sgd", "optimization algorithm", choices=("sgd", "adamw"))
    lr: float | str = option(
        AUTO, "learning rate; auto: 0.02 for sgd, 0.001 for adamw", above=0, maximum=100
    )
    backbone_lr_factor: float = option(
        1.0, "learning rate of the backbone, as a factor of lr", above=0, maximum=1
    )
    layerwise_lr: bool = option(
        False,
        "lower lr layer by layer, to backbone_lr_factor times lr",
        details="The learning rate falls geometrically from lr at the head to backbone_lr_factor "
        "times lr at the first trained layer.",
    )
    momentum: float = option(0.9, "momentum of SGD", minimum=0, below=1)
    nesterov: bool = option(False, "Nesterov momentum of SGD")
    weight_decay: float = option(1e-4, "weight decay", minimum=0, maximum=10)
    decay_norms: bool = option(True, "apply weight decay to biases and norm layers, too")
    ema: float = option(
        0.0,
        "decay of a moving average of the weights, e.g. 0.99; 0: none",
        minimum=0,
        below=1,
        details="The exponential moving average over steps is validated, kept and tested in place "
        "of the weights.",
    )
    schedule: str = option(
        "cosine",
        "learning rate over time: cosine down to 0, or constant",
        choices=("cosine", "constant"),
    )
    warmup_epochs: float = option(
        1.0, "epochs over which the learning rate rises linearly from 0", minimum=0
    )
    loss: str = option(
        "cross_entropy",
        "cross_entropy, or arcface, whose embeddings suit match; mix=none",
        choices=("cross_entropy", ARCFACE),
        details="arcface (additive angular margin) separates the embeddings of label groups by "
        "angles, so that they tell label groups apart that training has not seen.",
    )
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes", minimum=0, below=1
    )
    class_weights: str = option(
        NONE,
        "in the loss; none, or balanced: inverse to a class's photos",
        choices=(NONE, "balanced"),
    )
    clip_norm: float = option(0.0, "largest gradient norm; 0: no clipping", minimum=0)
    seed: int = option(
        0, "seed of initial weights, order, augmentation, dropout", minimum=0, maximum=2**32 - 1
    )
    monitor: str = option(
        "val_accuracy",
        "metric that selects the best epoch, stops early and prunes",
        Role.DATA,
        choices=MONITORED,
        begins=Group.EVALUATION,
    )
    patience: int = option(
        0, "stop after this many epochs in which monitor does not improve; 0: never", minimum=0
    )
    tta: bool = option(
        False,
        "test-time augmentation: average over a photo and its mirror image; twice the time",
        Role.DATA,
    )
    unknown: str = option(
        AUTO,
        "auto: answer unknown for photos of no label group; none: always name one",
        Role.RECORD,
        choices=(AUTO, NONE),
        details="The model answers unknown below a threshold that is measured on photos of label "
        "groups that were left out.",
    )
    device: str = option(AUTO, "auto, cpu, cuda, cuda:N or mps", Role.SETUP, begins=Group.RUNNING)
    nproc: int = option(
        1,
        "processes on this machine that train one model together",
        Role.SETUP,
        minimum=1,
        maximum=1024,
    )
    sync_batchnorm: bool = option(
        False,
        "batch norm statistics over the batch of all processes (GPUs only)",
        Role.DATA,
    )
    precision: str = option(
        AUTO,
        "fp32, bf16 or fp16 (mixed); auto: bf16 on a GPU that has it",
        choices=(AUTO, "fp32", "bf16", "fp16"),
    )
    compile: str = option(
        AUTO,
        "torch.compile (takes a minute): true, false; auto: for long runs",
        Role.SETUP,
        choices=(AUTO, "true", "false"),
    )
    serialization: str = option(
        "pickle",
        "pickle: can be trained further; pt2: loads without running code",
        Role.RECORD,
        choices=("pickle", "pt2"),
        begins=Group.TRACKING,
    )
    resume: str = option(
        NONE,
        "id of an interrupted run to resume; last: the latest one",
        Role.SETUP,
        begins=Group.RUNNING,
    )
    register: bool = option(
        False,
        "register the model as shopee-classifier",
        Role.SETUP,
        begins=Group.TRACKING,
    )
    promote: bool = option(
        False,
        "make the registered model the champion, whatever it scored",
        Role.SETUP,
    )
    experiment: str = option("shopee", "MLflow experiment that the run belongs to", Role.RECORD)
    run_name: str = option(
        AUTO, "name of the run in MLflow; auto: the model and what differs", Role.SETUP
    )
    config: str = option(
        NONE,
        "YAML file of options; command-line options override it",
        Role.SETUP,
        begins=Group.RUNNING,
    )

    def contradictions(self) -> list[str]:
        """Problems of options that are valid alone but not together."""
        problems = super().contradictions()
        if self.warmup_epochs > self.epochs:
            problems.append(
                f"warmup_epochs={as_text(self.warmup_epochs)}: must be at most epochs={self.epochs}"
            )
        if self.nproc > self.batch_size:
            problems.append(
                f"nproc={self.nproc}: must be at most batch_size={self.batch_size}, so that each "
                "process has a photo of each batch"
            )
        if self.mix != NONE and self.freeze != NONE:
            problems.append(
                f"mix={self.mix}: mixes the pixels of two photos, so activations of frozen layers "
                f"(freeze={self.freeze}) cannot be cached; use freeze=none or mix=none"
            )
        if self.mix != NONE and self.loss == ARCFACE:
            problems.append(
                f"loss={ARCFACE}: has a margin for the one label group of a photo, and "
                f"mix={self.mix} gives it two; use mix=none or loss=cross_entropy"
            )
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            problems.append("nesterov=true: needs momentum above 0")
        if self.promote and not self.register:
            problems.append("promote=true: needs register=true")
        return problems + _problem_of_weights(self.weights)


@dataclass(frozen=True)
class TuneConfig(TrainConfig):
    """Options of a search, except for the search space, which is in a YAML file."""

    register: bool = option(
        True,
        "register the best model as shopee-classifier at the end",
        Role.SETUP,
        begins=Group.TRACKING,
    )
    n_trials: int = option(
        20,
        "total number of trials, including those of earlier calls",
        Role.SETUP,
        minimum=1,
        begins=Group.SEARCH,
    )
    timeout: float = option(
        0.0,
        "start no trial after this many seconds; 0: no limit",
        Role.SETUP,
        minimum=0,
        maximum=10**9,
    )
    folds: int = option(
        0,
        "choose the best trial by this many folds of all photos outside test, each trained and "
        "validated in turn; 0: by the validation photos",
        Role.DATA,
        minimum=0,
        maximum=100,
    )
    jobs: int = option(
        1, "processes on this machine that run trials", Role.SETUP, minimum=1, maximum=256
    )
    study: str = option(AUTO, "name of the study; auto: the same for the same search", Role.SETUP)
    storage: str = option(
        AUTO,
        "where trials are stored: a file beside the tracking store (auto), another file, or a "
        "database that machines share, such as postgresql://user@host/name",
        Role.SETUP,
    )
    models: str = option(
        AUTO, "architectures to search over, separated by commas; auto: model", Role.SETUP
    )
    sampler: str = option("tpe", "how values are chosen", Role.DATA, choices=("tpe", "random"))
    pruner: str = option(
        "median",
        "when an unpromising trial is stopped",
        Role.DATA,
        choices=("median", "hyperband", NONE),
    )

    def contradictions(self) -> list[str]:
        """Problems of options that are valid alone but not together."""
        problems = super().contradictions()
        if self.resume != NONE:
            problems.append(f"resume={self.resume}: a search resumes when its command is repeated")
        if self.folds == 1:
            problems.append("folds=1: must be 0, or at least 2")
        if self.nproc > 1:
            problems.append(f"nproc={self.nproc}: a search runs trials in parallel with jobs")
        return problems


@dataclass(frozen=True)
class CrossValidateConfig(TrainConfig):
    """Options of a cross-validation. Each photo is tested once; given splits are ignored."""

    split_column: str = option(
        NONE, "always none: cross-validation tests every photo once", Role.DATA, choices=(NONE,)
    )
    resume: str = option(
        NONE,
        "run id of an interrupted cross-validation to resume, or 'last'; repeating its command "
        "resumes it, too",
        Role.SETUP,
    )
    folds: int = option(
        5,
        "parts of the photos; each is tested once by a model trained on the others",
        Role.DATA,
        minimum=2,
        maximum=1000,
        begins=Group.EVALUATION,
    )
    refit: bool = option(
        False,
        "also train a final model on all photos, for the mean best epoch of the folds, and log it "
        "with the cross-validated accuracy",
        Role.SETUP,
    )

    def contradictions(self) -> list[str]:
        """Problems of options that are valid alone but not together."""
        problems = super().contradictions()
        for name in ("val_csv", "test_csv"):
            if getattr(self, name) != NONE:
                problems.append(
                    f"{name}={getattr(self, name)}: cross-validation tests every photo once; put "
                    "all photos into one table"
                )
        if self.nproc > 1:
            problems.append(f"nproc={self.nproc}: a cross-validation runs in one process")
        if self.register and not self.refit:
            problems.append("register=true: needs refit=true, which trains the model to register")
        return problems


ConfigT = TypeVar("ConfigT", bound=DataConfig)


def resolve(
    cls: type[ConfigT], given: Mapping[str, Any], from_file: Mapping[str, Any] | None = None
) -> ConfigT:
    """Defaults, then the YAML file named by ``given["config"]``, then ``given`` itself.

    :param given: option name -> value or text; only the options that the caller has set.
    :param from_file: contents of the file, if it has been read already.
    :raises ConfigError: listing every unknown name, wrong type and value out of range.
    """
    problems: list[str] = []
    file = str(given.get("config") or NONE)
    if from_file is None:
        from_file = {}
        try:
            from_file = read_yaml(Path(file)) if file != NONE else {}
        except ConfigError as error:
            problems += error.problems
    if "config" in from_file:
        problems.append(f"config: {file} may not name another config file")
    values: dict[str, Any] = {}
    for source, where in ((from_file, f" (in {file})"), (given, "")):
        for name, raw in source.items():
            try:
                values[name] = parse_option(cls, name, raw)
            except ValueError as error:
                problems.append(f"{error}{where}")
    if problems:
        raise ConfigError(problems)
    return cls(**values)


def as_params(config: DataConfig) -> dict[str, str]:
    """All resolved options by name, as text: the parameters that a run logs."""
    return {f.name: as_text(getattr(config, f.name)) for f in dataclasses.fields(config)}


def check_epoch(config: DataConfig, photos: int) -> None:
    """Check that a training step is not longer than an epoch.

    :param photos: number of training photos, or an upper bound of it.
    :raises ConfigError: otherwise.
    """
    if not isinstance(config, TrainConfig):
        return
    batches = math.ceil(photos / config.batch_size)
    if config.accumulate > max(batches, 1):
        raise ConfigError(
            [
                f"accumulate={config.accumulate}: an epoch of {photos:,} photos has {batches} "
                f"batches of batch_size={config.batch_size}; lower one of them"
            ]
        )


def is_model_reference(name: str) -> bool:
    """Whether a name is a model URI, or the id of a run or of a logged model."""
    return _MODEL_REFERENCE.fullmatch(name) is not None


def _problem_of_weights(weights: str) -> list[str]:
    if weights == AUTO or _MODEL_REFERENCE.fullmatch(weights):
        return []
    path = expand_path(weights)
    try:
        path.stat()
    except FileNotFoundError:
        pass  # reported below, as a mistyped reference may be
    except (OSError, ValueError) as error:
        return [f"weights={weights}: cannot be read ({getattr(error, 'strerror', None) or error})"]
    if path.is_dir() and not (path / "MLmodel").is_file():
        return [f"weights={weights}: this folder holds no MLmodel file, so it is no logged model"]
    if not path.exists():
        return [
            f"weights={weights}: no such file, relative to {Path.cwd()} (models are named like "
            "models:/shopee-classifier@champion, or by the id of their run)"
        ]
    return []
