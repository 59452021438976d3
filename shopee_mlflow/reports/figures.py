"""Plain results become matplotlib figures. Nothing here knows where they are logged or shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Two colours of the Okabe-Ito palette, told apart by colour-blind people.
TRAIN_COLOUR = "#0072B2"
VAL_COLOUR = "#D55E00"
_NAMED_CLASSES = 40


def learning_curves(history: pd.DataFrame, best_epoch: int) -> Figure:
    """Loss and accuracy of train and validation by epoch, the best epoch marked.

    :param history: columns epoch, train_loss, val_loss, train_accuracy, val_accuracy.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", TRAIN_COLOUR), ("val", VAL_COLOUR)):
            axes.plot(
                history["epoch"], history[f"{part}_{name}"], color=colour, label=part, marker="."
            )
        axes.axvline(best_epoch, color="0.5", linestyle=":", label=f"best epoch ({best_epoch})")
        axes.set(xlabel="epoch", ylabel=name, title=name.capitalize())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_figure(counts: pd.DataFrame, title: str) -> Figure:
    """True (rows) against predicted (columns) label groups; numbers where they can be read.

    :param counts: square, as :func:`shopee_mlflow.modeling.metrics.confusion` gives it.
    """
    classes = [str(name) for name in counts.columns]
    side = min(max(5.0, 0.38 * len(classes) + 2), 24)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    values = counts.to_numpy()
    share = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true label group")
    if len(classes) > _NAMED_CLASSES:
        return figure
    short = [name if len(name) <= 14 else name[:13] + "…" for name in classes]
    # Labels come from strangers: a dollar sign must not start mathematics.
    axes.set_xticks(range(len(classes)), short, rotation=90, parse_math=False)
    axes.set_yticks(range(len(classes)), short, parse_math=False)
    _write_counts(axes, values, share)
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
    pixels: np.ndarray, predictions: pd.DataFrame, rows: np.ndarray, most: int = 20
) -> Figure:
    """A gallery of photos that were put into the wrong label group, the surest first.

    :param pixels: (N, S, S, 3) uint8.
    :param predictions: row for row label_group, predicted, probability.
    :param rows: the mistakes, in the order in which to show them.
    """
    shown = rows[:most]
    columns = 5
    lines = max(-(-len(shown) // columns), 1)
    figure = Figure(figsize=(2.6 * columns, 3.0 * lines), layout="constrained")
    figure.suptitle(f"{len(rows)} mistakes" + (f", the {most} surest" if len(rows) > most else ""))
    for place, axes in enumerate(np.ravel(figure.subplots(lines, columns, squeeze=False))):
        axes.set_axis_off()
        if place < len(shown):
            row = predictions.iloc[shown[place]]
            axes.imshow(pixels[shown[place]])
            said = f"{row['predicted']} ({row['probability']:.0%})\nis {row['label_group']}"
            axes.set_title(said, fontsize=9, parse_math=False)
    return figure
