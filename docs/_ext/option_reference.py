"""The directives ``options`` and ``commands``: references made from config.py and cli.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from shopee_mlflow.analysis_config import ExploreConfig, MatchConfig
from shopee_mlflow.cli import cli
from shopee_mlflow.config import CrossValidateConfig, TrainConfig, TuneConfig
from shopee_mlflow.data_config import DataConfig
from shopee_mlflow.options import Role, allowed, as_text

_CONFIGS: dict[str, type[DataConfig]] = {
    cls.__name__: cls
    for cls in (
        *(DataConfig, TrainConfig, TuneConfig, CrossValidateConfig),
        *(MatchConfig, ExploreConfig),
    )
}

# Commands with more options than this have a page of their own for them.
_FEW = 12


def table_of(cls: type[Any]) -> str:
    """Markdown tables of a configuration's own options, one for each group of ``--help``."""
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        if field.name not in cls.__annotations__:
            continue
        group = field.metadata.get("begins")
        if group or not lines:
            title = [f"**{group.value}**", ""] if group else []
            lines += ["", *title, *_HEADER]
        lines.append(_row(field))
    return "\n".join(lines)


_HEADER = ("| option | default | meaning | values | role |", "| --- | --- | --- | --- | --- |")


def _row(field: dataclasses.Field[Any]) -> str:
    cells = [
        f"`{field.name}`",
        f"`{as_text(field.default)}`",
        ". ".join(filter(None, (field.metadata["help"], field.metadata["details"]))),
        allowed(field).replace("text", ""),
        field.metadata["role"].name.lower(),
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


class Options(SphinxDirective):
    """``{options} TrainConfig``: its own options; ``{options} roles``: what the roles mean."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The tables."""
        name = self.arguments[0]
        if name == "roles":
            text = "\n".join(f"- `{role.name.lower()}`: {role.value}" for role in Role)
        else:
            text = table_of(_CONFIGS[name])
        return self.parse_text_to_nodes(text)


class Commands(SphinxDirective):
    """``{commands}``: a section for each command, with its help text."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        sections: list[nodes.Node] = []
        for name in cli.list_commands(click.Context(cli)):
            section = nodes.section(ids=[f"command-{name}"])
            section += nodes.title(text=name)
            section += list(_help(name, cli.commands[name]))
            sections.append(section)
        return sections


def _help(name: str, command: click.Command) -> Iterator[nodes.Node]:
    context = click.Context(command, info_name=f"shopee-mlflow {name}", terminal_width=90)
    text = command.get_help(context)
    if len(command.params) > _FEW:
        formatter = context.make_formatter()
        command.format_usage(context, formatter)
        command.format_help_text(context, formatter)
        records = [p.get_help_record(context) for p in command.params if p.name not in _options()]
        with formatter.section("Options"):
            others = ("...", "All others are on the page Options.")
            formatter.write_dl([*(record for record in records if record), others])
        text = formatter.getvalue()
    yield nodes.literal_block(text, text, language="text")


def _options() -> set[str]:
    """Names of the options that have a page of their own."""
    classes = (TuneConfig, ExploreConfig)
    return {field.name for cls in classes for field in dataclasses.fields(cls)}


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("options", Options)
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
