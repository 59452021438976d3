"""Time, memory and recall of matching for catalogues of increasing size.

    python benchmarks/match_growth.py --sizes 34250,100000,1000000

Postings have titles and phashes and are drawn, see :func:`draw_postings`. Each size is measured in
a process of its own: candidate pairs, their similarities, and matches by fixed thresholds. Recall
is the share of pairs of equal label groups among the candidates, and the share of the 15 nearest
titles of 300 postings by exact products. docs/match.md has the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import pandas as pd

_ASKED, _NEAREST = 300, 15
_SYLLABLES = [a + b for a in "bcdfghjklmnprstvwyz" for b in "aeiou"]
# Group sizes of Kaggle's catalogue: 63 % are pairs, and the largest has 51 postings.
_PAIRS, _MEAN_MORE, _LARGEST = 0.63, 2.8, 51


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="34250,100000,1000000")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child)))
        return
    rows = []
    for size in map(int, options.sizes.split(",")):
        command = [sys.executable, __file__, "--child", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


def draw_postings(count: int, seed: int = 0) -> pd.DataFrame:
    """Postings whose titles share words about as often as those of a real catalogue.

    Words are drawn by Zipf's law from a vocabulary that grows with the catalogue (Heaps' law). A
    label group has a title of 5 to 11 words. A posting keeps three quarters of them, adds up to
    four words, and shuffles them. Six of ten phashes are those of the group with up to 4 bits
    changed; the others are drawn anew.
    """
    random = np.random.default_rng(seed)
    sizes = np.full(count, 2)
    more = random.random(count) > _PAIRS
    sizes[more] = np.minimum(2 + random.geometric(1 / _MEAN_MORE, more.sum()), _LARGEST)
    group = np.repeat(np.arange(count), sizes)[:count]
    words = _vocabulary(int(10 * count**0.75), random)
    chance = 1 / np.arange(10, len(words) + 10)
    cumulated = np.cumsum(chance) / chance.sum()

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.searchsorted(cumulated, random.random(shape))

    base, lengths = draw((group[-1] + 1, 11)), random.integers(5, 12, group[-1] + 1)
    chosen = np.concatenate([base[group], draw((count, 4))], axis=1)
    kept = random.random(chosen.shape) < np.r_[np.full(11, 0.75), np.full(4, 0.5)]
    kept[:, :11] &= np.arange(11) < lengths[group][:, None]
    order = np.argsort(random.random(chosen.shape), axis=1)
    chosen = np.take_along_axis(chosen, order, 1)
    kept = np.take_along_axis(kept, order, 1)
    titles = [" ".join(words[row[keep]]) for row, keep in zip(chosen, kept, strict=True)]
    phashes = _phashes(group, random)
    frame = {"posting_id": [f"p{row}" for row in range(count)], "title": titles}
    return pd.DataFrame({**frame, "image_phash": phashes, "label_group": group.astype(str)})


def _vocabulary(count: int, random: np.random.Generator) -> np.ndarray:
    """Words of two to four syllables, a tenth of them with a number such as 250ml."""
    syllables = random.integers(len(_SYLLABLES), size=(count, 4))
    lengths, numbered = random.integers(2, 5, count), random.random(count) < 0.1
    words = []
    for number, row in enumerate(syllables):
        word = "".join(_SYLLABLES[syllable] for syllable in row[: lengths[number]])
        words.append(f"{number}{word[:2]}" if numbered[number] else word)
    return np.array(words)


def _phashes(group: np.ndarray, random: np.random.Generator) -> list[str]:
    of_group = random.integers(2**63, size=group[-1] + 1).astype(np.uint64)
    values = of_group[group]
    for _ in range(4):
        flipped = np.uint64(1) << random.integers(63, size=len(group)).astype(np.uint64)
        values = np.where(random.random(len(group)) < 0.4, values ^ flipped, values)
    fresh = random.integers(2**63, size=len(group)).astype(np.uint64)
    values = np.where(random.random(len(group)) < 0.6, values, fresh)
    return [f"{value:016x}" for value in values.tolist()]


def measure(count: int) -> dict[str, float]:
    """Seconds, GB at most, candidates and recall for a drawn catalogue."""
    from shopee_mlflow.matching.candidates import find_pairs
    from shopee_mlflow.matching.matcher import match_among
    from shopee_mlflow.matching.postings import check_postings

    frame = draw_postings(count)
    drawn = _gigabytes()
    started = time.perf_counter()
    postings = check_postings(frame)
    vectors = time.perf_counter()
    pairs = find_pairs(postings.titles, postings.phashes)
    searched = time.perf_counter()
    matches = match_among(postings, pairs)
    ended = time.perf_counter()
    height = _gigabytes()
    labels = frame["label_group"].astype(int).to_numpy()
    true = (np.bincount(labels) * (np.bincount(labels) - 1)).sum()
    right = labels[pairs.query] == labels[pairs.match]
    return {
        "postings": count,
        "vectors_s": round(vectors - started, 1),
        "search_s": round(searched - vectors, 1),
        "match_s": round(ended - searched, 1),
        "gb": round(height, 2),
        "drawn_gb": round(drawn, 2),
        "candidates": round(len(pairs) / count, 1),
        "recall_groups": round(float(right.sum() / true), 4),
        "recall_nearest": round(recall_of_nearest(postings.titles, pairs), 4),
        "matches": round(float(matches.chosen.sum() / count), 2),
    }


def recall_of_nearest(titles: object, pairs: object) -> float:
    """The share of the exactly nearest titles of some postings that are candidates."""
    from shopee_mlflow.matching import candidates

    candidates.EXACT_MOST = sys.maxsize  # by all terms that are in at most 5,000 titles
    search = candidates.TitleSearch(titles)  # type: ignore[arg-type]
    count = search.vectors.shape[0]
    asked = np.random.default_rng(1).choice(count, min(_ASKED, count), replace=False)
    query, match = search.nearest(titles.rows(asked), _NEAREST + 1)  # type: ignore[attr-defined]
    query = asked[query]
    wanted = (query * count + match)[query != match]
    there = pairs.query * count + pairs.match  # type: ignore[attr-defined]
    return float(np.isin(wanted, there[np.isin(pairs.query, asked)]).mean())  # type: ignore[attr-defined]


def _gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
