"""Every option of a training: its name, type, default, allowed values, help and role.

Options have the same names on the command line, in ``experiments/*.yaml``, in Python and in
MLflow. The YAML file overrides the defaults, and the command line overrides the file. All problems
of a configuration are collected and raised together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .errors import ConfigError
from .options import Group, Role, as_text, option, parse_option

SAMPLE = "sample"
AUTO = "auto"
NONE = "none"
PRETRAINED = "_pretrained"
# Augmentations by name; data/transforms.py says what each does.
AUGMENTATIONS = (NONE, "original", "flip", "crop")
# Augmentations that draw real numbers instead of one of a few variants of a photo.
RANDOM_AUGMENTATIONS = ("crop",)
# Metrics that can select the best epoch; higher is better.
MONITORED = ("val_accuracy", "val_macro_f1")
# A typical file has a few hundred bytes.
_MAX_YAML_BYTES = 64 * 2**10


@dataclass(frozen=True)
class DataConfig:
    """Options of the data and of its split.

    On construction, text is converted to the type of its option, and all values are checked.

    :raises ConfigError: listing every value of the wrong type or out of range.
    """

    def __post_init__(self) -> None:
        problems = []
        for field in dataclasses.fields(self):
            try:
                value = parse_option(type(self), field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)
            except ValueError as error:
                problems.append(str(error))
        problems = problems or _contradictions(self)
        if problems:
            raise ConfigError(problems)

    data: str = option(
        SAMPLE,
        "folder with train.csv and train_images/, or a CSV file; 'sample' is built in",
        Role.SETUP,
        begins=Group.DATA,
    )
    images: str = option(
        AUTO, "folder of the photos; auto: train_images beside the CSV", Role.SETUP
    )
    sample_px: int = option(
        256, "side of the built-in sample's photos", Role.DATA, minimum=64, maximum=4096
    )
    largest_groups: int = option(
        21, "keep this many of the largest label groups, by rows; 0 keeps all", Role.DATA, minimum=0
    )
    min_group: int = option(
        3, "leave out label groups with fewer photos than this after cleaning", Role.DATA, minimum=2
    )
    bad_images: str = option(
        "skip",
        "for photos that cannot be decoded: skip leaves them out and counts them, error stops",
        Role.DATA,
        choices=("skip", "error"),
    )
    split: str = option(
        "leak_free",
        "leak_free keeps copies of a photo in one split; random does not",
        Role.DATA,
        choices=("leak_free", "random"),
    )
    split_seed: int = option(
        0, "seed of the train/val/test split", Role.DATA, minimum=0, maximum=2**32 - 1
    )
    image_size: int = option(
        256, "side in pixels to which photos are resized", Role.DATA, minimum=32, maximum=1024
    )
    resize: str = option(
        "stretch",
        "how photos become squares: stretch changes their proportions; pad adds white margins",
        Role.DATA,
        choices=("stretch", "pad"),
    )
    cache: bool = option(
        True,
        "keep decoded photos in the cache folder for the next run",
        Role.SETUP,
        begins=Group.RUNNING,
    )
    workers: int = option(
        0, "threads that decode photos; 0: one per core", Role.SETUP, minimum=0, maximum=256
    )


@dataclass(frozen=True)
class ExploreConfig(DataConfig):
    """Options of ``explore``. The data options select the training that the report describes."""

    max_photos: int = option(
        50_000,
        "read at most this many photos, drawn at random; 0: all",
        Role.SETUP,
        minimum=0,
        begins=Group.DATA,
    )
    seed: int = option(0, "seed of that draw", Role.SETUP, minimum=0, maximum=2**32 - 1)
    out: str = option(
        "explore",
        "output folder for the page and its tables: a new one, or that of an earlier page",
        Role.SETUP,
        begins=Group.RUNNING,
    )
    experiment: str = option(
        "shopee", "MLflow experiment that the run belongs to", Role.RECORD, begins=Group.TRACKING
    )


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Options of a training run. The defaults train EfficientNet-B0."""

    model: str = option(
        "effnet_pretrained",
        "cnn, effnet, effnet_pretrained, or any torchvision classifier such as resnet50 or "
        "resnet50_pretrained",
        begins=Group.MODEL,
    )
    weights: str = option(
        AUTO,
        "state-dict file to start from; auto: *_pretrained models download theirs",
        Role.SETUP,
    )
    freeze: str = option(
        NONE, "none, backbone (train the head only), or the last stage to freeze, e.g. features.5"
    )
    activation_dtype: str = option(
        AUTO,
        "dtype of cached activations of frozen layers: float32, float16 (half the size); auto: "
        "float16 where float32 would take more than 4 GiB",
        Role.RECORD,
        choices=(AUTO, "float32", "float16"),
    )
    augment: str = option(
        "original",
        "augmentation of training photos; original: with probability 0.5 one of horizontal flip, "
        "vertical flip, grayscale; flip: horizontal flip; crop: random resized crop and flip",
        choices=AUGMENTATIONS,
        former={"true": "original", "false": NONE},
        begins=Group.TRAINING,
    )
    epochs: int = option(50, "passes over the training photos", minimum=1, maximum=100_000)
    batch_size: int = option(75, "photos in a training step", minimum=1, maximum=65_536)
    optimizer: str = option("sgd", "optimization algorithm", choices=("sgd", "adamw"))
    lr: float = option(0.01, "learning rate", above=0, maximum=100)
    momentum: float = option(0.9, "momentum of SGD", minimum=0, below=1)
    weight_decay: float = option(1e-4, "weight decay", minimum=0, maximum=10)
    schedule: str = option(
        "cosine",
        "learning rate over time: cosine down to 0, or constant",
        choices=("cosine", "constant"),
    )
    warmup_epochs: float = option(
        1.0, "epochs over which the learning rate rises linearly from 0", minimum=0
    )
    label_smoothing: float = option(
        0.0, "share of the target spread over all classes", minimum=0, below=1
    )
    class_weights: str = option(
        NONE,
        "weights of classes in the loss; balanced: inverse to their photos",
        choices=(NONE, "balanced"),
    )
    clip_norm: float = option(0.0, "largest gradient norm; 0: no clipping", minimum=0)
    seed: int = option(
        0, "seed of initial weights, order, augmentation, dropout", minimum=0, maximum=2**32 - 1
    )
    monitor: str = option(
        "val_accuracy",
        "what selects the best epoch, stops early and prunes: val_accuracy or val_macro_f1",
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
        "fp32, bf16 or fp16 (mixed); auto: bf16 on a GPU that has it, else fp32",
        choices=(AUTO, "fp32", "bf16", "fp16"),
    )
    compile: str = option(
        AUTO,
        "torch.compile the training step, which takes a minute or two; auto: for runs long "
        "enough to benefit",
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
        "run id of an interrupted training to resume, or 'last'",
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
    run_name: str = option(AUTO, "name of the run in MLflow; auto: the model's name", Role.SETUP)
    config: str = option(
        NONE,
        "YAML file of options; command-line options override it",
        Role.SETUP,
        begins=Group.RUNNING,
    )


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


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping of option names to values in a YAML file.

    The file is not trusted. Python tags, aliases and files of more than 64 KiB are refused: a few
    bytes of aliases can expand to gigabytes.

    :raises ConfigError: when the file cannot be read or is not such a mapping.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_YAML_BYTES + 1)
        if len(text) > _MAX_YAML_BYTES:
            raise ConfigError([f"config={path}: is larger than {_MAX_YAML_BYTES:,} bytes"])
        content = yaml.load(text.decode("utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(
            [f"config={path}: cannot be read ({error.strerror}), relative to {Path.cwd()}"]
        ) from error
    except RecursionError as error:
        raise ConfigError([f"config={path}: is not valid YAML: nested too deeply"]) from error
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: not UTF-8, a date such as 2026-02-31, or a number of thousands of digits.
        raise ConfigError([f"config={path}: is not valid YAML: {error}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"config={path}: must hold lines of 'option: value'"])
    return {str(name): value for name, value in content.items()}


class _Loader(yaml.SafeLoader):
    """Plain YAML without aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.composer.ComposerError(
                None, None, f"aliases (*{event.anchor}) are not supported", event.start_mark
            )
        return super().compose_node(parent, index)


def as_params(config: DataConfig) -> dict[str, str]:
    """All resolved options by name, as text: the parameters that a run logs."""
    return {f.name: as_text(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _contradictions(config: DataConfig) -> list[str]:
    """Problems of options that are valid alone but not together."""
    problems = []
    if isinstance(config, TrainConfig):
        if config.warmup_epochs > config.epochs:
            problems.append(
                f"warmup_epochs={as_text(config.warmup_epochs)}: must be at most "
                f"epochs={config.epochs}"
            )
        if config.resume != NONE and isinstance(config, TuneConfig):
            problems.append(
                f"resume={config.resume}: a search resumes when its command is repeated"
            )
        if config.nproc > 1 and isinstance(config, TuneConfig):
            problems.append(f"nproc={config.nproc}: a search runs trials in parallel with jobs")
        if config.nproc > config.batch_size:
            problems.append(
                f"nproc={config.nproc}: must be at most batch_size={config.batch_size}, so that "
                "each process has a photo of each batch"
            )
        if config.augment in RANDOM_AUGMENTATIONS and config.freeze != NONE:
            problems.append(
                f"augment={config.augment}: draws new values in each epoch, so activations of "
                f"frozen layers (freeze={config.freeze}) cannot be cached; use freeze=none, or "
                "augment=none, original or flip"
            )
        if config.promote and not config.register:
            problems.append("promote=true: needs register=true")
        if config.weights != AUTO and not Path(config.weights).expanduser().is_file():
            problems.append(f"weights={config.weights}: no such file, relative to {Path.cwd()}")
    if config.data == SAMPLE and config.images != AUTO:
        problems.append(
            f"images={config.images}: the built-in sample has its own photos; set data too"
        )
    return problems
