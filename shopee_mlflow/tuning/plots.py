"""Optuna's plots of a study, drawn with matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import optuna
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as drawing

_PLOTS: dict[str, Callable[[optuna.Study], object]] = {
    "history": drawing.plot_optimization_history,
    "intermediate_values": drawing.plot_intermediate_values,
    "parallel_coordinates": drawing.plot_parallel_coordinate,
    "slices": drawing.plot_slice,
    "importances": drawing.plot_param_importances,
}


def draw_plots(study: optuna.Study) -> Iterator[tuple[str, Figure | str]]:
    """Each plot by name; where there is too little to draw, the reason instead."""
    # Only what was sampled can be drawn: a trial with values of its own lacks some.
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
                # Importances, for one, need values that differ.
                yield name, str(error).splitlines()[0]


def _draw(plot: Callable[[optuna.Study], object], study: optuna.Study) -> Figure:
    pyplot.close("all")
    plot(study)
    figure = pyplot.gcf()
    figure.set_size_inches(10, 6)
    pyplot.close(figure)
    return figure
