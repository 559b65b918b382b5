"""The arithmetic of ranking: BM25 over permitted statistics, fusion, coverage. No I/O.

All of it is done element by element in a fixed order, so that a row's score is the same whatever rows stand
beside it: a sum over a matrix may round differently with another number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bundlectl.model.documents import Acl
from bundlectl.model.errors import MissingExtra

try:
    import numpy as np
    from numpy.typing import NDArray
except ModuleNotFoundError as error:
    raise MissingExtra("Retrieval", "rag") from error

K1 = 0.9
B = 0.75
"""BM25's saturation and length normalisation: docs/decisions/retrieval-default.md."""

DIGITS = 9
"""Scores are rounded to so many decimals, so that noise in the last bit never decides an order."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Partition:
    """Statistics of all chunks with the same labels: how many, how long together, in how many each term stands."""

    number: int
    acl: Acl
    chunks: int
    length: int
    frequencies: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Statistics:
    """The sums over the partitions that one request may see. Nothing of any other partition is in it."""

    numbers: tuple[int, ...]
    chunks: int
    length: int
    _parts: tuple[Partition, ...] = field(repr=False)

    @classmethod
    def over(cls, partitions: Iterable[Partition]) -> Statistics:
        """Add up the partitions."""
        parts = tuple(partitions)
        return cls(
            tuple(part.number for part in parts),
            sum(part.chunks for part in parts),
            sum(part.length for part in parts),
            parts,
        )

    def frequency(self, term: str) -> int:
        """Count the chunks that hold the term."""
        return sum(part.frequencies.get(term, 0) for part in self._parts)

    def idf(self, term: str) -> float:
        """Weigh a term by its rarity; greater than 0, greatest where no chunk holds it."""
        found = self.frequency(term)
        return math.log(1 + (self.chunks - found + 0.5) / (found + 0.5))


def bm25(counts: Mapping[str, Floats], lengths: Floats, statistics: Statistics) -> Floats:
    """Score rows by BM25.

    Args:
        counts: for each term of the question, how often it stands in each row.
        lengths: each row's number of terms.
        statistics: of the permitted partitions.
    """
    average = statistics.length / statistics.chunks if statistics.chunks else 1.0
    norm = K1 * (1 - B + B * lengths / (average or 1.0))
    scores = np.zeros(len(lengths))
    for term in sorted(counts):
        count = counts[term]
        scores += statistics.idf(term) * count * (K1 + 1) / (count + norm)
    return np.round(scores, DIGITS)


def coverage(present: Mapping[str, Floats], statistics: Statistics) -> Floats:
    """Say how much of the question each row covers: the share of its terms' weight, from 0 to 1."""
    weights = {term: statistics.idf(term) for term in sorted(present)}
    whole = sum(weights.values())
    rows = len(next(iter(present.values()))) if present else 0
    scores = np.zeros(rows)
    for term, weight in weights.items():
        scores += weight * (present[term] > 0)
    return np.round(scores / whole, DIGITS) if whole else scores


def cosine(vectors: NDArray[np.float32], query: Sequence[float]) -> Floats:
    """Give the cosine of each row with the query; 0 for a row without direction."""
    rows = vectors.astype(np.float64)
    asked = np.asarray(query, dtype=np.float64)
    products = (rows * asked).sum(axis=1)
    norms = np.sqrt((rows * rows).sum(axis=1)) * math.sqrt(float((asked * asked).sum()))
    scores: Floats = np.divide(products, norms, out=np.zeros(len(rows)), where=norms > 0)
    return np.round(scores, DIGITS)


LEXICAL_WEIGHT = 0.6
"""Share of the lexical score in a hybrid one: docs/decisions/retrieval-default.md."""


def fuse(lexical: Floats, vector: Floats, weight: float = LEXICAL_WEIGHT) -> Floats:
    """Join two scores of the same rows, each brought to [0, 1] by its greatest among them.

    Scores, not ranks: ranks throw away by how much the first leads, which is what lexical search knows best.
    """
    top = float(lexical.max(initial=0.0))
    scaled = lexical / top if top > 0 else lexical
    return np.round(weight * scaled + (1 - weight) * np.clip(vector, 0.0, 1.0), DIGITS)


def order(ids: Sequence[str], scores: Floats) -> list[int]:
    """Order rows by score, greatest first; equal scores by id."""
    return sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))
