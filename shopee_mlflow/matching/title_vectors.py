"""Titles as sparse vectors: TF-IDF of words, of pairs of words and of characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from ..data.titles import decode_escapes

# A number keeps its decimals, and its unit where one follows: "1.5 kg" is the word "1.5kg".
_UNITS = (
    *("ml", "l", "liter", "litre", "cc", "mg", "g", "gr", "gram", "kg", "oz", "mm", "cm", "m"),
    *("inch", "meter", "pcs", "gb", "tb", "mah", "w", "watt", "v", "sheet", "lembar", "tablet"),
)
_UNIT = re.compile(rf"(\d)\s+({'|'.join(_UNITS)})\b")
_GRAMS = re.compile(r"(\d)(?:gram|gr)\b")
_WORD = r"[a-z0-9.]*[a-z0-9]|[^\W\d_a-z]+"


@dataclass(frozen=True)
class TitleVectors:
    """Titles of N postings.

    :ivar words: (N, words) float32, TF-IDF with rows of length 1; ``bigrams`` and ``characters``
        alike.
    :ivar counts: (N, words) float32, 1 where a title has a word.
    :ivar idf: (words,) float32, the natural logarithm of N over the titles with the word.
    :ivar vocabulary: the words in the order of the columns.
    """

    words: csr_matrix
    bigrams: csr_matrix
    characters: csr_matrix
    counts: csr_matrix
    idf: np.ndarray
    vocabulary: np.ndarray

    @property
    def titled(self) -> np.ndarray:
        """(N,) bool, whether a title has a word."""
        return np.diff(self.words.indptr) > 0


def plain_title(title: str) -> str:
    """A title in lower case, without accents and byte escapes, numbers joined to their units."""
    text = unicodedata.normalize("NFKD", decode_escapes(title)).lower()
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = re.sub(r"(?<=\d),(?=\d)", ".", text)
    return _GRAMS.sub(r"\1g", _UNIT.sub(r"\1\2", text))


def title_vectors(titles: Sequence[str]) -> TitleVectors | None:
    """Vectors of titles; None if no title has a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    plain = [plain_title(title) for title in titles]
    if not any(re.search(_WORD, title) for title in plain):
        return None
    settings = {"dtype": np.float32, "token_pattern": _WORD, "lowercase": False}
    words = TfidfVectorizer(sublinear_tf=True, **settings)
    weights = words.fit_transform(plain).tocsr()
    counts = weights.copy()
    counts.data = np.ones_like(counts.data)
    found = np.asarray(counts.sum(axis=0)).ravel()
    return TitleVectors(
        words=weights,
        bigrams=_or_nothing(TfidfVectorizer(ngram_range=(2, 2), min_df=2, **settings), plain),
        characters=_or_nothing(
            TfidfVectorizer(
                analyzer="char_wb",
                ngram_range=(3, 4),
                min_df=2,
                sublinear_tf=True,
                lowercase=False,
                dtype=np.float32,
            ),
            plain,
        ),
        counts=counts,
        idf=np.log(len(plain) / found).astype(np.float32),
        vocabulary=words.get_feature_names_out(),
    )


def _or_nothing(vectorizer: object, titles: list[str]) -> csr_matrix:
    """The vectors of titles, all zero where no term occurs twice."""
    try:
        return vectorizer.fit_transform(titles).tocsr()  # type: ignore[attr-defined]
    except ValueError:  # no terms remain
        return csr_matrix((len(titles), 1), dtype=np.float32)
