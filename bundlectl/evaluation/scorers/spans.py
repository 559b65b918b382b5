"""Scorers for the characters that the search brought: span_recall, span_precision, span_iou.

The case says which characters of which documents answer it (``expected.spans``), and the scorers count how many of
them were among what was packed into the prompt; or, with ``options: {packed: false}``, in the first ``k`` chunks of the
ranking. E is the set of expected characters, each once however many spans hold it, and R what was retrieved. As in
Chroma's chunking evaluation (Smith and Troynikov, "Evaluating Chunking Strategies for Retrieval", 2024;
brandonstarxel/chunking_evaluation), a character counts once where E and R meet, and as often as it was retrieved in
the size of R, so that chunks which repeat each other lose precision:

    recall      |E and R| / |E|
    precision   |E and R| / |R|
    IoU         |E and R| / (|R| + |E| - |E and R|)

Where theirs counts tokens in the text, these count characters. Passages that were packed hold no character twice.

A span is ``start`` and ``end``, which count characters of the document as it was indexed; or ``text``, a quote. A
``version`` beside the offsets is the document's version that they count in: where another one was retrieved, or a
passage that covers the span does not read as its ``text`` says, the score is unmeasured. A quote is looked for in the
packed passages, any white space equal to any other. It need not stand in one passage: the part of it that begins or
ends a passage is found as well, if it has 16 characters or more, since fewer stand anywhere by chance. Of a quote that
occurs more than once in the passages the first occurrence counts.

Nothing retrieved scores 0, and so does a request that was refused before the search. A task without retrieval is
unmeasured, and so are chunks whose offsets are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bundlectl.evaluation.scorers.retrieval import ranking
from bundlectl.evaluation.scorers.score import Sample, Score, measured, unmeasured
from bundlectl.model.suite import Case, ExpectedSpan
from bundlectl.model.types import Strict

LEAST_PART = 16
"""Characters of a quote's part that are enough to know it by."""

Interval = tuple[int, int]


class SpanOptions(Strict):
    """``packed``: look at what was sent to the model, and not at the first ``k`` chunks of the ranking."""

    packed: bool = True


@dataclass(frozen=True, slots=True)
class Overlap:
    """Characters: ``expected``, ``retrieved`` (as often as they were), and ``both``."""

    expected: int
    retrieved: int
    both: int


def span_recall(found: Overlap) -> float:
    """Share of the expected characters that were retrieved."""
    return found.both / found.expected


def span_precision(found: Overlap) -> float:
    """Share of the retrieved characters that were expected; 0 where nothing was retrieved."""
    return found.both / found.retrieved if found.retrieved else 0.0


def span_iou(found: Overlap) -> float:
    """Share of what was expected or retrieved that was both."""
    return found.both / (found.retrieved + found.expected - found.both)


@dataclass(frozen=True, slots=True)
class Piece:
    """Retrieved characters ``start`` to ``end`` of a document's version; ``text`` where it is known."""

    document: str
    version: str | None
    start: int
    end: int
    text: str | None = None


class _Unclear(Exception):
    """Why there is nothing to measure on."""


@dataclass(frozen=True, slots=True)
class SpanScorer:
    """One of the three formulas."""

    formula: Callable[[Overlap], float]
    k: int
    options: SpanOptions

    def applies(self, case: Case) -> bool:
        """Cases that expect at least one span."""
        return bool(case.expected.spans)

    def score(self, sample: Sample) -> Score:
        """Place the spans, count, compute."""
        if sample.receipt.retrieval is None:
            if sample.answer.refused is not None:
                return measured(0, f"refused before the search: {sample.answer.refused.code}")
            return unmeasured("this task searches nothing")
        try:
            pieces = self._pieces(sample)
            found = overlap(sample.case.expected.spans or [], pieces)
        except _Unclear as error:
            return unmeasured(str(error))
        return measured(
            self.formula(found),
            f"{found.both:,} characters of {found.expected:,} expected and {found.retrieved:,} retrieved",
        )

    def _pieces(self, sample: Sample) -> list[Piece]:
        found: list[tuple[str, str | None, int | None, int | None, str | None]]
        if self.options.packed:
            found = [(p.document, p.version, p.start, p.end, p.text) for p in sample.passages]
        else:
            chunks = ranking(sample.receipt.retrieval.chunks if sample.receipt.retrieval else [])[: self.k]
            found = [(c.document, c.version, c.start, c.end, None) for c in chunks]
        pieces = [
            Piece(document, version, start, end, text)
            for document, version, start, end, text in found
            if start is not None and end is not None
        ]
        if len(pieces) < len(found):
            raise _Unclear("where the chunks stand in their documents is not known")
        return pieces


