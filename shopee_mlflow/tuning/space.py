"""The plan of a search: fixed options, search space and first trials. Does not use Optuna.

Searched options are in the section ``space`` of the YAML file, each as a range
(``{low: 0.0001, high: 0.1, log: true}``) or a list of values. All other options are those of
``train`` and are the same in every trial.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import PRETRAINED, TrainConfig, TuneConfig, resolve
from ..data_config import AUTO, NONE
from ..errors import ConfigError
from ..modeling.optim import AUTO_LR
from ..options import Role, as_text, parse_option, unknown_option, value_kind, with_role
from ..training.weights_source import initial_weights
from ..yaml_file import read_yaml

DEFAULT_FILE = Path(__file__).parents[2] / "experiments" / "tune.yaml"
# Settings of the original experiment; see docs/original.md.
ORIGINAL: Mapping[str, Any] = {
    "lr": 0.001,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 75,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "clip_norm": 0.0,
}
# Sections of a YAML file; all other names in it are options.
SECTIONS = ("space", "baseline", "sampler_settings", "pruner_settings")
_RANGE_KEYS = {"low", "high", "log", "step"}
# File systems allow 255, including the suffixes of the journal and its lock.
_MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Range:
    """A range of numbers from low to high, inclusive."""

    low: float
    high: float
    log: bool = False
    step: int | None = None
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            return False
        return self.step is None or (value - self.low) % self.step == 0

    def __str__(self) -> str:
        text = f"{as_text(self.low)} to {as_text(self.high)}"
        return text + (", log" if self.log else "") + (f", step {self.step}" if self.step else "")

    @property
    def ends(self) -> tuple[Any, ...]:
        """The outermost values."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of these values."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return "one of " + ", ".join(map(as_text, self.values))

    @property
    def ends(self) -> tuple[Any, ...]:
        """All of the values."""
        return self.values


