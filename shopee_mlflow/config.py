"""Every option of a training: its name, type, default, allowed values and one line of help.

The same names stand on the command line, in ``experiments/*.yaml``, in Python and in MLflow.
Defaults give way to the YAML file, and that to the command line. All problems of a
configuration are found first and raised once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .errors import ConfigError
from .options import as_text, option, parse_option

SAMPLE = "sample"
AUTO = "auto"
NONE = "none"
PRETRAINED = "_pretrained"


@dataclass(frozen=True)
class DataConfig:
    """What is learned from, and how it is split.

    Values are checked, and read where they are text, whenever one is made.

    :raises ConfigError: with every value of the wrong kind or out of range.
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
    )
    images: str = option(AUTO, "folder of the photos; auto: train_images beside the CSV")
    sample_px: int = option(256, "side of the built-in sample's photos", minimum=64, maximum=4096)
    largest_groups: int = option(
        21, "keep this many of the largest label groups, by rows; 0 keeps all", minimum=0
    )
    min_group: int = option(
        3, "leave out label groups with fewer photos than this after cleaning", minimum=2
    )
    bad_images: str = option(
        "skip",
        "a photo that does not decode is counted and left out, or an error",
        choices=("skip", "error"),
    )
    split: str = option(
        "leak_free",
        "leak_free keeps copies of a photo in one split; random does not",
        choices=("leak_free", "random"),
    )
    split_seed: int = option(0, "seed of the train/val/test split", minimum=0, maximum=2**32 - 1)
    image_size: int = option(
        256, "side in pixels to which photos are resized", minimum=32, maximum=1024
    )
    cache: bool = option(True, "keep decoded photos in the cache folder for the next run")
    workers: int = option(0, "threads that decode photos; 0: one a core", minimum=0, maximum=256)


