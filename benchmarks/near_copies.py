"""What each value of near_bits ties in a catalogue, from its phashes alone.

    python benchmarks/near_copies.py shop/train.csv [--seed 0]

Each row is the leak-free split with this number of bits, 0 to 12. docs/near_copies.md discusses the
results. Every pair of phashes is compared, which takes seconds for 30,000 of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from shopee_mlflow.data.catalog_csv import read_catalog
from shopee_mlflow.data.cleaning import drop_small_groups, select_rows
from shopee_mlflow.data.cleaning_record import Cleaning
from shopee_mlflow.data.near_copies import connected, parse_phashes
from shopee_mlflow.data.splits import TEST, TRAIN, assign_splits, count_mixed, telling_phashes

MOST, _CHUNK = 12, 500


def main() -> None:
    """Print a table with one row for each number of bits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--groups", type=int, default=0, help="largest label groups; 0: all")
    parser.add_argument("--min-group", type=int, default=2, help="smallest label group")
    options = parser.parse_args()
    cleaning = Cleaning(rows=0)
    frame = select_rows(read_catalog(options.csv), options.groups, cleaning)
    frame = drop_small_groups(frame, options.min_group, cleaning).reset_index(drop=True)
    phashes = telling_phashes(frame["image_phash"].str.lower())
    frame = frame.assign(content="", image_phash=phashes)
    table = pd.DataFrame(measure(frame, options.seed))
    print(f"{options.csv}: {len(frame):,} photos, {frame['label_group'].nunique():,} label groups")
    print("| " + " | ".join(table.columns) + " |\n" + "| --- " * len(table.columns) + "|")
    for row in table.itertuples(index=False):
        print("| " + " | ".join(str(value) for value in row) + " |")


def measure(frame: pd.DataFrame, seed: int) -> Iterator[dict[str, str]]:
    """One row of the table for each number of bits at which there are pairs."""
    code, distinct = pd.factorize(frame["image_phash"].where(frame["image_phash"] != "", None))
    unknown = np.flatnonzero(code < 0)
    code[unknown] = len(distinct) + np.arange(len(unknown))
    count = len(distinct) + len(unknown)
    values = parse_phashes(list(distinct))
    left, right, bits = pairs_within(values, MOST)
    group = frame.groupby(code)["label_group"].agg(set).to_list()
    same = np.array([bool(group[a] & group[b]) for a, b in zip(left, right, strict=True)])
    for near_bits in range(MOST + 1):
        tied, at = bits <= near_bits, bits == near_bits
        sets = pd.Series(connected(count, left[tied], right[tied])[code], frame.index)
        split = assign_splits(frame, "leak_free", seed, sets).to_numpy()
        test = split == TEST
        leaks = {}
        for most in (4, 6, MOST):
            near = has_near(code, count, left[bits <= most], right[bits <= most], split == TRAIN)
            leaks[f"test photos within {most} bits of train"] = f"{near[test].mean():.1%}"
        sizes = sets.value_counts()
        largest = frame.loc[sets == sizes.index[0], "label_group"].nunique()
        yield {
            "bits": str(near_bits),
            "pairs of phashes this far apart": f"{at.sum():,}",
            "of the same label group": f"{same[at].mean():.0%}" if at.any() else "",
            **leaks,
            "photos of the largest set": f"{sizes.iloc[0]:,}",
            "its label groups": f"{largest:,}",
            "photos tied to another label group": f"{count_mixed(frame, sets):,}",
        }


def pairs_within(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of values that differ in at most ``most`` bits: left, right, bits."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
    for start in range(0, len(values), _CHUNK):
        bits = np.bitwise_count(values[start : start + _CHUNK, None] ^ values[None, start:])
        one, other = np.nonzero(bits <= most)
        one, other = one[one < other], other[one < other]
        found.append((one + start, other + start, bits[one, other]))
    left, right, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return left, right, bits


def has_near(
    code: np.ndarray, count: int, left: np.ndarray, right: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Whether train has an equal phash, or one of the pairs' other phash, for each photo."""
    there = np.zeros(count, dtype=bool)
    there[code[train]] = True
    near = there.copy()
    near[left[there[right]]] = True
    near[right[there[left]]] = True
    return near[code]


if __name__ == "__main__":
    main()
