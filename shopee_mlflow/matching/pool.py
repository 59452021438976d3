"""A pool of postings that new ones are matched within, without matching the whole pool again.

The likely pairs of the pool are computed once. A new posting is compared with its nearest postings
of the pool, and the pair model sees these and their likely pairs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from ..data.near_copies import NEAR_BITS, parse_phashes
from ..data.splits import telling_phashes
from ..errors import CatalogError
from .candidates import NEAREST, PhotoSearch, TitleSearch, find_pairs
from .matcher import Matcher, Matches, candidates, likely_pairs
from .pair_features import similarities
from .pairs import Pairs
from .postings import Postings, valid_phashes


@dataclass(frozen=True)
class Pool:
    """Postings and their likely pairs."""

    postings: Postings
    pairs: Pairs

    @classmethod
    def of(cls, postings: Postings, matcher: Matcher) -> Pool:
        """Find the likely pairs of postings.

        :raises CatalogError: when they have other signals than those the matcher was chosen with.
        """
        matcher.check_signals(postings)
        pairs, found = candidates(postings)
        return cls(postings, likely_pairs(pairs, found, matcher.likely)[0])

    def match(self, matcher: Matcher, new: Postings) -> Matches:
        """Matches of new postings within the pool and among one another.

        Terms of titles that no posting of the pool has are not compared.

        :param new: as :meth:`new_postings` returns them.
        :returns: matches of ``new``, whose rows follow those of :attr:`postings`. Those of the pool
            are not computed.
        """
        count, own = len(self.postings), np.arange(len(new))
        query, match = self._nearest(new)
        among = find_pairs(new.titles, new.phashes, new.photos)
        reached, left, right = self._neighbourhood(np.unique(match))
        rows = np.concatenate([reached, count + own])
        query = np.concatenate([left, count + query, count + among.query])
        match = np.concatenate([right, match, count + among.match])
        # Numbered by their positions in ``rows``.
        query, match = np.searchsorted(rows, query), np.searchsorted(rows, match)
        pairs, local = Pairs.of(len(rows), query, match), self._local(reached, new)
        found = similarities(local.titles, local.phashes, pairs, local.photos)
        matches = matcher.weigh(local, pairs, found, rows >= count)
        near = matches.pairs
        far = Pairs(count + len(new), rows[near.query], rows[near.match])
        return Matches(far, matches.found, matches.chances, matches.chosen)

    def new_postings(self, rows: pd.DataFrame, photos: np.ndarray | None = None) -> Postings:
        """New postings with the signals of the pool.

        :param rows: columns posting_id, title, image_phash, all text, empty where unknown. A
            malformed phash counts as unknown.
        :param photos: (n, features) float32, as those of the pool.
        :raises CatalogError: when a posting_id repeats, or is in the pool already.
        """
        known = self.postings
        self.check_new_ids(rows["posting_id"])
        frame = rows.reset_index(drop=True)
        frame["image_phash"] = valid_phashes(frame["image_phash"])
        titles = None if known.titles is None else known.titles.of(list(frame["title"]))
        phashes = None if known.phashes is None else frame["image_phash"]
        return Postings(frame, titles, phashes, None if known.photos is None else photos)

    def check_new_ids(self, new: pd.Series) -> None:
        """Check that new postings have ids of their own.

        :raises CatalogError: otherwise.
        """
        if (twice := new[new.duplicated()]).size:
            raise CatalogError(
                f"posting_id: {len(twice):,} values repeat an earlier one, such as "
                f"{twice.iloc[0]!r}; give each posting its own."
            )
        known = self.ids.get_indexer(pd.Index(new)) >= 0
        if (there := new[pd.Series(known, new.index)]).size:
            raise CatalogError(
                f"posting_id: {len(there):,} of {len(new):,} postings are in the index already, "
                f"such as {there.iloc[0]!r}; leave them out, or give them other ids."
            )

    @cached_property
    def ids(self) -> pd.Index:
        """The ids of the postings. Their hash table is built at the first search, and kept."""
        return pd.Index(self.postings.frame["posting_id"])

    @cached_property
    def _titles(self) -> TitleSearch | None:
        titles = self.postings.titles
        return None if titles is None else TitleSearch(titles)

    @cached_property
    def _phashes(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows with a phash that tells photos apart, and their phashes as numbers."""
        return _numbers(self.postings.phashes)

    @cached_property
    def _photos(self) -> PhotoSearch | None:
        photos = self.postings.photos
        return None if photos is None else PhotoSearch(photos)

    def _nearest(self, new: Postings) -> tuple[np.ndarray, np.ndarray]:
        """The nearest postings of the pool: rows of ``new`` and of the pool."""
        found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        if self._titles is not None and new.titles is not None:
            found.append(self._titles.nearest(new.titles, NEAREST))
        if new.phashes is not None:
            rows, values = self._phashes
            for row, value in zip(*_numbers(new.phashes), strict=True):
                near = rows[np.bitwise_count(values ^ value) <= NEAR_BITS][:NEAREST]
                found.append((np.full(len(near), row), near))
        if self._photos is not None and new.photos is not None:
            found.append(self._photos.nearest(new.photos, NEAREST))
        query, match = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return query.astype(np.int64), match.astype(np.int64)

    def _neighbourhood(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """These rows and those of their likely pairs, sorted, and all likely pairs among them."""
        near = np.unique(np.concatenate([rows, self._pairs_of(rows)[1]]))
        left, right = self._pairs_of(near)
        inside = np.isin(right, near)
        return near, left[inside], right[inside]

    def _pairs_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The likely pairs whose query is one of these rows."""
        start = np.searchsorted(self.pairs.query, rows)
        stop = np.searchsorted(self.pairs.query, rows, side="right")
        spans = [np.arange(*span) for span in zip(start, stop, strict=True)]
        positions = np.concatenate([np.empty(0, np.int64), *spans])
        return self.pairs.query[positions], self.pairs.match[positions]

    def _local(self, rows: np.ndarray, new: Postings) -> Postings:
        """Some rows of the pool, followed by the new postings."""
        known = self.postings
        frame = pd.concat([known.frame.iloc[rows], new.frame], ignore_index=True).fillna("")
        titles = None
        if known.titles is not None and new.titles is not None:
            titles = known.titles.rows(rows).and_of(new.titles)
        phashes = None if known.phashes is None else frame["image_phash"]
        photos = None
        if known.photos is not None and new.photos is not None:
            photos = np.concatenate([known.photos[rows], new.photos])
        return Postings(frame, titles, phashes, photos)


@dataclass(frozen=True)
class PoolChanges:
    """How postings differ from those of an earlier pool, by their ids.

    :ivar new: number of postings whose id is not in the earlier pool.
    :ivar missing: number of postings of the earlier pool whose id is not there any more.
    :ivar changed: number of postings that are in both, with another title or image_phash.
    :ivar before: number of postings of the earlier pool.
    """

    new: int
    missing: int
    changed: int
    before: int

    def __bool__(self) -> bool:
        return bool(self.new or self.missing or self.changed)

    def words(self) -> str:
        """The changes, for people."""
        counts = {"new": self.new, "missing": self.missing, "changed": self.changed}
        return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def pool_changes(before: pd.DataFrame, now: pd.DataFrame) -> PoolChanges:
    """Compare two tables of postings with the columns posting_id, title and image_phash."""
    both = before.merge(now, on="posting_id", suffixes=("", "_now"))
    changed = (both["title"] != both["title_now"]) | (
        both["image_phash"].str.lower() != both["image_phash_now"].str.lower()
    )
    return PoolChanges(
        len(now) - len(both), len(before) - len(both), int(changed.sum()), len(before)
    )


def _numbers(phashes: pd.Series | None) -> tuple[np.ndarray, np.ndarray]:
    if phashes is None:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    known = telling_phashes(phashes.reset_index(drop=True))
    rows = np.flatnonzero(known != "")
    return rows, parse_phashes(list(known.iloc[rows]))
