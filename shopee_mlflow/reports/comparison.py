"""The comparison of trainings as one HTML page."""

from __future__ import annotations

from contextlib import suppress

import pandas as pd

from .comparison_figures import accuracy_figure, curves_figure
from .comparison_statistics import (
    SIGNIFICANT,
    ComparedRun,
    ComparisonFacts,
    differing_options,
    listed,
    pair_lines,
    summary_line,
    value_of,
)
from .pages import Picture, Table, figure_picture, render, shortened, squeezed
from .training import STILL_FALLING, still_falling

_MOST_PAIRS = 60
_LONG_NUMBER = 8


def comparison_page(facts: ComparisonFacts) -> str:
    """The page; see the template ``comparison.html.j2`` for the order of its sections."""
    differ = differing_options(facts.runs)
    more = max(0, len(facts.pairs) - _MOST_PAIRS)
    return render(
        "comparison.html.j2",
        title=f"Comparison of {len(facts.runs)} runs",
        lead=facts.lead,
        headline=_headline(facts),
        summary=summary_line(facts),
        lines=pair_lines(facts),
        caution=_CAUTION,
        accuracies=_accuracies(facts) if facts.tested else None,
        runs=Table("", "", _run_rows(facts)),
        pairs=Table("Pairs", _PAIRS, _pair_rows(facts).head(_MOST_PAIRS), more),
        options=Table("", "", _option_rows(facts)) if differ else None,
        curves=[_curves(facts, "val_accuracy"), _curves(facts, "val_loss")],
        learned=_best_epochs(facts),
    )


_CAUTION = (
    "This page compares trained models, not options: with another seed, the same options give "
    "another model. Train several seeds before you conclude that an option is better. The accuracy "
    "of the best of many runs is biased upwards."
)
_PAIRS = (
    "McNemar's exact test uses the photos that only one run of a pair classifies correctly. p is "
    "the probability of a difference at least as large if both runs are equally good. With Holm's "
    f"correction, two equally good runs are called different in at most {SIGNIFICANT:.0%} of "
    "comparisons such as this one. Copies of a photo count together, as one comparison: a set of "
    "copies supports the run that classifies more of them correctly."
)
_INTERVALS = (
    "Test accuracy with its 95 % Wilson interval. The test of pairs below can tell runs apart even "
    "if their intervals overlap, because it compares them photo by photo."
)


def _headline(facts: ComparisonFacts) -> list[tuple[str, str]]:
    lines = [("Runs", f"{len(facts.runs):,}")]
    if len(facts.splits) == 1:
        top = max(c.accuracy for c in facts.tested)
        best = listed([c for c in facts.tested if c.accuracy == top])
        lines.append(("Highest test accuracy", f"{top:.1%} ({shortened(best, 12)})"))
        lines.append(("Test photos", f"{facts.tested[0].photos:,}"))
    else:
        lines.append(("Test splits", f"{len(facts.splits):,}"))
    differ = sum(pair.differs for pair in facts.pairs)
    lines.append(("Pairs told apart", f"{differ:,} of {len(facts.pairs):,}"))
    return lines


def _accuracies(facts: ComparisonFacts) -> Picture:
    said = ", ".join(f"{c.letter} {c.accuracy:.1%}" for c in facts.tested)
    alt = f"Test accuracy of each run with its 95 % interval: {said}."
    return figure_picture(accuracy_figure(facts.splits), alt, _INTERVALS)


def _curves(facts: ComparisonFacts, metric: str) -> Picture:
    runs = {(c.letter, c.name): c.epochs for c in facts.runs}
    name = {"val_accuracy": "Validation accuracy", "val_loss": "Validation loss"}[metric]
    last = ", ".join(f"{c.letter} {c.epochs[metric].iloc[-1]:.3g}" for c in facts.runs)
    alt = f"{name} of each run by epoch; in the last epoch {last}."
    return figure_picture(curves_figure(runs, metric, name), alt)


