"""The command line: one command a verb. Parse, call, print, exit code.

Imports of torch and MLflow wait inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from . import __version__
from .config import DataConfig, ExploreConfig, TrainConfig, TuneConfig, resolve
from .console import fail, guard_output, say, show_log_messages
from .errors import ConfigError, GroupLostError, ShopeeError
from .options import allowed, as_text, unknown_option

_INTERRUPTED = 130
_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Command(click.Command):
    """A command whose options may be spelled with - or _, and that lists them for an unknown one.

    ``mlflow run -P batch_size=32`` calls it with ``--batch_size 32``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            names = [p.name for p in self.params if isinstance(p, click.Option) and p.name]
            raise ConfigError([unknown_option(error.option_name.lstrip("-"), names)]) from error

    def invoke(self, ctx: click.Context) -> Any:
        size = os.environ.get("WORLD_SIZE", "1")
        if self.name != "train" and size != "1" and "TORCHELASTIC_RUN_ID" in os.environ:
            others = "; for a search on several processes see its options jobs and storage"
            raise ConfigError(
                [
                    f"torchrun has started {size} processes, and {self.name} would do the same in "
                    f"each. Only train shares its work among them{others * (self.name == 'tune')}"
                ]
            )
        return super().invoke(ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shopee_mlflow")
def cli() -> None:
    """Train, compare and register product-photo classifiers with MLflow."""


def _verb(
    name: str, config: type[DataConfig] | None = None
) -> Callable[[_Function], click.Command]:
    """A command, with an option for each field of a configuration where one is given.

    All values are passed as text and checked by the configuration, so that YAML, Python and the
    command line behave alike and all problems are reported together.
    """

    def decorate(function: _Function) -> click.Command:
        settings = {"token_normalize_func": lambda token: token.replace("-", "_")}
        command = click.command(name, cls=_Command, context_settings=settings)(function)
        for field in dataclasses.fields(config) if config else ():
            choices = field.metadata["choices"]
            text = field.metadata["help"]
            help_text = f"{text}; {allowed(field)}" if choices else text
            option = click.Option(
                [f"--{field.name.replace('_', '-')}", field.name],
                metavar=str(field.type).upper().replace("STR", "TEXT"),
                help=f"{help_text}  [default: {as_text(field.default)}]",
            )
            command.params.append(option)
        cli.add_command(command)
        return command

    return decorate


@_verb("train", TrainConfig)
def train_command(**options: str | None) -> None:
    """Train a classifier, evaluate it once on the test split, log everything to MLflow."""
    cli_options = _chosen(options)
    config = resolve(TrainConfig, cli_options)
    if config.nproc > 1 and "RANK" not in os.environ:
        from .training.launch import start_group

        start_group(config.nproc, ["train", *_words(cli_options)])
    from .verbs.train import train

    train(config, cli_options)


@_verb("tune", TuneConfig)
def tune_command(**options: str | None) -> None:
    """Search learning rate, weight decay, batch size or a YAML file's space; keep the best model.

    After any interruption the same command resumes. Options given here are not searched.
    """
    from .verbs.tune import tune

    tune(_chosen(options))


@_verb("experiments", TrainConfig)
@click.option(
    "--files", default="", help="Experiment files, separated by commas. [default: the original's]"
)
def experiments_command(files: str, **options: str | None) -> None:
    """Run several experiment files, each a run of its own, and print the comparison.

    Options given here override those in the files, for instance --epochs 5; --weights applies to
    pretrained models only.
    """
    from .verbs.experiments import original_table, run_experiments

    chosen = [Path(name) for name in files.split(",") if name] or original_table()
    sys.exit(1 if run_experiments(chosen, _chosen(options)) else 0)


@_verb("explore", ExploreConfig)
def explore_command(**options: str | None) -> None:
    """Describe a catalogue before training: a page and tables from the CSV, and the photos if any.

    Photos are not cached; --cache has no effect.
    """
    cli_options = _chosen(options)
    config = resolve(ExploreConfig, cli_options)
    from .verbs.explore import explore

    explore(config, cli_options)


@_verb("evaluate")
@click.option("--model", required=True, help="MLflow model URI: models:/NAME@ALIAS, runs:/ID/model")
@click.option("--data", default="auto", help="Labelled catalogue: folder or table.")
@click.option("--images", default="auto", help="Folder of the photos; auto: beside the CSV.")
@click.option("--image-column", default="auto", help="Column of file names.")
@click.option("--label-column", default="auto", help="Column of labels.")
@click.option("--run", help="Training run whose test split is scored.")
@click.option(
    "--experiment", default="shopee-analysis", help="MLflow experiment of the evaluation."
)
def evaluate_command(**options: Any) -> None:
    """Score a logged model on a labelled catalogue, or on the test split of a training run."""
    from .verbs.evaluate import evaluate

    evaluate(**options)


@_verb("compare")
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
    """Compare runs on one page: options, curves, and which differences are significant."""
    from .verbs.compare import compare

    compare(runs.split(","), **options)


@_verb("predict")
@click.option("--model", required=True, help="MLflow model URI: models:/NAME@ALIAS, runs:/ID/model")
@click.option("--source", required=True, help="A photo, a folder, a pattern, or a table.")
@click.option("--images", help="Folder of a table's photos; default: beside it.")
@click.option("--image-column", default="auto", help="Column of a table's file names.")
@click.option(
    "--out", default="predictions.csv", show_default=True, type=click.Path(path_type=Path)
)
@click.option("--top-k", default=1, show_default=True, type=click.IntRange(1))
@click.option(
    "--workers", default=0, show_default=True, type=click.IntRange(0), help="0: all cores."
)
def predict_command(out: Path, **options: Any) -> None:
    """Classify photos into a CSV; after an interruption the same call continues."""
    from .verbs.predict import predict

    predict(out=out, **options)


@_verb("register")
@click.option("--run", required=True, help="Run whose model is registered.")
@click.option("--name", default="shopee-classifier", show_default=True)
@click.option("--promote", default=False, help="true: make it the champion whatever it scored.")
def register_command(run: str, name: str, promote: bool) -> None:
    """Register the model of a run; the champion moves only for a better one on the same split."""
    from .verbs.register import register

    register(run, name, promote=promote)


@_verb("export")
@click.option("--model", required=True, help="MLflow model URI: models:/NAME@ALIAS, runs:/ID/model")
@click.option("--out", default="model.onnx", show_default=True, type=click.Path(path_type=Path))
def export_command(model: str, out: Path) -> None:
    """Write a logged model as an ONNX file, verified against torch."""
    from .verbs.export import export

    export(model, out)


@_verb("sample")
@click.option("--px", default=256, show_default=True, help="Side of the photos in pixels.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default: the cache folder.")
def sample_command(px: int, out: Path | None) -> None:
    """Draw the built-in sample catalogue and print its folder."""
    from .console import watch
    from .sample import sample_catalog

    say(str(sample_catalog(px, out, progress=watch("drawing the sample catalogue"))))


@_verb("clear-cache")
def clear_cache_command() -> None:
    """Delete decoded photos and activations from the cache folder; they are computed again."""
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
    guard_output()
    show_log_messages()
    try:
        cli.main(arguments, prog_name="shopee_mlflow", standalone_mode=False)
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
        from .tracking.runs import end_unopened_run

        end_unopened_run(reason, status)
