"""Hits to the passages of a prompt: within a token budget, in order of rank, nothing twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bundlectl.inference.provider import Passage
from bundlectl.model.documents import Chunk
from bundlectl.retrieval.chunking import count_tokens
from bundlectl.retrieval.search import Hit


@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed. ``chunks`` holds the ids of every chunk whose text is in a passage, also of merged ones.

    ``tokens`` is the estimate that was held against the budget.
    """

    passages: tuple[Passage, ...]
    chunks: frozenset[str]
    tokens: int


@dataclass(slots=True)
class _Piece:
    """A passage in the making: the best-ranked chunk, its text as it grows by overlap, and who is in it."""

    chunk: Chunk
    text: str
    start: int
    end: int
    ids: list[str]

    def with_(self, other: Chunk) -> _Piece | None:
        """Give the piece grown by a chunk that overlaps it in the same section's text; None if none does."""
        same = (other.document, other.version, other.section) == (
            self.chunk.document,
            self.chunk.version,
            self.chunk.section,
        )
        if not same or other.start >= self.end or other.end <= self.start:
            return None
        before = other.text[: max(0, self.start - other.start)]
        after = other.text[self.end - other.start :] if other.end > self.end else ""
        text = before + self.text + after
        start, end = min(self.start, other.start), max(self.end, other.end)
        return _Piece(self.chunk, text, start, end, [*self.ids, other.id])


def pack(hits: Iterable[Hit], *, context_tokens: int, top: int) -> Packed:
    """Take hits in order until ``top`` passages are in; one that does not fit the budget whole is passed over.

    A passage costs what :func:`~bundlectl.retrieval.chunking.count_tokens` counts for its title, heading path and
    text. A chunk that overlaps one already taken extends it, and the passage keeps the better one's place; a
    chunk whose text is already there, white space aside, is left out.
    """
    pieces: list[_Piece] = []
    costs: list[int] = []
    seen: set[str] = set()
    for hit in hits:
        chunk = hit.chunk
        words = " ".join(chunk.text.split())
        if words in seen:
            continue
        grown = next(((at, made) for at, piece in enumerate(pieces) if (made := piece.with_(chunk))), None)
        if grown is not None:
            at, made = grown
            cost = _cost(made)
            if sum(costs) - costs[at] + cost <= context_tokens:
                pieces[at], costs[at] = made, cost
                seen.add(words)
            continue
        if len(pieces) == top:
            continue
        piece = _Piece(chunk, chunk.text, chunk.start, chunk.end, [chunk.id])
        cost = _cost(piece)
        if sum(costs) + cost <= context_tokens:
            pieces.append(piece)
            costs.append(cost)
            seen.add(words)
    passages = tuple(
        Passage(
            n=n,
            title=piece.chunk.title,
            section=tuple(piece.chunk.section),
            text=piece.text,
            document=piece.chunk.document,
            chunk=piece.chunk.id,
            updated=piece.chunk.updated,
            version=piece.chunk.version,
            start=piece.start,
            end=piece.end,
        )
        for n, piece in enumerate(pieces, start=1)
    )
    return Packed(passages, frozenset(id_ for piece in pieces for id_ in piece.ids), sum(costs))


def _cost(piece: _Piece) -> int:
    return count_tokens(piece.chunk.title) + count_tokens(" ".join(piece.chunk.section)) + count_tokens(piece.text)
