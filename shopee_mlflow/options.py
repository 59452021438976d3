"""Options: dataclass fields with a help text, allowed values and a role."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
# A number that may be auto has this type annotation.
_AUTO, _OR_AUTO = "auto", " | str"
# Former option names and their new ones.
RENAMED = {"top_k": "largest_groups", "activations": "activation_dtype"}
# Names of options in other tools, and ours.
_SYNONYMS = {
    "lr": "learning_rate base_lr lr0 lrate",
    "epochs": "num_epochs n_epochs num_train_epochs max_epochs n_epoch steps",
    "batch_size": "batch bs per_device_train_batch_size train_batch_size minibatch",
    "weight_decay": "wd decay l2",
    "optimizer": "opt optim optimiser",
    "schedule": "scheduler lr_scheduler lr_schedule sched",
    "warmup_epochs": "warmup warmup_steps",
    "loss": "criterion objective loss_fn",
    "label_smoothing": "smoothing",
    "class_weights": "class_weight balanced",
    "clip_norm": "clip grad_clip clip_grad gradient_clip_val max_grad_norm",
    "augment": "augmentation augmentations aug transforms transform",
    "model": "arch architecture backbone network net encoder model_name uri model_uri",
    "models": "architectures archs backbones",
    "weights": "pretrained pretrained_weights checkpoint ckpt initial_checkpoint state_dict",
    "freeze": "frozen freeze_backbone freeze_layers",
    "image_size": "img_size imgsz size input_size resolution image_px img px side",
    "sample_px": "sample_size",
    "device": "gpu gpus cuda accelerator",
    "nproc": "processes nproc_per_node num_gpus ngpus world_size num_processes",
    "jobs": "n_jobs parallel",
    "workers": "num_workers n_workers threads",
    "precision": "amp fp16 bf16 half dtype mixed_precision",
    "data": "dataset data_dir data_path csv train_csv root catalogue catalog",
    "source": "input inputs photos photo path data file",
    "images": "image_dir images_dir image_folder img_dir train_images photos",
    "largest_groups": "num_classes n_classes classes groups",
    "min_group": "min_count min_samples",
    "split": "split_mode val_split test_split",
    "split_seed": "data_seed",
    "folds": "n_folds num_folds k kfold k_folds cv n_splits",
    "seed": "random_seed random_state manual_seed",
    "patience": "early_stopping early_stop",
    "monitor": "metric",
    "tta": "test_time_augmentation",
    "resume": "resume_from resume_from_checkpoint continue restart",
    "config": "cfg config_file yaml conf",
    "run": "run_id id",
    "runs": "run run_id run_ids ids",
    "run_name": "name",
    "name": "run_name model_name registered_name registered_model",
    "experiment": "experiment_name project",
    "out": "output output_dir out_dir save_dir dest o",
    "top_k": "topk k top",
    "n_trials": "trials num_trials max_trials",
    "timeout": "max_time time_limit",
    "max_photos": "limit max_images max_samples sample",
}


class Group(Enum):
    """The headings of ``--help`` in the order in which they are printed."""

    SEARCH = "Search"
    DATA = "Data"
    MODEL = "Model"
    TRAINING = "Training"
    EVALUATION = "Evaluation"
    TRACKING = "MLflow"
    RUNNING = "Running"


class Role(Enum):
    """What an option affects: whether a resumed run may change it, and a search may vary it.

    A resumed run keeps all options except those of SETUP. A study is identified by its LEARNING
    and DATA options.
    """

    LEARNING = "what is learned; can be searched"
    DATA = "the photos, or how results are judged: the same for all trials of a search"
    RECORD = "how results are stored; fixed for a run, no part of the result"
    SETUP = "where things are and how to compute; may differ when a run is resumed"


def option(
    default: Any,
    help: str,
    role: Role = Role.LEARNING,
    *,
    choices: Iterable[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    former: Mapping[str, str] | None = None,
    begins: Group | None = None,
    details: str = "",
) -> Any:
    """A dataclass field with metadata for the command line and for validation.

    :param help: a line of ``--help``.
    :param begins: the group in ``--help`` of this option and of those that follow it.
    :param former: former values of the option -> their current names.
    :param details: sentences for the option reference, where ``help`` is too short.
    """
    metadata = {
        "help": help,
        "role": role,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "former": dict(former or {}),
        "begins": begins,
        "details": details,
    }
    return dataclasses.field(default=default, metadata=metadata)


def with_role(cls: type[Any], *roles: Role) -> set[str]:
    """Names of the options that have one of these roles."""
    return {f.name for f in dataclasses.fields(cls) if f.metadata["role"] in roles}


def by_group(cls: type[Any]) -> dict[Group, list[dataclasses.Field[Any]]]:
    """The options of a configuration by their group in ``--help``, in the order of the groups."""
    groups: dict[Group, list[dataclasses.Field[Any]]] = {group: [] for group in Group}
    current = None
    for field in dataclasses.fields(cls):
        current = field.metadata["begins"] or current
        if current is None:
            raise TypeError(f"{field.name}: no option before it begins a group")
        groups[current].append(field)
    return {group: fields for group, fields in groups.items() if fields}


def as_text(value: object) -> str:
    """The canonical text of a value, used in MLflow, in YAML and in messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def allowed(field: dataclasses.Field[Any]) -> str:
    """A description of the values that an option allows."""
    rules = field.metadata
    if rules["choices"]:
        return "one of " + ", ".join(rules["choices"])
    kind = value_kind(field)
    if kind == "bool":
        return "true or false"
    if kind == "str":
        return "text"
    low = _bound(rules["minimum"], "at least") or _bound(rules["above"], "above")
    high = _bound(rules["maximum"], "at most") or _bound(rules["below"], "below")
    limits = " and ".join(part for part in (low, high) if part)
    number = f"{'a whole number' if kind == 'int' else 'a number'} {limits}".strip()
    return f"{number}, or {_AUTO}" if _takes_auto(field) else number


