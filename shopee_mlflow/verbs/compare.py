"""Compare finished trainings, and test which differences are significant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, count, product
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import pandas as pd

from ..console import say
from ..data.near_copies import connected
from ..data_config import NONE
from ..errors import ConfigError, TrackingError
from ..modeling.metrics import holm, mcnemar, wilson_interval
from ..reports.comparison import comparison_page, comparison_table, pairs_table
from ..reports.comparison_statistics import (
    ComparedRun,
    ComparisonFacts,
    Pair,
    pair_lines,
    summary_line,
)
from ..reports.report_folder import REPORT_FILE, prepare_report_folder
from ..tracking.environment import machine_tags
from ..tracking.history import CHOSEN_BY, PastRun, best_runs, past_run
from ..tracking.links import view_lines
from ..tracking.names import COMPARE, DESCRIPTION_TAG, analyses_of
from ..tracking.run_log import RunLog
from ..tracking.runs import open_run

_FOLDER = "comparison"
# Tags, other than options, that may explain a difference, and their names on the page.
_FACTS = {"data_digest": "data_digest", "git_commit": "git_commit", "device": "computed on"}


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    :ivar runs: one row for each run, as in ``comparison.csv``.
    :ivar pairs: one row for each pair tested on the same photos, as in ``pairs.csv``.
    :ivar words: the summary line, then a line for each pair or group of pairs.
    """

    run_id: str
    words: list[str]
    runs: pd.DataFrame = field(repr=False)
    pairs: pd.DataFrame = field(repr=False)


def compare(
    runs: Sequence[str] = (),
    *,
    experiment: str | None = None,
    best: int = 5,
    out: Path = Path(_FOLDER),
) -> Comparison:
    """Compare trainings: options that differ, curves, test accuracies, McNemar's test of pairs.

    Cross-validations with the same folds are compared on all photos.

    The comparison is logged as a run and written into a folder.

    :param runs: ids of at least two runs; trials of a search may be among them.
    :param experiment: instead, the ``best`` finished trainings of this MLflow experiment, by
        ``best_val_accuracy``. A search counts as one training, with its best trial, and a
        cross-validation with the mean over its folds.
    :raises ShopeeError: when there are not two runs, or one of them is no training.
    """
    ids = _check_call(runs, experiment, best, out)
    past = [past_run(run_id) for run_id in ids] if ids else best_runs(experiment or "", best)
    if len(past) < 2:
        raise TrackingError(
            f"experiment={experiment}: has 1 training run that has finished; a comparison needs "
            "two. Train another one, or name another experiment."
        )
    names = _short_names([run.name for run in past])
    compared = [
        _compared_run(letter, name, run)
        for letter, name, run in zip(_letters(), names, past, strict=False)
    ]
    chosen = f"The {len(past)} runs of highest {CHOSEN_BY} in the experiment {experiment}"
    lead = chosen if experiment else f"{len(past)} runs, chosen by their ids"
    facts = ComparisonFacts(lead, compared, _pairs(compared, past))
    where = past[0].experiment
    with open_run(f"compare {len(past)} runs of {where}", analyses_of(where), kind=COMPARE) as log:
        log.log_params(
            {
                "runs": ",".join(ids) or NONE,
                "experiment": experiment or NONE,
                "best": str(best) if experiment else NONE,
                "out": str(out),
            }
        )
        log.log_tags(machine_tags("cpu"))
        words = _keep(log, facts, out)
        say(*words, f"page in {out / REPORT_FILE}", *view_lines(log, f"{len(past)} runs"))
    return Comparison(log.run_id, words, comparison_table(facts), pairs_table(facts))


def _check_call(runs: Sequence[str], experiment: str | None, best: int, out: Path) -> list[str]:
    """The unique ids of the runs.

    :raises ConfigError: with every problem of the call.
    """
    ids = list(dict.fromkeys(run_id.strip() for run_id in runs if run_id.strip()))
    problems = []
    if bool(ids) == bool(experiment):
        problems.append("runs, experiment: name one of the two, ids of runs or an experiment")
    elif len(ids) == 1:
        problems.append(f"runs={ids[0]}: a comparison needs at least two runs")
    if experiment and best < 2:
        problems.append(f"best={best}: a comparison needs at least two runs")
    try:
        prepare_report_folder(out, "comparison")
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return ids


def _letters() -> Iterator[str]:
    """A, B, ... Z, AA, AB, ..."""
    for length in count(1):
        yield from ("".join(letters) for letters in product(ascii_uppercase, repeat=length))


