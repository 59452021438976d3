"""The project's kind of click command: options by group, errors with a hint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from .data_config import DataConfig
from .errors import ConfigError
from .options import Group, allowed, as_text, by_group, unknown_option

# The option that is meant by a value without a name; the first one that a command has.
_USUAL = ("data", "runs", "run", "source", "out")
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Commands(click.Group):
    """Lists the commands in the order in which they are added: that of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)

    def verb(
        self, name: str, config: type[DataConfig] | None = None
    ) -> Callable[[_Function], click.Command]:
        """A command, with an option for each field of a configuration where one is given.

        All values are passed as text and checked by the configuration, so that YAML, Python and the
        command line behave alike and all problems are reported together.
        """

        def decorate(function: _Function) -> click.Command:
            settings = {"token_normalize_func": lambda token: token.replace("-", "_")}
            command = click.command(name, cls=_Command, context_settings=settings)(function)
            for group, fields in by_group(config).items() if config else ():
                command.params += [_option(field, group) for field in fields]
            self.add_command(command)
            return command

        return decorate


class _Option(click.Option):
    """An option that ``--help`` lists under the heading of its group."""

    def __init__(self, *declarations: Any, group: Group, **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.group = group


class _Command(click.Command):
    """A command whose options may be spelled with - or _.

    ``mlflow run -P batch_size=32`` calls it with ``--batch_size 32``. ``--help`` shows options by
    group; click itself has one list of all.
    """

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {group.value: [] for group in Group}
        for parameter in self.get_params(ctx):
            group = parameter.group.value if isinstance(parameter, _Option) else "Options"
            if record := parameter.get_help_record(ctx):
                headings.setdefault(group, []).append(record)
        for heading, records in headings.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names = [p.name for p in self.params if isinstance(p, click.Option) and p.name]
        ctx.allow_extra_args = True  # refused below, with a hint
        try:
            extra = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name == "-P":
                problem = "P: is an option of mlflow run; here write --name value"
            else:
                problem = unknown_option(error.option_name.lstrip("-"), names)
            raise ConfigError([problem]) from error
        except click.BadOptionUsage as error:
            raise self._without_value(error.option_name.lstrip("-")) from error
        for name, value in ctx.params.items():
            if isinstance(value, str) and value.startswith("--"):  # click took the next option
                raise self._without_value(name)
        if extra:
            usual = next((name for name in _USUAL if name in names), None)
            value = ",".join(extra) if usual == "runs" else extra[0]
            hint = f": write --{usual} {value}" if usual else ""
            raise ConfigError([f"{' '.join(extra)}: belongs to no option{hint}"])
        return extra

    def _without_value(self, name: str) -> ConfigError:
        yes_or_no = {p.name for p in self.params if p.metavar == "BOOL"}
        value = "true" if name in yes_or_no else "VALUE"
        return ConfigError([f"{name}: needs a value, as in --{name} {value}"])

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


def _option(field: dataclasses.Field[Any], group: Group) -> click.Option:
    text, choices = field.metadata["help"], field.metadata["choices"]
    if not all(choice in text for choice in choices):
        text = f"{text}; {allowed(field)}"
    return _Option(
        [f"--{field.name.replace('_', '-')}", field.name],
        group=group,
        metavar=str(field.type).upper().replace("STR", "TEXT"),
        help=f"{text} [{as_text(field.default)}]",
    )
