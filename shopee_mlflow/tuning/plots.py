"""Optuna's plots of a study, drawn with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawing

# A longer legend does not fit beside a plot.
_MAX_LEGEND = 12


def _plot_epochs(study: optuna.Study, target_name: str) -> None:
    axes: Axes = drawing.plot_intermediate_values(study)
    axes.set(title="Trials by epoch", xlabel="epoch", ylabel=target_name)
    legend = axes.get_legend()
    if legend and len(legend.get_texts()) > _MAX_LEGEND:
        legend.remove()


_PLOTS: dict[str, Callable[..., object]] = {
    "history": drawing.plot_optimization_history,
    "intermediate_values": _plot_epochs,
    "parallel_coordinates": drawing.plot_parallel_coordinate,
    "slices": drawing.plot_slice,
    "importances": drawing.plot_param_importances,
}


def draw_plots(study: optuna.Study, monitor: str) -> Iterator[tuple[str, Figure | str]]:
    """Yield each plot by name, or the reason why it cannot be drawn.

    :param monitor: the metric that the study maximizes, for the axes.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    for name, plot in _PLOTS.items():
        if len(complete) < 2 and name != "history":
            yield name, f"needs two complete trials, there are {len(complete)}"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield name, _draw(plot, study, monitor)
            except (ValueError, RuntimeError) as error:
                # For example, importances need different values.
                yield name, str(error).splitlines()[0]


def _draw(plot: Callable[..., object], study: optuna.Study, monitor: str) -> Figure:
    pyplot.close("all")
    plot(study, target_name=monitor)
    figure = pyplot.gcf()
    figure.set_size_inches(10, 6)
    pyplot.close(figure)
    return figure
