"""Train a list of experiment files: a parent run, a child run for each file, a table."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..config import PRETRAINED, TrainConfig, resolve
from ..console import duration, say, watch
from ..data.catalog_forms import check_paths, load_catalog
from ..errors import ConfigError, ShopeeError
from ..tracking.names import EXPERIMENTS, PROCESS_TAG
from ..tracking.processes import process_name
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run
from ..training.resume import close_stale_runs
from ..yaml_file import read_yaml
from .train import train

_FOLDER = Path(__file__).parents[2] / "experiments"
# Options that cannot be given for all experiments at once.
_OWN = ("config", "run_name", "resume")
_ORIGINAL = ("cnn", "cnn_augmented", "effnet", "effnet_pretrained", "effnet_pretrained_batch75")


def original_table() -> list[Path]:
    """The files of the original experiment's table, in its order.

    :raises ConfigError: when this package was installed without the project around it.
    """
    files = [_FOLDER / f"{name}.yaml" for name in _ORIGINAL]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise ConfigError(
            [f"files: {', '.join(missing)} not found; run this in a checkout or name files"]
        )
    # Relative paths where possible, since runs log them: they are the same on every machine.
    here = Path.cwd()
    return [file.relative_to(here) if file.is_relative_to(here) else file for file in files]


def run_experiments(files: Sequence[Path], cli_options: Mapping[str, str]) -> int:
    """Train each file's configuration and print the table of results.

    When one fails, the others still run. All configurations are checked before the first training.

    :param cli_options: options for all of them; they override those in the files.
    :returns: the number of failures.
    """
    _check_call(files, cli_options)
    options = {file.stem: _options_for(file, cli_options) for file in files}
    configs = {name: resolve(TrainConfig, given) for name, given in options.items()}
    experiment = next(iter(configs.values())).experiment
    for config in configs.values():
        # Before a run is opened, so that a mistyped path leaves no failed run.
        check_paths(config)
        load_catalog(config, watch)
    rows: list[dict[str, Any]] = []
    close_stale_runs(experiment)
    mine = {PROCESS_TAG: process_name(), "host": platform.node()}
    with open_run("experiments", experiment, kind=EXPERIMENTS, tags=mine) as parent:
        for name, config in configs.items():
            say(f"--- {name} ({len(rows) + 1} of {len(configs)})")
            rows.append(_run_one(parent, name, config, options[name]))
        table = pd.DataFrame(rows)
        parent.log_table(table, "comparison.csv")
        say("", table.to_string(index=False, na_rep=""))
    return sum(row["failure"] != "" for row in rows)


def _check_call(files: Sequence[Path], cli_options: Mapping[str, str]) -> None:
    problems = [
        f"{name}: each experiment has its own; leave it out" for name in _OWN if name in cli_options
    ]
    stems = [file.stem for file in files]
    problems += [f"files: two are called {s}" for s in sorted(set(stems)) if stems.count(s) > 1]
    if problems:
        raise ConfigError(problems)


def _options_for(file: Path, cli_options: Mapping[str, str]) -> dict[str, str]:
    """Options for one file; ``weights`` replaces a download, so it applies to pretrained models."""
    given = {**cli_options, "config": str(file)}
    model = str(read_yaml(file).get("model", TrainConfig.model))
    if not cli_options.get("model", model).endswith(PRETRAINED):
        given.pop("weights", None)
    return given


def _run_one(
    parent: RunLog, name: str, config: TrainConfig, cli_options: Mapping[str, str]
) -> dict[str, Any]:
    row: dict[str, Any] = {"experiment": name, "model": config.model, "split": config.split}
    started = time.monotonic()
    try:
        result = train(config, cli_options, parent=parent, name=name)
    except (ShopeeError, RuntimeError) as error:  # such as out of memory
        say(f"{name} failed: {error}")
        return {**row, "failure": str(error).splitlines()[0]}
    scores = result.scores
    interval = f"{scores['test_accuracy_low']:.1%} to {scores['test_accuracy_high']:.1%}"
    return {
        **row,
        "epochs": len(result.history),
        "best_val_accuracy": f"{scores['best_val_accuracy']:.1%}",
        "test_accuracy": f"{scores['test_accuracy']:.1%}",
        "95 % interval": interval,
        "test photos": len(result.test_labels),
        "copies in train": result.dataset.leaks,
        "time": duration(time.monotonic() - started),
        "failure": "",
    }
