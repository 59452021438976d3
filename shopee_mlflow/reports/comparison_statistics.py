"""Comparisons of trainings: the results, and the sentences that describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from .pages import shortened

SIGNIFICANT = 0.05
_MOST_IN_FULL = 6
_MOST_LISTED = 40


@dataclass(frozen=True)
class ComparedRun:
    """One of the trainings of a comparison.

    :ivar letter: its name in figures and tables: A, B, ...
    :ivar options: name -> value as text.
    :ivar facts: other possible reasons for a difference, such as the commit.
    :ivar epochs: columns epoch, val_loss, val_accuracy.
    :ivar digest: digest of photos, labels and splits.
    :ivar right: correctly classified test photos, of ``photos``; 0 of 0 without a test.
    :ivar interval: 95 % interval of the test accuracy.
    """

    letter: str
    name: str
    run_id: str
    options: Mapping[str, str]
    epochs: pd.DataFrame = field(repr=False)
    digest: str
    best_val_accuracy: float
    best_epoch: int
    right: int = 0
    photos: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of correctly classified test photos."""
        return self.right / self.photos

    @property
    def title(self) -> str:
        """Letter and name, short enough for a line."""
        return f"{self.letter} ({shortened(self.name, 40)})"


@dataclass(frozen=True)
class Pair:
    """Two trainings on the same test photos.

    :ivar only_first: photos that only the first gets right; ``only_second`` the second.
    :ivar p: of McNemar's exact test; ``adjusted`` by Holm for all pairs of the comparison.
    :ivar copies_known: whether copies of a photo count together; else all photos are independent.
    """

    first: ComparedRun
    second: ComparedRun
    only_first: int
    only_second: int
    p: float
    adjusted: float
    copies_known: bool = True

    @property
    def differs(self) -> bool:
        """Whether the difference is significant."""
        return self.adjusted < SIGNIFICANT

    @property
    def better(self) -> ComparedRun:
        """The run with more correct photos; the first if both have the same number."""
        return self.first if self.only_first >= self.only_second else self.second

    @property
    def worse(self) -> ComparedRun:
        """The run with fewer correct photos."""
        return self.second if self.only_first >= self.only_second else self.first


@dataclass(frozen=True)
class ComparisonFacts:
    """The content of the page.

    :ivar lead: how the runs were chosen.
    :ivar pairs: all pairs tested on the same photos.
    """

    lead: str
    runs: Sequence[ComparedRun]
    pairs: Sequence[Pair]

    @property
    def tested(self) -> list[ComparedRun]:
        """The runs with test predictions."""
        return [c for c in self.runs if c.photos]

    @property
    def splits(self) -> dict[str, list[ComparedRun]]:
        """Digest -> the runs tested on it."""
        found: dict[str, list[ComparedRun]] = {}
        for run in self.tested:
            found.setdefault(run.digest, []).append(run)
        return found


def summary_line(facts: ComparisonFacts) -> str:
    """The comparison in a sentence."""
    differ = sum(pair.differs for pair in facts.pairs)
    if not facts.pairs:
        return (
            "No two of these runs are known to have the same test photos, so none of them can be "
            "compared."
        )
    if len(facts.pairs) == 1:
        (pair,) = facts.pairs
        if differ:
            return f"{pair.better.title} is the better run."
        return (
            f"These test photos do not tell which of {pair.first.letter} and {pair.second.letter} "
            "is better."
        )
    if differ == 0:
        return "These test photos do not tell any two of the runs apart."
    if differ == len(facts.pairs):
        return f"All {differ} pairs of runs differ by more than chance explains."
    return (
        f"{differ} of the {len(facts.pairs)} pairs of runs {_differ(differ)} by more than chance "
        "explains; the others cannot be told apart with these test photos."
    )


