"""The figures of explore's page. They show numbers only, never text from the catalogue.

They are small: two fit side by side on a screen, and their text stays readable on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..data.near_copies import NEAR_BITS

# Colours of the Okabe-Ito palette, which colour-blind people can distinguish.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
_SIZE = (5.2, 3.3)
_MARKERS = "os^"
# More bars than this are drawn as a histogram with bins of increasing width.
_MOST_BARS = 80
_BINS = 40
# Largest count at which a bar of one is visible on a linear axis.
_LINEAR = 60
_LEAST_SHARE = 0.01


def group_sizes_figure(sizes: pd.Series) -> Figure:
    """Histogram of label groups by their number of rows.

    :param sizes: label group -> rows.
    """
    figure, axes = _new("rows of a label group", "label groups")
    largest = int(sizes.max())
    if largest <= _MOST_BARS:
        counts = sizes.value_counts()
        axes.bar(counts.index.to_numpy(), counts.to_numpy(), color=BLUE, width=0.8)
        axes.xaxis.set_major_locator(_round_counts())
        _counts(axes, int(counts.max()))
    else:
        edges = np.unique(np.geomspace(1, largest + 1, _BINS).round())
        bins = np.histogram(sizes, edges)[0]
        axes.stairs(bins, edges, color=BLUE, fill=True)
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
        _counts(axes, int(bins.max()))
    return figure


def repeats_figure(counts: Mapping[str, pd.Series]) -> Figure:
    """The number of files, phashes and titles by the rows that share one.

    :param counts: name -> (value -> rows).
    """
    figure, axes = _new("rows with the same one", ", ".join(counts))
    most = 0
    for (name, rows), colour, marker in zip(
        counts.items(), (BLUE, VERMILION, GREEN), _MARKERS, strict=False
    ):
        often = rows.value_counts().sort_index()
        most = max(most, int(often.max()))
        axes.plot(
            often.index.to_numpy(),
            often.to_numpy(),
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1,
            label=name,
        )
    if max((int(rows.max()) for rows in counts.values() if len(rows)), default=1) > _MOST_BARS:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(_round_counts())
    _counts(axes, most)
    _legend(axes)
    return figure


def near_figure(bits: np.ndarray, same_group: np.ndarray | None) -> Figure:
    """Pairs of phashes by the number of bits that differ, and whether a label group has both."""
    figure, axes = _new("bits that differ", "pairs of phashes")
    ticks = np.arange(1, NEAR_BITS + 1)
    whole = np.bincount(bits, minlength=NEAR_BITS + 1)[1:]
    if same_group is None:
        axes.bar(ticks, whole, color=BLUE)
    else:
        same = np.bincount(bits[same_group], minlength=NEAR_BITS + 1)[1:]
        axes.bar(ticks, same, color=BLUE, label="in one label group")
        if whole.sum() > same.sum():
            axes.bar(
                ticks,
                whole - same,
                bottom=same,
                color=ORANGE,
                hatch="///",
                edgecolor="white",
                label="in different ones",
            )
        _legend(axes)
    _photo_counts(axes)
    return figure


def coverage_figure(sizes: pd.Series, kept: int) -> Figure:
    """The share of all rows that the k largest label groups hold, and the k that is kept."""
    figure, axes = _new("k largest label groups", "share of the rows")
    share = 100 * sizes.to_numpy().cumsum() / sizes.sum()
    ticks = np.arange(1, len(sizes) + 1)
    axes.plot(ticks, share, color=BLUE, marker="." if len(sizes) < 10 else None)
    axes.axvline(kept, color=VERMILION, linestyle="--", label=f"kept: {kept:,}")
    if len(sizes) > _MOST_BARS:
        axes.set_xscale("log")
        _plain_log(axes.xaxis)
    axes.set_ylim(0, 105)
    axes.yaxis.set_major_formatter(_PERCENT)
    _legend(axes)
    return figure


def leaks_figure(splits: pd.DataFrame) -> Figure:
    """For each kind of split and each seed, the share of test photos with a copy in train.

    :param splits: columns split, test, copies, near_copies.
    """
    figure, axes = _new("", "share of the test photos")
    modes = list(dict.fromkeys(splits["split"]))
    series = (("copies", BLUE, "o", "copy in train"), ("near_copies", VERMILION, "s", "near"))
    for index, mode in enumerate(modes):
        part = splits[splits["split"] == mode]
        for shift, (name, colour, marker, label) in zip((-0.18, 0.18), series, strict=True):
            share = (100 * part[name] / part["test"]).to_numpy(dtype=float)
            beside = index + shift + np.linspace(-0.1, 0.1, len(share))
            words = {"copy in train": label, "near": f"copy, or up to {NEAR_BITS} bits off"}
            axes.scatter(
                beside,
                share,
                s=14,
                color=colour,
                marker=marker,
                alpha=0.6,
                linewidth=0,
                label=None if index else words[label],
            )
            middle = [index + shift - 0.14, index + shift + 0.14]
            axes.plot(middle, [share.mean()] * 2, color=colour, linewidth=2.5)
    axes.set_xticks(range(len(modes)), [f"split={mode}" for mode in modes])
    axes.set_xlim(-0.5, len(modes) - 0.5)
    axes.set_ylim(bottom=min(-1.0, axes.get_ylim()[0]))
    axes.yaxis.set_major_formatter(_PERCENT)
    _legend(axes)
    return figure


def sides_figure(photos: pd.DataFrame, image_size: int) -> Figure:
    """Histogram of photos by their shorter side.

    :param photos: columns width, height.
    """
    figure, axes = _new("shorter side (px)", "photos")
    sides = photos[["width", "height"]].min(axis=1).to_numpy(dtype=float)
    axes.hist(sides, bins=_BINS, range=(0, float(sides.max()) * 1.05), color=BLUE)
    label = f"image_size={image_size}"
    axes.axvline(image_size, color=VERMILION, linestyle="--", label=label)
    _photo_counts(axes)
    axes.xaxis.set_major_formatter(_WITH_COMMAS)
    _legend(axes)
    return figure


def aspect_figure(photos: pd.DataFrame) -> Figure:
    """Histogram of photos by width divided by height, with squares in the middle."""
    figure, axes = _new("width / height", "photos")
    ratio = (photos["width"] / photos["height"]).to_numpy(dtype=float)
    reach = max(2.0, ratio.max(), 1 / ratio.min()) * 1.02
    # With an odd number of bins, squares are in the middle of a bin.
    axes.hist(ratio, bins=list(np.geomspace(1 / reach, reach, _BINS + 2)), color=BLUE)
    axes.set_xscale("log")
    ticks = [tick for tick in (0.1, 0.25, 0.5, 1, 2, 4, 10) if 1 / reach <= tick <= reach]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    _photo_counts(axes)
    return figure


def bytes_figure(photos: pd.DataFrame) -> Figure:
    """Histogram of photos by file size."""
    figure, axes = _new("file size (kB)", "photos")
    sizes = np.maximum(photos["bytes"].to_numpy(dtype=float) / 1000, 0.01)
    low, high = float(sizes.min()) * 0.9, float(sizes.max()) * 1.1
    axes.hist(sizes, bins=list(np.geomspace(low, high, _BINS)), color=BLUE)
    axes.set_xscale("log")
    _plain_log(axes.xaxis)
    _photo_counts(axes)
    return figure


def levels_figure(levels: np.ndarray) -> Figure:
    """The mean share of pixels at each level of red, green and blue.

    :param levels: (3, 256).
    """
    figure, axes = _new("level (0: dark, 255: bright)", "share of the pixels")
    looks = (("red", VERMILION, "-"), ("green", GREEN, "--"), ("blue", BLUE, ":"))
    for shares, (name, colour, line) in zip(levels, looks, strict=True):
        axes.plot(
            np.maximum(100 * shares, _LEAST_SHARE),
            color=colour,
            linestyle=line,
            linewidth=1.6,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=_LEAST_SHARE)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g} %"))
    _legend(axes)
    return figure


def phash_figure(bits: np.ndarray) -> Figure:
    """Histogram of photos by the bits in which their phash differs from the catalogue's."""
    figure, axes = _new("bits that differ from the catalogue's phash", "photos")
    counts = np.bincount(bits, minlength=NEAR_BITS + 1)
    axes.bar(np.arange(len(counts)), counts, color=BLUE)
    axes.xaxis.set_major_locator(_round_counts())
    _counts(axes, int(counts.max()))
    return figure


_WITH_COMMAS = FuncFormatter(lambda tick, _: f"{tick:,.0f}")
_PERCENT = FuncFormatter(lambda tick, _: f"{tick:g} %")


def _round_counts(most: int = 9) -> MaxNLocator:
    """At most so many intervals of 1, 2 or 5 times a power of ten, never of 6 or 8."""
    return MaxNLocator(most, integer=True, steps=[1, 2, 5, 10])


def _new(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides no data."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)


def _counts(axes: Axes, most: int) -> None:
    """Scale an axis of counts; several powers of ten need a scale on which a one is visible."""
    if most <= _LINEAR:
        _photo_counts(axes)
        return
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.6)
    _plain_log(axes.yaxis)


def _plain_log(axis: Axis) -> None:
    """Ticks as plain numbers: 1, 2 and 5 times each power of ten if there are few powers."""
    low, high = axis.get_view_interval()
    few = high / max(low, 1e-9) < 200
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,g}"))
    axis.set_minor_locator(NullLocator())


def _photo_counts(axes: Axes) -> None:
    axes.yaxis.set_major_locator(_round_counts(5))
    axes.yaxis.set_major_formatter(_WITH_COMMAS)
