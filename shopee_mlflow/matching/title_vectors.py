"""Titles as sparse vectors: TF-IDF of words, of pairs of words and of characters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from ..data.titles import decode_escapes

# A number keeps its decimals, and its unit where one follows: "1.5 kg" is the word "1.5kg".
_UNITS = (
    *("ml", "l", "liter", "litre", "cc", "mg", "g", "gr", "gram", "kg", "oz", "mm", "cm", "m"),
    *("inch", "meter", "pcs", "gb", "tb", "mah", "w", "watt", "v", "sheet", "lembar", "tablet"),
)
_UNIT = re.compile(rf"(\d)\s+({'|'.join(_UNITS)})\b")
_GRAMS = re.compile(r"(\d)(?:gram|gr)\b")
_MATRICES = ("words", "bigrams", "characters", "counts")
_WORD = r"[a-z0-9.]*[a-z0-9]|[^\W\d_a-z]+"


@dataclass(frozen=True)
class TitleVectors:
    """Titles of N postings.

    :ivar words: (N, words) float32, TF-IDF with rows of length 1; ``bigrams`` and ``characters``
        alike.
    :ivar counts: (N, words) float32, 1 where a title has a word.
    :ivar idf: (words,) float32, the natural logarithm of N over the titles with the word.
    :ivar vocabulary: the words in the order of the columns.
    :ivar vectorizers: scikit-learn's vectorizers of the three parts; None for a part without terms.
    """

    words: csr_matrix
    bigrams: csr_matrix
    characters: csr_matrix
    counts: csr_matrix
    idf: np.ndarray
    vocabulary: np.ndarray
    vectorizers: tuple[Any, Any, Any] = field(repr=False)

    def of(self, titles: Sequence[str]) -> TitleVectors:
        """Vectors of other titles by the same terms and weights; other terms are left out."""
        plain = [plain_title(title) for title in titles]
        parts = [
            csr_matrix((len(plain), 1), dtype=np.float32) if each is None else each.transform(plain)
            for each in self.vectorizers
        ]
        words, bigrams, characters = (part.tocsr() for part in parts)
        counts = _ones(words)
        return replace(self, words=words, bigrams=bigrams, characters=characters, counts=counts)

    def rows(self, rows: np.ndarray) -> TitleVectors:
        """The vectors of some of the titles."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _MATRICES})

    def and_of(self, other: TitleVectors) -> TitleVectors:
        """These vectors, followed by those of other titles by the same terms."""
        both = {n: vstack([getattr(self, n), getattr(other, n)], format="csr") for n in _MATRICES}
        return replace(self, **both)


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
    settings: dict[str, Any] = {"dtype": np.float32, "lowercase": False}
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=_WORD, **settings)
    bigrams = TfidfVectorizer(ngram_range=(2, 2), min_df=2, token_pattern=_WORD, **settings)
    characters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(3, 4), min_df=2, sublinear_tf=True, **settings
    )
    weights = words.fit_transform(plain).tocsr()
    counts = _ones(weights)
    found = np.asarray(counts.sum(axis=0)).ravel()
    fitted = [_fit_or_none(each, plain) for each in (bigrams, characters)]
    return TitleVectors(
        words=weights,
        bigrams=fitted[0][1],
        characters=fitted[1][1],
        counts=counts,
        idf=np.log(len(plain) / found).astype(np.float32),
        vocabulary=words.get_feature_names_out(),
        vectorizers=(words, fitted[0][0], fitted[1][0]),
    )


def _fit_or_none(vectorizer: Any, titles: list[str]) -> tuple[Any, csr_matrix]:
    """A fitted vectorizer and the vectors; None and zeros where no term occurs twice."""
    try:
        return vectorizer, vectorizer.fit_transform(titles).tocsr()
    except ValueError:  # no terms remain
        return None, csr_matrix((len(titles), 1), dtype=np.float32)


def _ones(weights: csr_matrix) -> csr_matrix:
    """1 where a title has a term."""
    counts = weights.copy()
    counts.data = np.ones_like(counts.data)
    return counts