@dataclass(frozen=True)
class SearchPlan:
    """A checked search: fixed options, the space, and the values of the baseline.

    :ivar cli_options: options as written on the command line.
    """

    config: TuneConfig
    space: Mapping[str, Range | Choice]
    baseline: Mapping[str, Any]
    sampler_settings: Mapping[str, Any] = field(default_factory=dict)
    pruner_settings: Mapping[str, Any] = field(default_factory=dict)
    cli_options: Mapping[str, str] = field(default_factory=dict)

    def trial_config(self, values: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a training with these values of the searched options.

        ``weights`` replaces a download, so architectures without pretrained weights ignore it.

        :raises ConfigError: if the values contradict each other.
        """
        given = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(TrainConfig)}
        given |= {"register": False, "promote": False, "config": NONE, **values}
        if "model" in self.space and not str(given["model"]).endswith(PRETRAINED):
            given["weights"] = AUTO
        return TrainConfig(**given)

    def baselines(self) -> list[dict[str, Any]]:
        """The first trials: the original's settings, once for each architecture."""
        start = self._start(self.baseline)
        models = self.space.get("model")
        if not isinstance(models, Choice):
            return [start]
        return [{**start, "model": name} for name in models.values]

    def defaults(self) -> dict[str, Any]:
        """The trial after the baselines: the package's defaults, for one architecture."""
        values = self._start({name: getattr(TrainConfig, name) for name in ORIGINAL})
        if "lr" in values and AUTO not in self.space["lr"]:
            values["lr"] = AUTO_LR[values.get("optimizer", self.config.optimizer)]
        return values

    def identity(self) -> dict[str, str]:
        """The settings, other than data, that must be the same in all calls of a study."""
        identifying = with_role(TuneConfig, Role.LEARNING, Role.DATA)
        facts = {
            f.name: as_text(getattr(self.config, f.name))
            for f in dataclasses.fields(TuneConfig)
            if f.name in identifying and f.name not in self.space
        }
        if weights := initial_weights(self.config.weights):
            facts["weights"] = weights.digest()
        facts |= {f"space.{name}": str(where) for name, where in sorted(self.space.items())}
        facts |= {f"baseline.{k}": as_text(v) for k, v in sorted(self.baseline.items())}
        for section in ("sampler_settings", "pruner_settings"):
            facts |= {f"{section}.{k}": as_text(v) for k, v in getattr(self, section).items()}
        return facts

    def study_name(self) -> str:
        """The option ``study``, or a name that depends only on the search and its files."""
        if self.config.study != AUTO:
            return self.config.study
        files = {name: getattr(self.config, name) for name in ("data", "images")}
        text = json.dumps([self.identity(), files], sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        many = isinstance(self.space.get("model"), Choice)
        return f"{'models' if many else self.config.model.replace('/', '-')}-{digest}"

    def _start(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Given values, even outside the space; else defaults that are in it, or an end of it."""
        values = {}
        for name, where in self.space.items():
            default = getattr(TrainConfig, name)
            values[name] = given.get(name, default if default in where else where.ends[0])
        return values


def plan_search(cli_options: Mapping[str, Any]) -> SearchPlan:
    """Defaults, then the YAML file (by default ``experiments/tune.yaml``), then ``cli_options``.

    An option in ``cli_options`` is not searched.

    :raises ConfigError: with all problems of options and space.
    """
    given = dict(cli_options)
    file = Path(str(given.setdefault("config", _near(DEFAULT_FILE))))
    content = read_yaml(file)
    sections = {name: content.pop(name, None) or {} for name in SECTIONS}
    problems = [
        f"{name}: must contain lines of 'name: value' (in {file})"
        for name, section in sections.items()
        if not isinstance(section, dict)
    ]
    if problems:
        raise ConfigError(problems)
    config = resolve(TuneConfig, given, content)
    space = {k: v for k, v in sections["space"].items() if k not in cli_options}
    problems += _check_name(config.study)
    problems += [
        f"{name}: is both fixed and searched; give it once (in {file})"
        for name in space
        if name in content
    ]
    if config.models != AUTO:
        if "model" in cli_options:
            given_model = f"model={cli_options['model']}"
            problems.append(f"{given_model}: models={config.models} overrides it; give one of them")
        space["model"] = [name.strip() for name in config.models.split(",") if name.strip()]
    parsed = {
        str(name): _in_words(problems, f"{file}, space", _read_where, name, where)
        for name, where in space.items()
    }
    baseline = dict(ORIGINAL)
    for name, value in sections["baseline"].items():
        baseline[name] = _in_words(problems, f"{file}, baseline", _read_value, name, value)
        if name in _searchable() and name not in {*sections["space"], *space}:
            problems.append(f"{name}: has a baseline but is not searched (in {file}, baseline)")
    if not space:
        problems.append(f"space: nothing to search (in {file})")
    if problems:
        raise ConfigError(problems)
    baseline = {name: value for name, value in baseline.items() if name in parsed}
    plan = SearchPlan(
        config,
        parsed,
        baseline,
        sections["sampler_settings"],
        sections["pruner_settings"],
        {name: as_text(value) for name, value in cli_options.items()},
    )
    _check_ends(plan)
    return plan


def _check_name(study: str) -> list[str]:
    """A study's name becomes the name of a file, and is shown on terminals and pages."""
    short = len(study.encode(errors="replace")) <= _MAX_NAME_BYTES
    if short and study.isprintable() and not set(study) & set("/\\"):
        return []
    return [
        f"study={study!r}: a name has at most {_MAX_NAME_BYTES} bytes and no slashes, "
        "backslashes or control characters"
    ]


def _near(file: Path) -> Path:
    """A path relative to the working folder if possible, since runs log it on every machine."""
    if not file.is_file():
        raise ConfigError(
            [f"config: {file} not found; run this in a checkout, or give a file with a space"]
        )
    here = Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _in_words(problems: list[str], place: str, read: Any, name: Any, value: Any) -> Any:
    try:
        return read(str(name), value)
    except ValueError as error:
        problems.append(f"{error} (in {place})")
        return None


def _searchable() -> dict[str, dataclasses.Field[Any]]:
    names = with_role(TrainConfig, Role.LEARNING)
    return {f.name: f for f in dataclasses.fields(TrainConfig) if f.name in names}


def _read_value(name: str, value: Any) -> Any:
    if name not in _searchable():
        raise ValueError(unknown_option(name, _searchable()).replace("option", "searched option"))
    return parse_option(TrainConfig, name, value)


def _read_where(name: str, where: Any) -> Range | Choice:
    if name not in _searchable():
        if name in {f.name for f in dataclasses.fields(TuneConfig)}:
            raise ValueError(
                f"{name}: no option that can be searched. It is the same in all trials; set it "
                "outside of space"
            )
        known = unknown_option(name, _searchable())
        raise ValueError(known.replace("no such option", "no option that can be searched"))
    if isinstance(where, list):
        values = tuple(parse_option(TrainConfig, name, value) for value in where)
        if not values:
            raise ValueError(f"{name}: the list is empty")
        if len(set(values)) < len(values):
            raise ValueError(f"{name}: a value is repeated in {where}")
        return Choice(values)
    kind = value_kind(_searchable()[name])
    if not isinstance(where, dict) or kind not in ("int", "float"):
        form = " or {low: ..., high: ...}" if kind in ("int", "float") else ""
        raise ValueError(f"{name}={where}: must be a list of values{form}")
    return _read_range(name, where, whole=kind == "int")


def _read_range(name: str, where: Mapping[str, Any], whole: bool) -> Range:
    unknown = set(where) - _RANGE_KEYS
    if unknown or not {"low", "high"} <= set(where):
        raise ValueError(f"{name}={dict(where)}: a range has low and high, and may have log, step")
    low, high = (parse_option(TrainConfig, name, where[end]) for end in ("low", "high"))
    if AUTO in (low, high):
        raise ValueError(f"{name}: a range has numbers, not {AUTO}")
    log, step = where.get("log", False), where.get("step")
    if low >= high:
        raise ValueError(f"{name}: low {as_text(low)} must be below high {as_text(high)}")
    if not isinstance(log, bool):
        raise ValueError(f"{name}: log={log} must be true or false")
    if log and low <= 0:
        raise ValueError(f"{name}: low {as_text(low)} must be above 0 on a log scale")
    if step is not None and (not whole or log or not isinstance(step, int) or step < 1):
        raise ValueError(
            f"{name}: step={step} must be a whole number, for whole numbers without log"
        )
    if step is not None and (high - low) % step:
        raise ValueError(f"{name}: high {high} must be low {low} plus a multiple of step {step}")
    return Range(low, high, log, step, whole)


def _check_ends(plan: SearchPlan) -> None:
    """Combine every outermost value with the baseline, to find contradictions early."""
    problems: list[str] = []
    start = plan.baselines()[0]
    trials = [
        start,
        plan.defaults(),
        *({**start, k: end} for k, where in plan.space.items() for end in where.ends),
    ]
    for values in trials:
        try:
            plan.trial_config(values)
        except ConfigError as error:
            problems += [p for p in error.problems if p not in problems]
    architectures = len(plan.baselines())
    if plan.config.n_trials < architectures:
        problems.append(
            f"n_trials={plan.config.n_trials}: must be at least {architectures}, one with the "
            "original's settings for each architecture"
        )
    if problems:
        raise ConfigError(problems)