def _best_epochs(facts: ComparisonFacts) -> str:
    words = "Each run kept the weights of its best epoch on validation photos."
    falling = [c for c in facts.runs if still_falling(c.epochs["val_loss"])]
    if not falling:
        return words
    noun = "run" if len(falling) == 1 else "runs"
    return f"{words} In {noun} {listed(falling)}: {STILL_FALLING[0].lower()}{STILL_FALLING[1:]}"


def _run_rows(facts: ComparisonFacts) -> pd.DataFrame:
    rows = []
    for c in facts.runs:
        row = {"run": c.letter, "name": shortened(c.name, 80)}
        row["test accuracy"] = f"{c.accuracy:.1%}" if c.photos else "not tested"
        low, high = c.interval
        row["95 % interval"] = f"{low:.1%} to {high:.1%}" if c.photos else ""
        row["right"] = f"{c.right:,} of {c.photos:,}" if c.photos else ""
        row["validation"] = f"{c.best_val_accuracy:.1%}"
        row["best epoch"] = f"{c.best_epoch} of {c.epochs['epoch'].max()}"
        row["run id"] = c.run_id
        rows.append(row)
    return pd.DataFrame(rows)


def _pair_rows(facts: ComparisonFacts) -> pd.DataFrame:
    rows = [
        {
            "pair": f"{pair.first.letter}, {pair.second.letter}",
            "only first right": pair.only_first,
            "only second right": pair.only_second,
            "p": f"{pair.p:.2g}",
            "p, Holm": f"{pair.adjusted:.2g}",
            "result": f"{pair.better.letter} is better" if pair.differs else "not told apart",
        }
        for pair in sorted(facts.pairs, key=lambda pair: pair.adjusted)
    ]
    return pd.DataFrame(rows)


def _option_rows(facts: ComparisonFacts) -> pd.DataFrame:
    """The options that differ, in one row per run, or per option if these are more."""
    runs, names = facts.runs, differing_options(facts.runs)
    if len(runs) < len(names):
        return pd.DataFrame(
            [{"option": name, **{c.letter: _value(c, name) for c in runs}} for name in names]
        )
    return pd.DataFrame([{"run": c.letter, **{n: _value(c, n) for n in names}} for c in runs])


def _value(run: ComparedRun, name: str) -> str:
    text = value_of(run, name)
    if "." in text and len(text) > _LONG_NUMBER:
        with suppress(ValueError):
            return f"{float(text):.4g}"
    return squeezed(text, 40)


def comparison_table(facts: ComparisonFacts) -> pd.DataFrame:
    """One row for each run: its scores, and the options that differ."""
    names = differing_options(facts.runs)
    rows = []
    for c in facts.runs:
        row: dict[str, object] = {"run": c.letter, "name": c.name, "run_id": c.run_id}
        row |= {"data_digest": c.digest, "test_photos": c.photos}
        if c.photos:
            row |= {"test_right": c.right, "test_accuracy": c.accuracy}
            row |= {"test_accuracy_low": c.interval[0], "test_accuracy_high": c.interval[1]}
        row |= {"best_val_accuracy": c.best_val_accuracy, "best_epoch": c.best_epoch}
        row["epochs_trained"] = int(c.epochs["epoch"].max())
        rows.append(row | {name: value_of(c, name) for name in names})
    return pd.DataFrame(rows)


def pairs_table(facts: ComparisonFacts) -> pd.DataFrame:
    """One row for each pair tested on the same photos, sorted by p value."""
    columns = ("first", "second", "only_first_right", "only_second_right", "p", "p_holm", "differs")
    rows = [
        (p.first.letter, p.second.letter, p.only_first, p.only_second, p.p, p.adjusted, p.differs)
        for p in sorted(facts.pairs, key=lambda pair: pair.adjusted)
    ]
    return pd.DataFrame(rows, columns=list(columns))