def unknown_option(name: str, names: Iterable[str]) -> str:
    """The message for an unknown option: its new name, the likely ones, or else all names."""
    known, given = sorted(names), name.replace("-", "_").lower()
    renamed = RENAMED.get(given)
    if renamed in known:
        return f"{name}: this option is now called {renamed}"
    words = {word: ours for ours in known for word in [*_SYNONYMS.get(ours, "").split(), ours]}
    likely = list(dict.fromkeys(words[word] for word in nearest(given, words)))
    if likely:
        return f"{name}: no such option. Did you mean {' or '.join(likely)}?"
    return f"{name}: no such option. The options are: {', '.join(known)}"


def expand_path(path: str | Path) -> Path:
    """A path with ``~`` as the home folder; unchanged if there is no such user, as in shells."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises an error then


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known name that is spelled most like another one; up to three if equally close.

    :returns: an empty list if none is close.
    """
    close = difflib.get_close_matches(name, list(known), n=3)
    likeness = [difflib.SequenceMatcher(None, found, name).ratio() for found in close]
    return [found for found, ratio in zip(close, likeness, strict=True) if ratio == likeness[0]]


def _bound(value: float | None, words: str) -> str:
    return "" if value is None else f"{words} {value:g}" if value < 1e6 else f"{words} {value:,}"


def value_kind(field: dataclasses.Field[Any]) -> str:
    """The type of an option's values: int, float, bool or str; ``auto`` aside."""
    return str(field.type).removesuffix(_OR_AUTO)


def _takes_auto(field: dataclasses.Field[Any]) -> bool:
    return str(field.type).endswith(_OR_AUTO)


def parse_option(cls: type[Any], name: str, raw: Any) -> Any:
    """Convert a value to the type of its option and check it.

    :raises ValueError: naming the option and its allowed values.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if name not in fields:
        raise ValueError(unknown_option(name, fields))
    field = fields[name]
    try:
        auto = _takes_auto(field) and as_text(raw).strip() == _AUTO
        value = _AUTO if auto else _convert(value_kind(field), raw)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{name}={raw}: must be {allowed(field)}") from None
    former = field.metadata["former"].get(as_text(raw).lower())
    if former:
        raise ValueError(f"{name}={as_text(raw)}: is now {name}={former}")
    if not _within(value, field.metadata):
        raise ValueError(f"{name}={raw}: must be {allowed(field)}")
    return value


def _convert(kind: str, raw: Any) -> Any:
    if not isinstance(raw, (str, int, float, PurePath)):
        raise ValueError
    text = as_text(raw).strip()
    if kind == "bool":
        if text.lower() not in _TRUE | _FALSE:
            raise ValueError
        return text.lower() in _TRUE
    if isinstance(raw, bool) and kind != "str":
        raise ValueError
    if kind == "int":
        number = float(text)
        return int(text) if not number.is_integer() or abs(number) >= 2**53 else int(number)
    if kind == "float":
        return float(text)
    if not text:
        raise ValueError
    return text


def _within(value: Any, rules: Mapping[str, Any]) -> bool:
    if rules["choices"]:
        return value in rules["choices"]
    if isinstance(value, (str, bool)):
        return True
    return (
        math.isfinite(value)
        and (rules["minimum"] is None or value >= rules["minimum"])
        and (rules["maximum"] is None or value <= rules["maximum"])
        and (rules["above"] is None or value > rules["above"])
        and (rules["below"] is None or value < rules["below"])
    )
