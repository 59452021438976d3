"""Thresholds and weights of matching: the present choice against Optuna's, on cached similarities.

    python benchmarks/match_weights.py shop/train.csv --trials 300

The present choice is a logistic regression on the pairs and a grid of thresholds. Optuna (TPE)
searches all weights and both thresholds for the highest mean F1 of the groups that choose, once
anew and once around the present choice. The other groups score each. Thresholds on the second pair
model are compared as well, with the set of highest expected F1. docs/match.md has the results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna

from shopee_mlflow.analysis_config import MatchConfig
from shopee_mlflow.console import watch
from shopee_mlflow.data.catalog_forms import load_catalog
from shopee_mlflow.matching.group_split import (
    TEST,
    VALIDATION,
    draw_folds,
    split_groups,
    tied_groups,
)
from shopee_mlflow.matching.match_scores import Labels, bootstrap_mean, f1_of_postings
from shopee_mlflow.matching.match_sets import Threshold, best_threshold, expected_f1_sets
from shopee_mlflow.matching.matcher import (
    both_directions,
    candidates,
    likely_pairs,
    matcher_labels,
    with_pair_features,
)
from shopee_mlflow.matching.pair_model import FOLDS, fit_pair_model
from shopee_mlflow.matching.pairs import Pairs
from shopee_mlflow.matching.postings import check_postings
from shopee_mlflow.matching.weighted_sum import fit_weighted_sum, similarity_table


class Scorer:
    """Mean F1 of the postings that choose, and of those that score."""

    def __init__(self, pairs: Pairs, labels: Labels, side: np.ndarray, sets: np.ndarray) -> None:
        self.pairs, self.labels, self.side, self.sets = pairs, labels, side, sets
        self.choosing = side == VALIDATION
        own = self.choosing[pairs.query]
        self.own = np.flatnonzero(own)
        self.same = labels.equal(pairs)[own]
        self.query = pairs.query[own]

    def choose(self, scores: np.ndarray, value: float, best: float) -> float:
        """The F1 that chooses; scores are those of all pairs."""
        scores = scores[self.own]
        chosen = scores > value
        highest = np.full(self.pairs.count, -np.inf)
        np.maximum.at(highest, self.query, scores)
        chosen |= (scores == highest[self.query]) & (scores > best)
        right = 1 + np.bincount(self.query[chosen & self.same], minlength=self.pairs.count)
        predicted = 1 + np.bincount(self.query[chosen], minlength=self.pairs.count)
        return float((2 * right / (predicted + self.labels.sizes))[self.choosing].mean())

    def report(self, name: str, chosen: np.ndarray, started: float) -> None:
        """Print both F1, with the interval of the one that scores."""
        f1, test = f1_of_postings(chosen, self.pairs, self.labels), self.side == TEST
        low, high = bootstrap_mean(f1[test], self.sets[test])
        print(
            f"{name}: choosing {f1[self.choosing].mean():.4f}, scoring {f1[test].mean():.4f} "
            f"({low:.4f} to {high:.4f}), {time.monotonic() - started:.0f} s",
            flush=True,
        )


def search(
    objective: Callable[[optuna.Trial], float], trials: int, first: dict[str, float] | None
) -> dict[str, float]:
    """The best parameters."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    if first is not None:
        study.enqueue_trial(first)
    study.optimize(objective, n_trials=trials)
    return study.best_params


def main() -> None:
    """Prepare the pairs, choose in each way, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--trials", type=int, default=300)
    options = parser.parse_args()
    config = MatchConfig(data=str(options.catalogue))
    postings = check_postings(load_catalog(config, watch, required=(), photos=False).rows)
    labels, sets = matcher_labels(postings), tied_groups(postings.frame, config.near_bits)
    side = split_groups(postings.frame, sets, config.validation_share, config.split_seed)
    pairs, found = candidates(postings)
    scorer = Scorer(pairs, labels, side, sets)

    started = time.monotonic()
    own = (side == VALIDATION)[pairs.query]
    likely = fit_weighted_sum(found, labels.equal(pairs), own)
    scores = likely.scores(found)
    grid = best_threshold(scores, pairs, labels, side == VALIDATION, one_match=True)
    scorer.report("logistic regression and grid", grid.choose(scores, pairs), started)

    table = similarity_table(found, likely.names)
    kept = scores > -8
    close, positions = pairs.keep(kept)
    near = Scorer(close, labels, side, sets)
    part = table[positions]
    names = [f"weight_{column}" for column in range(table.shape[1])]
    spread = np.abs(likely.weights).max()

    def weigh(params: dict[str, float]) -> np.ndarray:
        return part @ np.array([params[name] for name in names])

    def objective(trial: optuna.Trial) -> float:
        params = {name: trial.suggest_float(name, -0.2 * spread, 1.5 * spread) for name in names}
        value = trial.suggest_float("value", 0, 2 * spread)
        best = value - trial.suggest_float("lower", 0, spread)
        return near.choose(weigh(params), value, best)

    # At the present choice the intercept moves into the thresholds.
    now = dict(zip(names, likely.weights.tolist(), strict=True))
    shift = likely.intercept
    now |= {"value": grid.value - shift, "lower": grid.value - min(grid.best, grid.value)}
    for title, first in (("Optuna anew", None), ("Optuna from the present choice", now)):
        started = time.monotonic()
        found_best = search(objective, options.trials, first)
        limits = Threshold(found_best["value"], found_best["value"] - found_best["lower"])
        near.report(title, limits.choose(weigh(found_best), close), started)

    pairs, near_found = likely_pairs(pairs, found, likely)
    features = with_pair_features(postings, pairs, near_found)
    folds = draw_folds(sets, side == VALIDATION, FOLDS, config.split_seed)
    same = labels.equal(pairs)
    _, _, second = fit_pair_model(features, same, pairs, folds, config.split_seed)
    chances = both_directions(second, pairs)
    scorer = Scorer(pairs, labels, side, sets)
    started = time.monotonic()
    grid = best_threshold(chances, pairs, labels, side == VALIDATION, one_match=True)
    scorer.report("second pass, grid", grid.choose(chances, pairs), started)
    started = time.monotonic()
    chosen = search(
        lambda trial: scorer.choose(
            chances,
            trial.suggest_float("value", 0.2, 0.8),
            trial.suggest_float("best", 0.02, 0.5),
        ),
        options.trials // 3,
        None,
    )
    limits = Threshold(chosen["value"], chosen["best"])
    scorer.report("second pass, Optuna", limits.choose(chances, pairs), started)
    started = time.monotonic()
    scorer.report("second pass, highest expected F1", expected_f1_sets(chances, pairs), started)


if __name__ == "__main__":
    main()