def overlap(spans: Sequence[ExpectedSpan], pieces: Sequence[Piece]) -> Overlap:
    """Count the characters of the spans, of the pieces, and of both.

    Raises:
        _Unclear: a span is of another version than was retrieved, or is a quote and the pieces have no text.
    """
    expected: dict[str, list[Interval]] = {}
    lost = 0
    for span in spans:
        there = [piece for piece in pieces if piece.document == span.document]
        places, missing = _placed(span, there)
        expected.setdefault(span.document, []).extend(places)
        lost += missing
    merged = {document: union(places) for document, places in expected.items()}
    retrieved: dict[str, list[Interval]] = {}
    for piece in pieces:
        retrieved.setdefault(piece.document, []).append((piece.start, piece.end))
    return Overlap(
        expected=sum(length(places) for places in merged.values()) + lost,
        retrieved=sum(length(places) for places in retrieved.values()),
        both=sum(length(common(places, union(retrieved.get(document, [])))) for document, places in merged.items()),
    )


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Merge intervals that touch or overlap, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif start < end:
            merged.append((start, end))
    return merged


def common(some: Sequence[Interval], others: Sequence[Interval]) -> list[Interval]:
    """Intersect two unions."""
    return [(max(a, c), min(b, d)) for a, b in some for c, d in others if max(a, c) < min(b, d)]


def length(intervals: Iterable[Interval]) -> int:
    """Count the characters."""
    return sum(end - start for start, end in intervals)


# ---------------------------------------------------------------- where a span stands


def _placed(span: ExpectedSpan, pieces: Sequence[Piece]) -> tuple[list[Interval], int]:
    """Give where a span stands in its document, and how many characters of it were not found anywhere."""
    if span.start is not None and span.end is not None:
        _check_version(span, span.start, span.end, pieces)
        return [(span.start, span.end)], 0
    quote, _ = _spaced(span.text or "")
    if any(piece.text is None for piece in pieces):
        raise _Unclear("a quote is looked for in packed passages only: give 'start' and 'end'")
    texts = [(piece, *_spaced(piece.text or "")) for piece in pieces]
    for piece, text, offsets in texts:
        at = text.find(quote)
        if at >= 0:
            return [(piece.start + offsets[at], piece.start + offsets[at + len(quote) - 1] + 1)], 0
    parts: list[Interval] = []
    known: list[Interval] = []
    for piece, text, offsets in texts:
        for at, begin, size in _parts(quote, text):
            parts.append((begin, begin + size))
            known.append((piece.start + offsets[at], piece.start + offsets[at + size - 1] + 1))
    return union(known), len(quote) - length(union(parts))


def _parts(quote: str, text: str) -> list[tuple[int, int, int]]:
    """Give the parts of a quote that a text ends or begins with, or that it is: place in text, in quote, and size."""
    if len(text) >= LEAST_PART and (begin := quote.find(text)) >= 0:
        return [(0, begin, len(text))]
    most = min(len(quote), len(text))
    sizes = range(most, LEAST_PART - 1, -1)
    tail = next((size for size in sizes if text.endswith(quote[:size])), 0)
    head = next((size for size in sizes if text.startswith(quote[-size:])), 0)
    found = [(len(text) - tail, 0, tail)] if tail else []
    return [*found, (0, len(quote) - head, head)] if head else found


def _spaced(text: str) -> tuple[str, list[int]]:
    """Write each run of white space as one blank, none at the ends; with where each character came from."""
    characters: list[str] = []
    offsets: list[int] = []
    for at, character in enumerate(text):
        if not character.isspace():
            characters.append(character)
            offsets.append(at)
        elif characters and characters[-1] != " ":
            characters.append(" ")
            offsets.append(at)
    if characters and characters[-1] == " ":
        del characters[-1], offsets[-1]
    return "".join(characters), offsets


def _check_version(span: ExpectedSpan, start: int, end: int, pieces: Sequence[Piece]) -> None:
    moved = _Unclear(f"{span.document} is not as it was when its span was written down")
    if span.version is not None and any(piece.version not in (None, span.version) for piece in pieces):
        raise moved
    if span.text is None:
        return
    for piece in pieces:
        if piece.text is not None and piece.start <= start and end <= piece.end:
            read = piece.text[start - piece.start : end - piece.start]
            if _spaced(read)[0] != _spaced(span.text)[0]:
                raise moved
