"""Trainings set against one another: plain results, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from .pages import squeezed

SIGNIFICANT = 0.05
_MOST_IN_FULL = 6
_MOST_LISTED = 40


@dataclass(frozen=True)
class ComparedRun:
    """A training that is compared.

    :ivar letter: what it is called in figures and tables.
    :ivar options: name -> value as text.
    :ivar facts: what else may be why two runs differ, where it is known.
    :ivar epochs: columns epoch, val_loss, val_accuracy.
    :ivar digest: fingerprint of photos, labels and splits.
    :ivar right: test photos put into the right label group, of ``photos``; 0 of 0 where it was
        not tested.
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
        """Share of the test photos that is right."""
        return self.right / self.photos

    @property
    def title(self) -> str:
        """Letter and name, short enough for a line."""
        return f"{self.letter} ({squeezed(self.name, 30)})"


@dataclass(frozen=True)
class Pair:
    """Two trainings on the same test photos.

    :ivar only_first: photos that only the first gets right; ``only_second`` the second.
    :ivar p: of McNemar's exact test; ``adjusted`` by Holm for all pairs of the comparison.
    """

    first: ComparedRun
    second: ComparedRun
    only_first: int
    only_second: int
    p: float
    adjusted: float

    @property
    def differs(self) -> bool:
        """Whether the difference is more than chance."""
        return self.adjusted < SIGNIFICANT

    @property
    def better(self) -> ComparedRun:
        """The one with more photos right; the first where both have as many."""
        return self.first if self.only_first >= self.only_second else self.second

    @property
    def worse(self) -> ComparedRun:
        """The other one."""
        return self.second if self.only_first >= self.only_second else self.first


@dataclass(frozen=True)
class ComparisonFacts:
    """What the page is made from.

    :ivar lead: how the runs were chosen.
    :ivar pairs: all that were tested on the same photos.
    """

    lead: str
    contestants: Sequence[ComparedRun]
    pairs: Sequence[Pair]

    @property
    def tested(self) -> list[ComparedRun]:
        """Those that have test predictions."""
        return [c for c in self.contestants if c.photos]

    @property
    def splits(self) -> dict[str, list[ComparedRun]]:
        """Digest -> those that were tested on it."""
        found: dict[str, list[ComparedRun]] = {}
        for contestant in self.tested:
            found.setdefault(contestant.digest, []).append(contestant)
        return found


def verdict(facts: ComparisonFacts) -> str:
    """The comparison in a sentence."""
    differ = sum(pair.differs for pair in facts.pairs)
    if not facts.pairs:
        return (
            "No two of these runs are known to have the same test photos, so none is known to be "
            "better."
        )
    if len(facts.pairs) == 1:
        more = "more than chance" if differ else "no more than chance can explain"
        return f"The difference between the two runs that can be compared is {more}."
    if differ == 0:
        return f"None of the {len(facts.pairs)} differences is more than chance can explain."
    if differ == len(facts.pairs):
        return f"All {differ} differences between runs are more than chance."
    return (
        f"{differ} of the {len(facts.pairs)} differences between runs "
        f"{_are(differ)} more than chance; chance can explain the rest."
    )


def findings(facts: ComparisonFacts) -> list[str]:
    """Each pair in words, the clearest first, and which runs cannot be compared, and why."""
    pairs = sorted(facts.pairs, key=lambda pair: pair.adjusted)
    in_full = len(pairs) <= _MOST_IN_FULL
    lines = [_in_words(pair) for pair in pairs] if in_full else _in_short(pairs)
    if len(facts.splits) > 1:
        groups = "; ".join(
            f"{listed(some)} on {digest or 'unknown photos'}"
            for digest, some in facts.splits.items()
        )
        lines.append(
            "Not to be compared with one another, since their data_digest differs, and their test "
            f"photos may: {groups}."
        )
    untested = [c for c in facts.contestants if not c.photos]
    if untested:
        lines.append(
            f"Not tested, as is every trial of a search, and so without test accuracy: "
            f"{listed(untested)}."
        )
    return lines


def _in_short(pairs: Sequence[Pair]) -> list[str]:
    """A line for each run that is better than others, and one for what chance can explain."""
    beaten: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.differs:
            beaten.setdefault(pair.better.title, []).append(pair)
    lines = [
        f"{title} is better than {worse_runs(mine)}: more than chance "
        f"({_p_in_words(mine[-1].adjusted, most=True)})."
        for title, mine in beaten.items()
    ]
    rest = [f"{p.first.letter} and {p.second.letter}" for p in pairs if not p.differs]
    more = f" and {len(rest) - _MOST_LISTED} more" if len(rest) > _MOST_LISTED else ""
    if rest:
        lines.append(f"No more than chance can explain: {', '.join(rest[:_MOST_LISTED])}{more}.")
    return lines


def worse_runs(pairs: Sequence[Pair]) -> str:
    return listed(sorted((p.worse for p in pairs), key=lambda c: (len(c.letter), c.letter)))


def _in_words(pair: Pair) -> str:
    better, worse = pair.better, pair.worse
    mine, its = sorted((pair.only_first, pair.only_second), reverse=True)
    if mine == 0:
        return f"{better.title} and {worse.title} are right on the very same photos."
    counts = (
        f"of {better.photos:,} test photos, {mine:,} {_are(mine)} right only with {better.letter} "
        f"and {its:,} only with {worse.letter}"
    )
    p = _p_in_words(pair.adjusted)
    if pair.differs:
        return f"{better.title} is better than {worse.title}: {counts}. More than chance ({p})."
    return f"{better.title} and {worse.title}: {counts}. No more than chance can explain ({p})."


def _p_in_words(p: float, *, most: bool = False) -> str:
    if p < 0.001:
        return "p < 0.001"
    return f"p {'at most' if most else '='} {p:.2g}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def listed(some: Sequence[ComparedRun]) -> str:
    """Their letters."""
    return ", ".join(c.letter for c in some)


def differing_options(contestants: Sequence[ComparedRun]) -> list[str]:
    """Names of options and facts that are not the same for all, in the order they are known."""
    options = dict.fromkeys(name for c in contestants for name in c.options)
    facts = dict.fromkeys(name for c in contestants for name in c.facts)
    return [
        *(n for n in options if len({c.options.get(n) for c in contestants}) > 1),
        *(n for n in facts if len({c.facts[n] for c in contestants if n in c.facts}) > 1),
    ]


def value_of(contestant: ComparedRun, name: str) -> str:
    """An option's value or a fact; nothing where it is not known."""
    return contestant.options.get(name, contestant.facts.get(name, ""))
