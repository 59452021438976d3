"""Figures of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .figure_text import drawable, group_names, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two colours of the Okabe-Ito palette, which colour-blind people can distinguish.
TRAIN_COLOUR = "#0072B2"
VAL_COLOUR = "#D55E00"
_NAMED_CLASSES = 40


def learning_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Loss and accuracy of train and validation by epoch, the best epoch marked.

    :param history: columns epoch, train_loss, val_loss, train_accuracy, val_accuracy.
    """
    figure = new_figure(10, 4)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _draw_curves(axes, history, name, best_epoch)
    return figure


def learning_curve(history: pd.DataFrame, name: str, best_epoch: int) -> Figure:
    """Half of :func:`learning_curves`, ``loss`` or ``accuracy``, as a separate figure."""
    figure = new_figure(5.2, 4)
    _draw_curves(figure.subplots(), history, name, best_epoch)
    return figure


def _draw_curves(axes: Axes, history: pd.DataFrame, name: str, best_epoch: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for part, colour in (("train", TRAIN_COLOUR), ("val", VAL_COLOUR)):
        axes.plot(history["epoch"], history[f"{part}_{name}"], color=colour, label=part, marker=".")
    axes.axvline(best_epoch, color="0.5", linestyle=":", label=f"best epoch ({best_epoch})")
    axes.set(xlabel="epoch", ylabel=name, title=name.capitalize())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.legend()


def confusion_figure(counts: pd.DataFrame, title: str, names: Sequence[str] = ()) -> Figure:
    """True (rows) against predicted (columns) label groups, with numbers if they are readable.

    With many label groups, photos are drawn as dots, because cells would be too small.

    :param names: names of the label groups, in order; empty: those in ``counts``.
    :param counts: square, as :func:`shopee_mlflow.modeling.metrics.confusion` returns it.
    """
    classes = [str(name) for name in counts.columns]
    values = counts.to_numpy()
    if len(classes) > _NAMED_CLASSES:
        return _confusion_dots(values, title)
    side = max(4.5, 0.3 * len(classes) + 1.8)
    figure = new_figure(side, side)
    axes = figure.subplots()
    share = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    short = group_names(names or classes, range(len(classes)))
    # Labels are untrusted: a dollar sign must not start mathematics.
    axes.set_xticks(range(len(classes)), short, rotation=90, fontsize=9, parse_math=False)
    axes.set_yticks(range(len(classes)), short, fontsize=9, parse_math=False)
    _write_counts(axes, values, share)
    return figure


def _confusion_dots(values: np.ndarray, title: str) -> Figure:
    figure = new_figure(9, 9)
    axes = figure.subplots()
    rows, columns = np.nonzero(values)
    wrong = rows != columns
    # Areas in square points: one photo is half a cell wide, but never too small to be seen; many
    # photos fill the cell.
    cell = 560 / len(values)
    one, most = max(9.0, (0.5 * cell) ** 2), max(36.0, (1.1 * cell) ** 2)
    for chosen, colour, what in ((~wrong, TRAIN_COLOUR, "right"), (wrong, VAL_COLOUR, "wrong")):
        photos = values[rows[chosen], columns[chosen]]
        axes.scatter(
            columns[chosen],
            rows[chosen],
            s=np.minimum(one * photos, most),
            color=colour,
            alpha=0.7,
            linewidths=0,
            label=f"{what}: {photos.sum():,} photos",
        )
    axes.set(xlabel="predicted, number of the label group", ylabel="true", title=title)
    axes.set(xlim=(-1, len(values)), ylim=(len(values), -1), aspect="equal")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _write_counts(axes: Axes, values: np.ndarray, share: np.ndarray) -> None:
    for row, column in np.argwhere(values > 0):
        axes.text(
            column,
            row,
            str(values[row, column]),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[row, column] > 0.5 else "black",
        )


def mistakes_figure(
    pixels: np.ndarray,
    predictions: pd.DataFrame,
    rows: np.ndarray,
    most: int = 20,
) -> Figure:
    """Misclassified photos, the most confident first.

    If the font lacks characters of a label, the title has the row in ``predictions``, from 1.

    :param pixels: (N, S, S, 3) uint8.
    :param predictions: columns label_group, predicted, probability.
    :param rows: the mistakes, in the order in which to show them.
    """
    shown = rows[:most]
    columns = 5
    lines = max(-(-len(shown) // columns), 1)
    figure = new_figure(2.6 * columns, 3.0 * lines)
    figure.suptitle(
        f"{len(rows)} mistakes" + (f", the {most} most confident" if len(rows) > most else "")
    )
    for index, axes in enumerate(np.ravel(figure.subplots(lines, columns, squeeze=False))):
        axes.set_axis_off()
        if index < len(shown):
            row = predictions.iloc[shown[index]]
            axes.imshow(pixels[shown[index]])
            said = f"{row['predicted']} ({row['probability']:.0%})\nis {row['label_group']}"
            kept = [drawable(line) for line in said.split("\n")]
            if "\n".join(kept) != said:
                said = "\n".join([f"row {shown[index] + 1}:", *kept])
            axes.set_title(said, fontsize=9, parse_math=False)
    return figure


def calibration_figure(table: pd.DataFrame) -> Figure:
    """Accuracy by probability of the prediction; the area of a point is its number of photos.

    :param table: as :func:`shopee_mlflow.modeling.metrics.calibration` returns it.
    """
    figure = new_figure(5.5, 5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.5", linestyle=":", label="perfect calibration")
    axes.plot(table["confidence"], table["accuracy"], color=TRAIN_COLOUR, linewidth=1)
    sizes = 30 + 400 * table["photos"] / table["photos"].sum()
    axes.scatter(table["confidence"], table["accuracy"], s=sizes, color=TRAIN_COLOUR, zorder=3)
    for confidence, accuracy, photos in zip(
        table["confidence"], table["accuracy"], table["photos"], strict=True
    ):
        axes.annotate(
            f"{photos:,}",
            (confidence, accuracy),
            xytext=(0, 12),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
    axes.set(xlabel="probability", ylabel="accuracy", xlim=(0, 1.03))
    axes.set(ylim=(-0.03, 1.1), title="Calibration; numbers are photos")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure


def stranger_figure(curve: pd.DataFrame) -> Figure:
    """Accuracy of the kept test photos, and accepted strangers, by the share of photos kept.

    :param curve: columns known_kept, accuracy and, where measured, strangers_accepted (shares).
    """
    figure = new_figure(5.5, 5)
    axes, kept = figure.subplots(), curve["known_kept"]
    axes.plot(kept, curve["accuracy"], color=TRAIN_COLOUR, label="accuracy of kept test photos")
    if "strangers_accepted" in curve:
        accepted = curve["strangers_accepted"]
        axes.plot(kept, accepted, color=VAL_COLOUR, label="strangers that get a label group")
    axes.axvline(0.95, color="0.5", linestyle=":", label="95 % kept")
    axes.set(xlabel="share of test photos kept", ylabel="share", title="Answers refused")
    axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.05))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left")
    return figure


def f1_figure(scores: pd.DataFrame) -> Figure:
    """F1 score of each label group, the lowest first, with names if they are readable.

    :param scores: a row for each label group: label_group, f1-score, support, and label_name where
        it is known; the index is its number. Label groups without photos have no score and are
        left out.
    """
    table = scores[scores["support"] > 0]
    table = table.sort_values("f1-score", kind="stable")
    named = len(table) <= _NAMED_CLASSES
    figure = new_figure(6.4, max(2.5, 0.21 * len(table) + 0.9) if named else 4)
    axes = figure.subplots()
    rows = np.arange(len(table))
    if named:
        axes.barh(rows, table["f1-score"], color=TRAIN_COLOUR)
        column = "label_name" if "label_name" in table else "label_group"
        names = group_names(table[column].tolist(), table.index.tolist())
        axes.set_yticks(rows, names, fontsize=9, parse_math=False)
        axes.invert_yaxis()
        axes.set(xlabel="F1 score", xlim=(0, 1))
    else:
        axes.fill_between(rows, table["f1-score"], step="mid", color=TRAIN_COLOUR)
        axes.set(xlabel="label groups, the lowest score first", ylabel="F1 score", ylim=(0, 1))
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    axes.margins(y=0.01 if named else 0.05)
    return figure
