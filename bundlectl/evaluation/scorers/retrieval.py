"""Scorers for the search: hit, recall, MRR and nDCG at k, from the chunks of the receipt.

The ranking is the receipt's chunks in their final order: by the rank after reranking where there is one, else by
the rank of the search, equal ranks by chunk id. With ``options.packed`` only chunks that were sent to the model
stand in it. Only its first ``k`` positions count.

What is wanted is the set E of the case's ``expected.documents``: ``by: section`` compares document and heading
path (equal from first to last heading; an entry without ``section`` is met by any section of its document),
``by: document`` compares documents alone. Relevance is binary. An item of E counts at the first chunk that meets
it; further chunks of the same section are neither gain nor loss. With r_1 < r_2 < … the positions (from 1) of the
chunks that meet an item for the first time:

    hit     1 if any item of E is met, else 0
    recall  items of E met / |E|
    MRR     1 / r_1, or 0                                                     (its mean over cases is the MRR)
    nDCG    sum over r_i of 1 / log2(r_i + 1), divided by the best possible:
            sum for i = 1 … min(k, |E|) of 1 / log2(i + 1)

A search that found nothing scores 0, and so does a request that was refused before the search: nothing was found
for somebody who needed it. A task without retrieval is unmeasured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from bundlectl.evaluation.scorers.score import Sample, Score, measured, unmeasured
from bundlectl.model.receipt import UsedChunk
from bundlectl.model.suite import Case, ExpectedDocument
from bundlectl.model.types import Strict

Wanted = tuple[str, tuple[str, ...] | None]
"""A document and the heading path in it, or ``None`` for any."""


class RetrievalOptions(Strict):
    """``packed``: look only at the chunks that were sent to the model."""

    packed: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a ranking holds of what was wanted: ``met[i]`` items at ``positions[i]`` (from 1), of ``wanted`` items."""

    positions: tuple[int, ...]
    met: int
    wanted: int
    k: int


Formula = Callable[[Found], float]


def hit(found: Found) -> float:
    """1 if any wanted item is among the first k."""
    return 1.0 if found.positions else 0.0


def recall(found: Found) -> float:
    """Share of the wanted items among the first k."""
    return found.met / found.wanted


def mrr(found: Found) -> float:
    """Inverse of the position of the first wanted item; 0 when there is none."""
    return 1 / found.positions[0] if found.positions else 0.0


def ndcg(found: Found) -> float:
    """Discounted gain of the wanted items by the best that was possible."""
    best = math.fsum(1 / math.log2(i + 1) for i in range(1, min(found.k, found.wanted) + 1))
    return min(1.0, math.fsum(1 / math.log2(position + 1) for position in found.positions) / best)


@dataclass(frozen=True, slots=True)
class RetrievalScorer:
    """One of the four formulas over one ranking."""

    formula: Formula
    by: Literal["document", "section"]
    k: int
    options: RetrievalOptions

    def applies(self, case: Case) -> bool:
        """Cases that expect at least one document. An empty list says that no document answers."""
        return bool(case.expected.documents)

    def score(self, sample: Sample) -> Score:
        """Rank, look, compute."""
        if sample.receipt.retrieval is None:
            if sample.answer.refused is not None:
                return measured(0, f"refused before the search: {sample.answer.refused.code}")
            return unmeasured("this task searches nothing")
        chunks = ranking(sample.receipt.retrieval.chunks, packed=self.options.packed)
        found = look(chunks, sample.case.expected.documents or [], by=self.by, k=self.k)
        why = "" if found.met == found.wanted else f"{found.met} of {found.wanted} in the first {self.k}"
        return measured(self.formula(found), why)


def ranking(chunks: Sequence[UsedChunk], *, packed: bool = False) -> list[UsedChunk]:
    """Give the chunks in their final order, best first."""
    kept = [chunk for chunk in chunks if chunk.packed or not packed]
    return sorted(kept, key=lambda c: (c.rank if c.reranked is None else c.reranked, c.rank, c.chunk))


def look(
    chunks: Sequence[UsedChunk], expected: Sequence[ExpectedDocument], *, by: Literal["document", "section"], k: int
) -> Found:
    """Find where in the first ``k`` chunks each wanted item is met for the first time."""
    wanted: set[Wanted] = {
        (item.document, tuple(item.section) if by == "section" and item.section is not None else None)
        for item in expected
    }
    open_items = set(wanted)
    positions: list[int] = []
    for position, chunk in enumerate(chunks[:k], start=1):
        met = open_items & {(chunk.document, tuple(chunk.section)), (chunk.document, None)}
        if met:
            positions.append(position)
            open_items -= met
    return Found(tuple(positions), len(wanted) - len(open_items), len(wanted), k)
