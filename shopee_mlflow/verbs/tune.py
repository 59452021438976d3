"""Tune: search training options and log the best model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..config import as_params
from ..console import duration, say, watch
from ..data.catalog_forms import check_paths
from ..data.dataset import Dataset, load_dataset
from ..data.fold_splits import validation_folds
from ..data.splits import TEST
from ..errors import TrainingError
from ..modeling.device import choose_machine
from ..modeling.initial_weights import InitialWeights
from ..modeling.models import ProductClassifier
from ..tracking.environment import machine_tags
from ..tracking.experiment_choice import check_experiment
from ..tracking.finding import find_run
from ..tracking.links import view_lines
from ..tracking.names import BEST_FILE, DESCRIPTION_TAG, STUDY_TAG
from ..tracking.run_log import RunLog
from ..tracking.signals import stop_on_signals
from ..tracking.store import local_folder
from ..training.context import TrainingContext, check_model
from ..training.job import log_weights_run
from ..training.results import log_data, log_results
from ..training.weights_source import initial_weights
from ..tuning.finish import best_yaml, score_references, score_trial, summarize
from ..tuning.parent import lost_runs_closed, parent_run
from ..tuning.plots import draw_plots
from ..tuning.space import Choice, SearchPlan, plan_search
from ..tuning.study import Search
from ..tuning.workers import work, work_in_processes
from .register import register


@dataclass(frozen=True)
class TuneResult:
    """The result of a search.

    :ivar run_id: id of the parent run, which has the best model.
    :ivar best: values of the searched options in the best trial.
    :ivar scores: best_val_accuracy, best_epoch, test_accuracy, test_accuracy_low,
        test_accuracy_high, test_loss of the best trial.
    :ivar trials: a table with one row per trial.
    """

    run_id: str
    study: str
    best: dict[str, Any]
    scores: dict[str, float]
    trials: pd.DataFrame = field(repr=False)
    model: ProductClassifier = field(repr=False)


def tune(cli_options: Mapping[str, Any]) -> TuneResult | None:
    """Search training options; test, log and register the best model.

    Repeating the call resumes the study in the same parent run, on any machine that can access the
    study's storage. If several processes share a study, one of them does the final test.

    :param cli_options: name -> value or text, for options of ``train`` and of the search. The
        option ``config`` names a YAML file of more options.
    :returns: the result, or None if another process did the final test.
    :raises ShopeeError: for errors that the user can correct.
    """
    plan = plan_search(cli_options)
    config = plan.config
    started = time.time()
    deadline = started + config.timeout if config.timeout else None
    machine = choose_machine(config.device, config.precision)
    check_paths(config)
    check_experiment(config.experiment)
    say(f"checking {', '.join(_values(plan, 'model'))} and the weights")
    weights = _check_models(plan)
    with stop_on_signals():
        # The data are read before a run is opened or resumed, so that a mistake leaves no failed
        # run and different data cannot change an existing one.
        say(f"reading the catalogue ({config.data})")
        dataset = load_dataset(config, watch)
        say(*dataset.lines())
        if config.folds:
            validation_folds(dataset.frame, config)  # folds that are impossible are an error here
        augment_all = config.folds > 0
        context = TrainingContext(dataset, machine, weights=weights, augment_all=augment_all)
        for resize in _values(plan, "resize"):
            context.with_resize(resize)
        search = Search(plan, local_folder())
        search.check_data(dataset.digest)
        with parent_run(search) as run:
            _log_search(search, run, dataset, str(machine))
            say(*_opening(search, run))
            with lost_runs_closed(search, run):
                if config.jobs == 1:
                    work(search, context, run, deadline)
                else:
                    work_in_processes(search, local_folder(), run, deadline, config.jobs)
            result = _finish_once(search, context, run)
            say(*view_lines(run, f"{duration(time.time() - started)} this time", beside=True))
    return result


def _finish_once(search: Search, context: TrainingContext, run: RunLog) -> TuneResult | None:
    """Do the final test once for the current trials; other processes wait for it."""
    if not any(t.state == "complete" for t in search.results()):
        _log_table(search, run)
        reasons = sorted({t.failure.splitlines()[0] for t in search.results() if t.failure})
        raise TrainingError(
            f"study={search.name}: none of its {search.finished()} trials completed"
            + (": " + "; ".join(reasons) if reasons else " before the timeout")
            + f". The study is kept; {_resume_hint(search)}."
        )
    ending = search.finishing(run.run_id)
    for ticket in ending.trials():
        try:
            result = _finish(search, context, run)
        except BaseException:
            ending.interrupt(ticket)
            raise
        ending.end(ticket, result.scores["test_accuracy"])
        return result
    say(find_run(run.run_id).data.tags.get(DESCRIPTION_TAG, ""))
    say(f"nothing left to do; {_resume_hint(search)}")
    return None


def _resume_hint(search: Search) -> str:
    whole = search.finished() >= search.plan.config.n_trials
    return "increase n_trials to continue" if whole else "repeat the command to resume"


def _finish(search: Search, context: TrainingContext, run: RunLog) -> TuneResult:
    """Test the best trial and the reference settings; log results and register the model."""
    plan, config = search.plan, search.plan.config
    found = search.best()
    assert found is not None
    best = score_trial(plan, context, found, final=True)
    references = score_references(search, context, best)
    data = context.with_resize(best.config.resize).dataset
    if (start := context.initial_weights(best.config)) and start.run_id:
        log_weights_run(run, data.frame.loc[data.rows(TEST)], start.run_id)
    log_results(run, data, best.model, best.config, best.history, best.test)
    for reference in references:
        if reference.tested is not best:
            run.log_metrics(reference.metrics)
    _log_table(search, run)
    skipped = []
    for name, plot in draw_plots(search.study, config.monitor):
        if isinstance(plot, str):
            skipped.append(f"- No plot of {name.replace('_', ' ')}: {plot}")
        else:
            run.log_figure(plot, f"tune/{name}.png")
    run.log_text(best_yaml(plan, best, run.run_id), BEST_FILE)
    times = search.count_tested(found.number)
    lines = [*summarize(search, best, references, times), *skipped]
    run.log_text("\n".join(lines) + "\n", "tune/summary.md")
    run.log_tags({DESCRIPTION_TAG: "\n".join(lines)})
    run.log_model(best.model, best.test.scores, config.serialization)
    say("", *lines)
    if config.register:
        register(run.run_id, promote=config.promote)
    return TuneResult(
        run.run_id, search.name, dict(found.values), best.test.scores, search.table(), best.model
    )


def _log_search(search: Search, run: RunLog, dataset: Dataset, device: str) -> None:
    """Log the options, the search space and the data of a search once."""
    plan = search.plan
    shown = {name: value for name, value in plan.cli_options.items() if name not in plan.space}
    params = {**as_params(plan.config), **shown}
    params |= {name: str(where) for name, where in plan.space.items()}
    run.log_params(params)
    run.log_tags({**machine_tags(device), STUDY_TAG: search.name})
    run.log_tags({"n_trials": str(plan.config.n_trials)})
    # A study whose run was deleted continues in a new one, which has no data yet.
    if not search.has_data or "data_digest" not in find_run(run.run_id).data.tags:
        log_data(run, dataset, plan.config)
        search.keep_data(dataset.digest)


def _log_table(search: Search, run: RunLog) -> None:
    table = search.table()
    run.log_table(table, "tune/trials.csv")
    ended = table["state"].value_counts()
    run.log_tags({f"trials_{state}": str(count) for state, count in ended.items()})


def _opening(search: Search, run: RunLog) -> list[str]:
    done = search.finished()
    space = "; ".join(f"{name} {where}" for name, where in search.plan.space.items())
    lines = [f"study {search.name} in run {run.run_id}: {space}"]
    if done:
        lines.append(f"{done} of {search.plan.config.n_trials} trials have already ended")
    return lines


def _values(plan: SearchPlan, name: str) -> list[str]:
    """The values of an option, words or names, in the trials of a search."""
    choice = plan.space.get(name)
    values = choice.values if isinstance(choice, Choice) else [getattr(plan.config, name)]
    return [str(value) for value in values]


def _check_models(plan: SearchPlan) -> dict[str, InitialWeights | None]:
    """Build each architecture and split it at each frozen stage, to find errors early.

    :returns: the initial weights, by the option ``weights``.
    :raises ModelError: if weights do not fit, or a stage does not exist.
    """
    stages = _values(plan, "freeze")
    weights: dict[str, InitialWeights | None] = {}
    for name in _values(plan, "model"):
        config = plan.trial_config({**plan.baselines()[0], "model": name})
        if config.weights not in weights:
            weights[config.weights] = initial_weights(config.weights)
        check_model(config, weights[config.weights], stages)
    return weights
