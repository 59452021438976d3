"""The command line: one command a verb. Parse, call, print, exit code.

Imports of torch and MLflow wait inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import __version__
from .analysis_config import ExploreConfig, MatchConfig
from .click_commands import Commands
from .config import CrossValidateConfig, TrainConfig, TuneConfig, resolve
from .console import fail, guard_output, say, show_log_messages
from .errors import GroupLostError, ShopeeError, disk_full
from .loading import loading

_INTERRUPTED = 130

_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Commands, context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="shopee-mlflow")
def cli() -> None:
    """Train, compare and register product-photo classifiers with MLflow.

    The commands, in the order of the work; COMMAND --help shows the options of one.
    """


@cli.verb("sample")
@click.option("--px", default=256, show_default=True, help="Side of the photos in pixels.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default: the cache folder.")
def sample_command(px: int, out: Path | None) -> None:
    """Draw the built-in sample catalogue and print its folder."""
    from .console import watch
    from .sample import sample_catalog

    say(str(sample_catalog(px, out, progress=watch("drawing the sample catalogue"))))


@cli.verb("explore", ExploreConfig)
def explore_command(**options: str | None) -> None:
    """Describe a catalogue before training: a page and tables.

    They come from the CSV, and from the photos if there are any. Photos are not cached; --cache has
    no effect.

    \b
    Example:
      shopee-mlflow explore --data shop/ --out shop-explored
    """
    cli_options = _chosen(options)
    config = resolve(ExploreConfig, cli_options)
    with loading(f"the catalogue ({config.data})", "pandas", "MLflow"):
        from .verbs.explore import explore

    explore(config, cli_options)


@cli.verb("train", TrainConfig)
def train_command(**options: str | None) -> None:
    """Train a classifier, test it once, log it to MLflow.

    \b
    Examples:
      shopee-mlflow train                                            on the built-in sample
      shopee-mlflow train --data shop/ --freeze backbone --lr 0.05   the head only: fast on a CPU
      shopee-mlflow train --data shop/ --config experiments/finetune.yaml --epochs 20
      shopee-mlflow train --resume last                              after an interruption

    Defaults are in brackets. Names in a YAML file are the same, with underscores.
    """
    cli_options = _chosen(options)
    config = resolve(TrainConfig, cli_options)
    if config.nproc > 1 and "RANK" not in os.environ:
        say(f"starting {config.nproc} processes with torchrun")
        from .training.launch import start_group

        start_group(config.nproc, ["train", *_words(cli_options)])
    with loading("the model", "torch", "MLflow"):
        from .verbs.train import train

    train(config, cli_options)


@cli.verb("tune", TuneConfig)
def tune_command(**options: str | None) -> None:
    """Search training options and keep the best model.

    The space is in a YAML file; by default it has learning rate, weight decay and batch size.
    Options given here are not searched. After any interruption the same command resumes.

    \b
    Examples:
      shopee-mlflow tune --data shop/ --freeze backbone --n-trials 30
      shopee-mlflow tune --data shop/ --models effnet_pretrained,resnet50_pretrained
    """
    with loading("the models", "torch", "MLflow"):
        from .verbs.tune import tune

    tune(_chosen(options))


@cli.verb("cross-validate", CrossValidateConfig)
def cross_validate_command(**options: str | None) -> None:
    """Test every photo once, and say how sure the accuracy is.

    The photos are divided into folds; each is tested by a model trained on the others. After any
    interruption the same command resumes.

    \b
    Examples:
      shopee-mlflow cross-validate --data shop/ --freeze backbone
      shopee-mlflow cross-validate --data shop/ --folds 10 --refit true --register true
    """
    cli_options = _chosen(options)
    config = resolve(CrossValidateConfig, cli_options)
    with loading("the model", "torch", "MLflow"):
        from .verbs.cross_validate import cross_validate

    cross_validate(config, cli_options)


@cli.verb("evaluate")
@click.option("--model", required=True, help="MLflow model URI: models:/NAME@ALIAS, runs:/ID/model")
@click.option("--data", default="auto", help="Labelled catalogue: folder or table.")
@click.option("--images", default="auto", help="Folder of the photos; auto: beside the CSV.")
@click.option("--image-column", default="auto", help="Column of file names.")
@click.option("--label-column", default="auto", help="Column of labels.")
@click.option("--label-folder", default="auto", help="Label of nested photos: first or path.")
@click.option("--run", help="Training run whose test split is scored.")
@click.option(
    "--experiment", default="shopee-analysis", help="MLflow experiment of the evaluation."
)
def evaluate_command(**options: Any) -> None:
    """Score a logged model on labelled photos or a test split.

    \b
    Examples:
      shopee-mlflow evaluate --model models:/shopee-classifier@champion --data new-shop/
      shopee-mlflow evaluate --model runs:/RUN_ID/model --run RUN_ID
    """
    with loading(f"the model {options['model']}", "torch", "MLflow"):
        from .verbs.evaluate import evaluate

    evaluate(**options)


@cli.verb("compare")
@click.option("--runs", default="", help="Ids of runs, separated by commas.")
@click.option("--experiment", help="Instead: the best finished trainings of this experiment.")
@click.option(
    "--best",
    default=5,
    show_default=True,
    type=click.IntRange(2),
    help="So many of them, by best_val_accuracy.",
)
@click.option(
    "--out", default="comparison", show_default=True, type=click.Path(path_type=Path), help="Folder"
)
def compare_command(runs: str, **options: Any) -> None:
    """Compare runs on a page: what differs, and what is better.

    \b
    Examples:
      shopee-mlflow compare --experiment shopee --best 3
      shopee-mlflow compare --runs RUN_ID,RUN_ID --out comparison
    """
    with loading("the runs", "MLflow"):
        from .verbs.compare import compare

    compare(runs.split(","), **options)


@cli.verb("predict")
@click.option("--model", required=True, help="MLflow model URI: models:/NAME@ALIAS, runs:/ID/model")
@click.option("--source", required=True, help="A photo, a folder, a pattern, or a table.")
@click.option("--images", help="Folder of a table's photos; default: beside it.")
@click.option("--image-column", default="auto", help="Column of a table's file names.")
@click.option(
    "--out", default="predictions.csv", show_default=True, type=click.Path(path_type=Path)
)
@click.option("--top-k", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--unknown",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "none"]),
    help="Photos of no label group; auto: answer unknown if the model can; none: always a group.",
)
@click.option(
    "--workers", default=0, show_default=True, type=click.IntRange(0), help="0: all cores."
)
def predict_command(out: Path, **options: Any) -> None:
    """Classify photos into a CSV.

    After an interruption the same call continues.

    \b
    Example:
      shopee-mlflow predict --model models:/shopee-classifier@champion --source photos/ --top-k 3
    """
    with loading(f"the photos ({options['source']})", "torch", "MLflow"):
        from .verbs.predict import predict

    predict(out=out, **options)


@cli.verb("match", MatchConfig)
def match_command(**options: str | None) -> None:
    """Find the postings that show the same product.

    By titles, phashes and, with --model, photos. If there are label groups, half of them choose
    the matcher and the others score it.

    \b
    Examples:
      shopee-mlflow match --data shop/
      shopee-mlflow match --data shop/ --test-csv shop/test.csv      also writes submission.csv
    """
    cli_options = _chosen(options)
    config = resolve(MatchConfig, cli_options)
    with loading(f"the catalogue ({config.data})", "scikit-learn", "MLflow"):
        from .verbs.match import match

    match(config, cli_options)


@cli.verb("register")
@click.option("--run", required=True, help="Run whose model is registered.")
@click.option("--name", default="shopee-classifier", show_default=True)
@click.option("--promote", default=False, help="true: make it the champion whatever it scored.")
def register_command(run: str, name: str, promote: bool) -> None:
    """Register the model of a run, as champion if it is better.

    Better: on the same test split, or in the same folds. --promote true makes it the champion
    whatever it scored.
    """
    with loading(f"run {run}", "MLflow"):
        from .verbs.register import register

    register(run, name, promote=promote)


@cli.verb("export")
@click.option("--model", required=True, help="MLflow model URI: models:/NAME@ALIAS, runs:/ID/model")
@click.option("--out", default="model.onnx", show_default=True, type=click.Path(path_type=Path))
def export_command(model: str, out: Path) -> None:
    """Write a model as an ONNX file, verified against torch."""
    with loading(f"the model {model}", "torch", "MLflow"):
        from .verbs.export import export

    export(model, out)


@cli.verb("experiments", TrainConfig)
@click.option(
    "--files", default="", help="Experiment files, separated by commas. [default: the original's]"
)
def experiments_command(files: str, **options: str | None) -> None:
    """Train several experiment files and print their table.

    Each file is a run of its own. Options given here override those in the files, for instance
    --epochs 5; --weights applies to pretrained models only.
    """
    with loading("the experiment files", "torch", "MLflow"):
        from .verbs.experiments import original_table, run_experiments

    chosen = [Path(name) for name in files.split(",") if name] or original_table()
    sys.exit(1 if run_experiments(chosen, _chosen(options)) else 0)


@cli.verb("clear-cache")
def clear_cache_command() -> None:
    """Delete cached photos and activations.

    They are computed again when they are needed.
    """
    from .cache_folder import cache_folder
    from .data.array_cache import clear_cache

    say(f"{clear_cache() / 2**20:,.0f} MiB freed in {cache_folder()}")


def _chosen(options: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def _words(cli_options: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in cli_options.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: runs a command and ends the process with its exit code.

    0: done; 1: training failed; 2: an error that the user can correct; 130: interrupted.
    """
    # The interpreter's last collection, over all modules, takes seconds with torch loaded.
    atexit.register(gc.freeze)
    guard_output()
    show_log_messages()
    try:
        cli.main(arguments, prog_name="shopee-mlflow", standalone_mode=False)
    except GroupLostError as error:
        # The other process, or torchrun, reports why it is gone.
        fail(str(error))
        sys.exit(error.exit_code)
    except ShopeeError as error:
        _fail_before_run(str(error))
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail_before_run(error.format_message())
        sys.exit(error.exit_code)
    except OSError as error:
        message = disk_full(error)
        if not message:
            raise
        _fail_before_run(message)
        sys.exit(ShopeeError.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        # click wraps the interruption, and with it the reason
        reason = str(error) or str(error.__cause__ or "") or "interrupted"
        fail(f"stopped: {reason}")
        _end_unopened_run(reason, "KILLED")
        sys.exit(_INTERRUPTED)


def _fail_before_run(message: str) -> None:
    fail(message)
    _end_unopened_run(message, "FAILED")


def _end_unopened_run(reason: str, status: str) -> None:
    """End the run that ``mlflow run`` has created, if the command has not opened it."""
    if "MLFLOW_RUN_ID" in os.environ:
        from .tracking.unopened_runs import end_unopened_run

        end_unopened_run(reason, status)
