"""Optuna's plots of a study, drawn with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawing

_MEASURE = "validation accuracy"
# A longer legend does not fit beside a plot.
_MAX_LEGEND = 12


def _plot_epochs(study: optuna.Study) -> None:
    axes: Axes = drawing.plot_intermediate_values(study)
    axes.set(title="Trials by epoch", xlabel="epoch", ylabel=_MEASURE)
    legend = axes.get_legend()
    if legend and len(legend.get_texts()) > _MAX_LEGEND:
        legend.remove()


_PLOTS: dict[str, Callable[[optuna.Study], object]] = {
    "history": partial(drawing.plot_optimization_history, target_name=_MEASURE),
    "intermediate_values": _plot_epochs,
    "parallel_coordinates": partial(drawing.plot_parallel_coordinate, target_name=_MEASURE),
    "slices": partial(drawing.plot_slice, target_name=_MEASURE),
    "importances": partial(drawing.plot_param_importances, target_name=_MEASURE),
}


def draw_plots(study: optuna.Study) -> Iterator[tuple[str, Figure | str]]:
    """Yield each plot by name, or the reason why it cannot be drawn."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for name, plot in _PLOTS.items():
        if len(complete) < 2 and name != "history":
            yield name, f"needs two complete trials, there are {len(complete)}"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield name, _draw(plot, study)
            except (ValueError, RuntimeError) as error:
                # For example, importances need different values.
                yield name, str(error).splitlines()[0]


def _draw(plot: Callable[[optuna.Study], object], study: optuna.Study) -> Figure:
    pyplot.close("all")
    plot(study)
    figure = pyplot.gcf()
    figure.set_size_inches(10, 6)
    pyplot.close(figure)
    return figure