@dataclass(frozen=True)
class ExploreConfig(DataConfig):
    """What is explored. The data's options say of which training the report tells what it keeps."""

    max_photos: int = option(
        50_000, "look at so many photos at most, chosen by chance; 0: all", minimum=0
    )
    seed: int = option(0, "seed of that choice", minimum=0, maximum=2**32 - 1)
    out: str = option("explore", "folder for the page and its tables, a new or earlier one")
    experiment: str = option("shopee", "MLflow experiment that the run belongs to")


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Everything that decides a training run; the defaults train EfficientNet-B0."""

    model: str = option(
        "effnet_pretrained",
        "cnn, effnet, effnet_pretrained, or any torchvision classifier such as resnet50 or "
        "resnet50_pretrained",
    )
    weights: str = option(
        AUTO, "state-dict file to start from; auto: *_pretrained models download theirs"
    )
    freeze: str = option(
        NONE, "none, backbone (train the head only), or the last stage to freeze, e.g. features.5"
    )
    activation_dtype: str = option(
        AUTO,
        "numbers in which what frozen layers give is kept on the disk: float32, float16 (half the "
        "size), auto: float16 where float32 would take more than 4 GiB",
        choices=(AUTO, "float32", "float16"),
    )
    augment: bool = option(
        True, "with probability 0.5 one of horizontal flip, vertical flip, grayscale (train only)"
    )
    tta: bool = option(
        False,
        "the model answers with the mean over a photo and its mirror image (test-time "
        "augmentation, in test and serving); takes twice the time",
    )
    epochs: int = option(50, "passes over the training photos", minimum=1, maximum=100_000)
    batch_size: int = option(75, "photos in a training step", minimum=1, maximum=65_536)
    lr: float = option(0.01, "learning rate of SGD", above=0, maximum=100)
    momentum: float = option(0.9, "momentum of SGD", minimum=0, below=1)
    weight_decay: float = option(1e-4, "weight decay of SGD", minimum=0, maximum=10)
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
    clip_norm: float = option(0.0, "largest gradient norm; 0: not clipped", minimum=0)
    patience: int = option(
        0, "stop after this many epochs without a better val_accuracy; 0: never", minimum=0
    )
    seed: int = option(
        0, "seed of initial weights, order, augmentation, dropout", minimum=0, maximum=2**32 - 1
    )
    device: str = option(AUTO, "auto, cpu, cuda, cuda:N or mps")
    nproc: int = option(
        1, "processes on this machine that train one model together", minimum=1, maximum=1024
    )
    sync_batchnorm: bool = option(
        False, "batch norms see the whole batch of all processes (GPUs only)"
    )
    precision: str = option(
        AUTO,
        "fp32, bf16 or fp16 (mixed); auto: bf16 on a GPU that has it, else fp32",
        choices=(AUTO, "fp32", "bf16", "fp16"),
    )
    compile: str = option(
        AUTO,
        "torch.compile the training step, which takes a minute or two; auto: in runs that are long "
        "enough to pay for it",
        choices=(AUTO, "true", "false"),
    )
    serialization: str = option(
        "pickle",
        "pickle: the model can be trained on; pt2: a program that loads without running code",
        choices=("pickle", "pt2"),
    )
    resume: str = option(
        NONE, "go on with an interrupted training: its run's id, or 'last' for the latest"
    )
    register: bool = option(False, "register the model as shopee-classifier when the run has ended")
    promote: bool = option(False, "make it the champion even where it is not known to be better")
    experiment: str = option("shopee", "MLflow experiment that the run belongs to")
    run_name: str = option(AUTO, "name of the run in MLflow; auto: the model's name")
    config: str = option(NONE, "YAML file of options; the command line goes before it")


@dataclass(frozen=True)
class TuneConfig(TrainConfig):
    """Everything that decides a search, but the space, which a YAML file holds."""

    register: bool = option(True, "register the best model as shopee-classifier at the end")
    n_trials: int = option(20, "trials in all, those of earlier calls included", minimum=1)
    timeout: float = option(
        0.0, "start no trial after this many seconds; 0: no limit", minimum=0, maximum=10**9
    )
    jobs: int = option(1, "processes on this machine that run trials", minimum=1, maximum=256)
    study: str = option(AUTO, "name of the study; auto: the same for the same search")
    storage: str = option(
        AUTO,
        "where trials are kept: a file beside the tracking store (auto), another file, or a "
        "database that machines share, such as postgresql://user@host/name",
    )
    models: str = option(AUTO, "architectures to search over, separated by commas; auto: model")
    sampler: str = option("tpe", "how values are chosen", choices=("tpe", "random"))
    pruner: str = option(
        "median", "when a bad trial is given up", choices=("median", "hyperband", NONE)
    )


ConfigT = TypeVar("ConfigT", bound=DataConfig)


def resolve(
    cls: type[ConfigT], given: Mapping[str, Any], from_file: Mapping[str, Any] | None = None
) -> ConfigT:
    """Defaults, then the YAML file named by ``given["config"]``, then ``given`` itself.

    :param given: option name -> value or text, only those that somebody chose.
    :param from_file: what the file holds, where it has been read already.
    :raises ConfigError: with every unknown name, wrong type and value out of range at once.
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
    """The mapping of option names to values in a YAML file (plain YAML, no Python tags)."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            [f"config={path}: cannot be read ({error.strerror}), looked for from {Path.cwd()}"]
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"config={path}: is no valid YAML: {error}"]) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"config={path}: must hold lines of 'option: value'"])
    return {str(name): value for name, value in content.items()}


def as_params(config: DataConfig) -> dict[str, str]:
    """Every resolved option under its own name, as text: the parameters that a run logs."""
    return {f.name: as_text(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _contradictions(config: DataConfig) -> list[str]:
    """Options that are fine alone and make no sense together."""
    problems = []
    if isinstance(config, TrainConfig):
        if config.warmup_epochs > config.epochs:
            problems.append(
                f"warmup_epochs={as_text(config.warmup_epochs)}: must be at most "
                f"epochs={config.epochs}"
            )
        if config.resume != NONE and isinstance(config, TuneConfig):
            problems.append(
                f"resume={config.resume}: a search goes on by itself when its command is repeated"
            )
        if config.nproc > 1 and isinstance(config, TuneConfig):
            problems.append(f"nproc={config.nproc}: a search runs trials side by side with jobs")
        if config.nproc > config.batch_size:
            problems.append(
                f"nproc={config.nproc}: must be at most batch_size={config.batch_size}, so that "
                "each process has a photo of each batch"
            )
        if config.promote and not config.register:
            problems.append("promote=true: needs register=true")
        if config.weights != AUTO and not Path(config.weights).expanduser().is_file():
            problems.append(f"weights={config.weights}: no such file, looked for from {Path.cwd()}")
    if config.data == SAMPLE and config.images != AUTO:
        problems.append(f"images={config.images}: the built-in sample has its own; name data too")
    return problems