def _short_names(names: Sequence[str]) -> list[str]:
    """Names without the ``option=value`` that all of them have, which tells no run apart.

    The rarest come first, so that a name that is cut still tells its run apart.
    """
    words = [name.split(" ") for name in names]
    common = {word for word in words[0] if "=" in word}.intersection(*words)
    runs = Counter(word for each in words for word in set(each))
    short = []
    for each in words:
        options = [word for word in each if "=" in word]
        # A name that the user has chosen may have words after an option.
        if each[len(each) - len(options) :] == options:
            each = [*each[: len(each) - len(options)], *sorted(options, key=runs.__getitem__)]
        short.append(" ".join(word for word in each if word not in common))
    return short


def _compared_run(letter: str, name: str, run: PastRun) -> ComparedRun:
    tested: dict[str, Any] = {}
    if run.predictions is not None:
        right, photos = int(_right(run.predictions).sum()), len(run.predictions)
        interval = run.interval or wilson_interval(right, photos)
        tested = {"right": right, "photos": photos, "interval": interval}
    return ComparedRun(
        letter=letter,
        name=name,
        run_id=run.run_id,
        options=_without_name(run.options),
        facts={name: run.tags[tag] for tag, name in _FACTS.items() if tag in run.tags},
        epochs=run.epochs,
        digest=run.tags.get("data_digest", ""),
        best_val_accuracy=run.metrics[CHOSEN_BY],
        best_epoch=int(run.metrics["best_epoch"]),
        **tested,
    )


def _without_name(options: Mapping[str, str]) -> dict[str, str]:
    """The options without the run's name, which has its own column."""
    return {name: value for name, value in options.items() if name != "run_name"}


def _right(predictions: pd.DataFrame) -> np.ndarray:
    return (predictions["label_group"] == predictions["predicted"]).to_numpy()


def _pairs(runs: Sequence[ComparedRun], past: Sequence[PastRun]) -> list[Pair]:
    """McNemar's test of all pairs tested on the same photos; p values adjusted by Holm."""
    found = []
    for (first, run), (second, other) in combinations(zip(runs, past, strict=True), 2):
        if run.predictions is None or other.predictions is None or first.digest != second.digest:
            continue
        if first.digest:
            found.append((first, second, *_mcnemar(run, other)))
    adjusted = holm([p for _, _, (_, _, p), _ in found])
    return [
        Pair(first, second, *counted, adjusted=corrected, copies_known=known)
        for (first, second, counted, known), corrected in zip(found, adjusted, strict=True)
    ]


def _mcnemar(run: PastRun, other: PastRun) -> tuple[tuple[int, int, float], bool]:
    """The result of the test, and whether the sets of copies are known."""
    assert run.predictions is not None
    assert other.predictions is not None
    first, second = (
        table.assign(right=_right(table)).set_index("image")
        for table in (run.predictions, other.predictions)
    )
    if set(first.index) != set(second.index):
        raise TrackingError(
            f"runs {run.run_id} and {other.run_id} have the same data_digest, but their test "
            "predictions name other photos: one of the two tables was changed."
        )
    second = second.loc[first.index]
    sets = _copy_sets([table["copy_set"] for table in (first, second) if "copy_set" in table])
    true = np.ones(len(first), bool)
    counted = mcnemar(true, first["right"].to_numpy(), second["right"].to_numpy(), sets)
    return counted, sets is not None


def _copy_sets(columns: Sequence[pd.Series]) -> np.ndarray | None:
    """Sets of photos that are copies for one of the runs; None if no run has logged them.

    Runs may differ in ``near_bits``.
    """
    if not columns:
        return None
    rows = np.arange(len(columns[0]))
    firsts = [
        first[number]
        for _, first, number in (
            np.unique(column, return_index=True, return_inverse=True) for column in columns
        )
    ]
    return connected(len(rows), np.tile(rows, len(firsts)), np.concatenate(firsts))


def _keep(log: RunLog, facts: ComparisonFacts, out: Path) -> list[str]:
    """Log the page and its tables, write them into the folder, and return the result's lines."""
    words = [summary_line(facts), *pair_lines(facts)]
    texts = {
        REPORT_FILE: comparison_page(facts),
        "comparison.csv": comparison_table(facts).to_csv(index=False, lineterminator="\n"),
        "pairs.csv": pairs_table(facts).to_csv(index=False, lineterminator="\n"),
    }
    for name, text in texts.items():
        log.log_text(text, f"{_FOLDER}/{name}")
        (out / name).write_text(text, encoding="utf-8")
    log.log_tags({DESCRIPTION_TAG: "\n".join([words[0], "", *(f"- {line}" for line in words[1:])])})
    return words