def pair_lines(facts: ComparisonFacts) -> list[str]:
    """A line for each pair, sorted by p value, and for runs that cannot be compared."""
    pairs = sorted(facts.pairs, key=lambda pair: pair.adjusted)
    in_full = len(pairs) <= _MOST_IN_FULL
    lines = [_pair_line(pair) for pair in pairs] if in_full else _short_lines(pairs)
    if len(facts.splits) > 1:
        groups = "; ".join(
            f"{listed(some)} on {digest or 'unknown photos'}"
            for digest, some in facts.splits.items()
        )
        lines.append(
            "These groups of runs are not compared with each other, because their data_digest "
            f"differs: {groups}."
        )
    if not all(pair.copies_known for pair in facts.pairs):
        lines.append(
            "Runs of earlier versions have not logged which photos are copies. Where both of a "
            "pair are such runs, copies count as independent, so p may be too small."
        )
    untested = [c for c in facts.runs if not c.photos]
    if untested:
        lines.append(
            f"Runs without a test accuracy, such as trials of a search: {listed(untested)}."
        )
    return lines


def _short_lines(pairs: Sequence[Pair]) -> list[str]:
    """A line for each run that is better than others, and one for all other pairs."""
    better: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.differs:
            better.setdefault(pair.better.title, []).append(pair)
    lines = [
        f"{title} is better than {worse_runs(mine)} ({_p_text(mine[-1].adjusted, most=True)})."
        for title, mine in better.items()
    ]
    rest = [f"{p.first.letter} and {p.second.letter}" for p in pairs if not p.differs]
    more = f" and {len(rest) - _MOST_LISTED} more" if len(rest) > _MOST_LISTED else ""
    if rest:
        lines.append(f"Not told apart: {', '.join(rest[:_MOST_LISTED])}{more}.")
    return lines


def worse_runs(pairs: Sequence[Pair]) -> str:
    """The letters of the worse run of each pair, in order."""
    return listed(sorted((p.worse for p in pairs), key=lambda c: (len(c.letter), c.letter)))


def _pair_line(pair: Pair) -> str:
    better, worse = pair.better, pair.worse
    mine, its = sorted((pair.only_first, pair.only_second), reverse=True)
    if mine == 0:
        return f"{better.title} and {worse.title} classify the same photos correctly."
    counts = (
        f"of {better.photos:,} test photos, {mine:,} {_are(mine)} correct only with "
        f"{better.letter} and {its:,} only with {worse.letter}"
    )
    verdict = "is better than" if pair.differs else "and"
    return f"{better.title} {verdict} {worse.title}: {counts}. {chance_line(pair.p, pair.adjusted)}"


def chance_line(p: float, adjusted: float) -> str:
    """What McNemar's test says about the difference of two models.

    :param adjusted: the p value after Holm's correction.
    """
    if adjusted < SIGNIFICANT:
        return f"Chance alone rarely gives so large a difference ({_p_text(adjusted)})."
    often = f"Equally good models differ by this much in {p:.0%} of such tests ({_p_text(p)})"
    if p < SIGNIFICANT:
        return f"{often}; among several pairs that may be chance ({_p_text(adjusted)} by Holm)."
    return f"{often}, so it may be chance."


def _p_text(p: float, *, most: bool = False) -> str:
    if p < 0.001:
        return "p < 0.001"
    return f"p {'at most' if most else '='} {p:.2g}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _differ(count: int) -> str:
    return "differs" if count == 1 else "differ"


def listed(some: Sequence[ComparedRun]) -> str:
    """Their letters."""
    return ", ".join(c.letter for c in some)


def differing_options(runs: Sequence[ComparedRun]) -> list[str]:
    """Names of options and facts that differ between runs."""
    options = dict.fromkeys(name for c in runs for name in c.options)
    facts = dict.fromkeys(name for c in runs for name in c.facts)
    return [
        *(n for n in options if len({c.options.get(n) for c in runs}) > 1),
        *(n for n in facts if len({c.facts[n] for c in runs if n in c.facts}) > 1),
    ]


def value_of(run: ComparedRun, name: str) -> str:
    """The value of an option or a fact; empty where unknown."""
    return run.options.get(name, run.facts.get(name, ""))
