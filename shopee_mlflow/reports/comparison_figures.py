"""Figures of several trainings, distinguished by colour, line style and letter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .comparison_statistics import ComparedRun
from .figure_text import drawable
from .pages import shortened, squeezed

# The Okabe-Ito palette without its yellow, which is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":")
_MOST_IN_LEGEND = 14
_DOTS_UP_TO = 30
_WIDE_RANGE = 20


def curves_figure(runs: Mapping[tuple[str, str], pd.DataFrame], metric: str, title: str) -> Figure:
    """A metric of each run by epoch. Each line carries its letter.

    :param runs: (letter, name) -> columns epoch and the metric.
    """
    named = len(runs) <= _MOST_IN_LEGEND
    lines = -(-len(runs) // 2) if named else 0
    figure = Figure(figsize=(5.2, 3.9 + 0.22 * lines), layout="constrained")
    axes = figure.subplots()
    for index, ((letter, name), epochs) in enumerate(runs.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(
            epochs["epoch"],
            epochs[metric],
            color=colour,
            linestyle=_LINES[index // len(_COLOURS) % len(_LINES)],
            marker="." if len(epochs) <= _DOTS_UP_TO else None,
            label=f"{letter}  {shortened(drawable(name), 32)}",
        )
        # In the first epochs all lines are close together.
        at = round((0.3 + 0.7 * (index + 0.5) / len(runs)) * (len(epochs) - 1))
        axes.annotate(
            letter,
            (epochs["epoch"].iloc[at], epochs[metric].iloc[at]),
            ha="center",
            va="center",
            fontsize=8,
            color=colour,
            bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": colour},
        )
    if "loss" in metric and _is_wide(list(runs.values()), metric):
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel=metric, title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    if named:
        legend = figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def accuracy_figure(splits: Mapping[str, Sequence[ComparedRun]]) -> Figure:
    """Test accuracies with their intervals, one colour per test split.

    :param splits: data digest -> the runs that were tested on it.
    """
    runs = [run for some in splits.values() for run in some]
    figure = Figure(figsize=(6.8, 0.42 * len(runs) + 1.1), layout="constrained")
    axes = figure.subplots()
    row = 0
    for index, (digest, some) in enumerate(splits.items()):
        values = [run.accuracy for run in some]
        below = [run.accuracy - run.interval[0] for run in some]
        above = [run.interval[1] - run.accuracy for run in some]
        axes.errorbar(
            values,
            range(row, row + len(some)),
            xerr=[below, above],
            fmt="osD^v"[index % 5],
            color=_COLOURS[index % len(_COLOURS)],
            capsize=4,
            label=f"data {squeezed(digest, 16)}",
        )
        row += len(some)
    names = [f"{run.letter}  {shortened(drawable(run.name), 36)}" for run in runs]
    axes.set_yticks(range(len(runs)), names, parse_math=False)
    axes.set(ylim=(len(runs) - 0.5, -0.5), xlabel="test accuracy, 95 % interval")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3, axis="x")
    if len(splits) > 1:
        legend = figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure


def _is_wide(tables: Sequence[pd.DataFrame], metric: str) -> bool:
    values = pd.concat([table[metric] for table in tables])
    return bool(values.min() > 0 and values.max() > _WIDE_RANGE * values.min())
