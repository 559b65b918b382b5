"""The provider without a model: it quotes the sentences of the packed passages that cover most of the question.

It cannot summarise, compare or calculate, and every word it says stands in a document. It needs no account and
no network, so it is both the embedded default and the last fallback of every other route.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundlectl.inference.provider import Delta, ModelCall, ModelReply, Passage, ProviderError
from bundlectl.inference.words import STOP_WORDS, stem, terms, unique, words
from bundlectl.model.contract import Citation

HEADING = "Passages that may answer:"
NO_ANSWER = "The documents that may be used here do not answer this question."

SENTENCES = 3
"""How many sentences are quoted, each from another passage."""

RANK_COST = 0.05
"""What each place further down in the packed context costs, in shares of the question covered."""

MIN_SCORE = 0.3
"""Under this support nothing is quoted: docs/decisions/extractive-threshold.md."""

# fmt: off
ASKING = frozenset((
    "what", "which", "who", "whom", "whose", "when", "where", "why", "how", "does", "do", "did", "can", "could",
    "should", "would", "i", "you", "we", "my", "your", "our", "me", "us", "has", "have", "had", "am", "been", "get",
    "there", "any", "some", "one", "from", "so", "about", "than",
))
# fmt: on
"""Words that make a question and say nothing of its subject: they must not count as covered or missing."""

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,3}[.)])[ \t]+|[ \t]*>[ \t]?|[ \t]*\|")
_END = re.compile(r"""[.!?]["'”’)\]*_`]*(?=\s+["'“‘(\[*_`]*[A-Z0-9])""")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|Mr|Mrs|Ms|Dr|St|No|Fig|Eq|approx|Inc|Ltd|Co)|\b[A-Z])\.$")


def sentences(text: str) -> list[tuple[int, int]]:
    """Give the sentences of a Markdown or plain text as offsets: ``text[start:end]``, in order, none empty.

    A blank line ends a sentence, and so do list items, table rows and quoted lines; a line of fenced code stands
    for itself, and the fences are left out. A full stop ends one before white space and a capital or digit,
    except after common abbreviations and initials.
    """
    found: list[tuple[int, int]] = []
    for start, end in _blocks(text):
        at = start
        for match in _END.finditer(text, start, end):
            if not _ABBREVIATION.search(text, at, match.start() + 1):
                found.append((at, match.end()))
                at = match.end()
        found.append((at, end))
    stripped = ((start, end, text[start:end]) for start, end in found)
    trimmed = (
        (start + len(body) - len(body.lstrip()), end - len(body) + len(body.rstrip())) for start, end, body in stripped
    )
    return [(start, end) for start, end in trimmed if start < end]


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Give paragraphs, list items, rows and lines of code: what no sentence reaches across."""
    fence = ""
    begin: int | None = None
    at = 0
    for line in text.splitlines(keepends=True):
        start, at = at, at + len(line)
        opened = _FENCE.match(line)
        marker = opened[1] if opened else ""
        item = None if fence else _ITEM.match(line)
        if begin is not None and (marker or fence or item or not line.strip()):
            yield begin, start
            begin = None
        if fence:
            if marker.startswith(fence):
                fence = ""
            else:
                yield start, at
        elif marker:
            fence = marker
        elif item:
            begin = start + item.end()
        elif begin is None and line.strip():
            begin = start
    if begin is not None:
        yield begin, len(text)


@dataclass(frozen=True, slots=True)
class Scored:
    """A sentence of a passage. ``coverage`` is the weighted share of the question's terms in it, 0 to 1."""

    passage: Passage
    start: int
    end: int
    coverage: float
    score: float

    @property
    def text(self) -> str:
        """The sentence, verbatim."""
        return self.passage.text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The sentences, best first (equal scores in reading order), and the ``support`` of the question.

    Support is the best passage's coverage, its title and heading path included, less RANK_COST per place. One
    sentence rarely repeats all of a question's words, but a passage that answers it does hold most of them:
    this tells questions with an answer from those without better than the best sentence's score does.
    """

    sentences: tuple[Scored, ...]
    support: float


def rank_sentences(question: str, passages: Sequence[Passage]) -> Ranking:
    """Score every sentence of the passages by the share of the question's weight that it covers.

    A term weighs by its rarity among these sentences, and one that stands in none weighs most: a context that
    lacks the question's telling word covers little of it.
    """
    asked = asked_terms(question)
    rows = [
        (passage, start, end, frozenset(terms(passage.text[start:end])))
        for passage in passages
        for start, end in sentences(passage.text)
    ]
    frequency = Counter(term for _, _, _, found in rows for term in found)
    weights = {term: _idf(frequency[term], len(rows)) for term in asked}
    whole = sum(weights.values()) or 1.0

    def coverage(found: frozenset[str]) -> float:
        return sum(weight for term, weight in weights.items() if term in found) / whole

    scored = [
        Scored(passage, start, end, covered := coverage(found), covered - RANK_COST * (passage.n - 1))
        for passage, start, end, found in rows
    ]
    support = max(
        (coverage(frozenset(terms(" ".join((p.title, *p.section, p.text))))) - RANK_COST * (p.n - 1) for p in passages),
        default=0.0,
    )
    best = sorted(scored, key=lambda one: (-round(one.score, 9), one.passage.n, one.start))
    return Ranking(tuple(best), support)


def asked_terms(question: str) -> list[str]:
    """Give the terms of a question that name its subject, each once."""
    return unique(stem(word) for word in words(question) if word not in STOP_WORDS and word not in ASKING)


def _idf(frequency: int, rows: int) -> float:
    return math.log(1 + (rows - frequency + 0.5) / (frequency + 0.5))


def _one_of_each(ranked: Sequence[Scored]) -> list[Scored]:
    """Give the best sentence of each of the best passages: three places to look at, not three lines of one.

    They come in the order in which the search ranked their passages, which knows more than one sentence does.
    """
    best: dict[int, Scored] = {}
    for one in ranked:
        if one.coverage > 0 and len(best) < SENTENCES:
            best.setdefault(one.passage.n, one)
    return sorted(best.values(), key=lambda one: one.passage.n)


class ExtractiveProvider:
    """Quotes the best sentence of each of the three best passages, with citations.

    It refuses when the passages hold too little of the question.

    Args:
        min_score: the least :attr:`Ranking.support`, from 0 (always quote) to 1.
    """

    name = "extractive"
    reads_prompt = False
    deterministic = True

    def __init__(self, min_score: float = MIN_SCORE) -> None:
        self.min_score = min_score

    async def generate(self, call: ModelCall) -> ModelReply:
        """Answer from the passages.

        Raises:
            ProviderError: ``invalid``: the schema has no place for an answer and its citations.
        """
        return self.answer(call)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Give the whole reply as one piece."""
        reply = self.answer(call)
        yield Delta(reply.text, reply)

    def answer(self, call: ModelCall) -> ModelReply:
        """Do the work of :meth:`generate`, which has nothing to wait for."""
        ranking = rank_sentences(call.question, call.passages)
        best = _one_of_each(ranking.sentences)
        if not best or ranking.support < self.min_score:
            return ModelReply(_fit(NO_ANSWER, (), call.schema), citations=(), refused=True)
        lines = [f"- {' '.join(one.text.split())} [{one.passage.n}]" for one in best]
        citations = tuple(
            Citation(
                n=one.passage.n,
                document=one.passage.document,
                section=list(one.passage.section),
                chunk=one.passage.chunk,
                quote=one.text,
            )
            for one in best
        )
        return ModelReply(_fit("\n".join((HEADING, *lines)), citations, call.schema), citations=citations)


def _fit(text: str, citations: Sequence[Citation], schema: Mapping[str, Any] | None) -> str:
    """Put the answer into the schema's ``answer`` (a string) and ``citations`` (an array), or give it as it is."""
    if schema is None:
        return text
    properties = schema.get("properties")
    answer, cited = (
        (properties.get("answer"), properties.get("citations")) if isinstance(properties, Mapping) else (None, None)
    )
    fits = isinstance(answer, Mapping) and answer.get("type") == "string"
    fits = fits and isinstance(cited, Mapping) and cited.get("type") == "array"
    if not fits or set(schema.get("required", ())) - {"answer", "citations"}:
        raise ProviderError(
            "invalid",
            "The extractive provider cannot fill this output schema.",
            why="It fills 'answer' (a string) and 'citations' (an array), and no other required property.",
        )
    items = cited.get("items") if isinstance(cited, Mapping) else None
    return json.dumps(
        {"answer": text, "citations": _as_items(citations, items if isinstance(items, Mapping) else {})},
        ensure_ascii=False,
    )


def _as_items(citations: Sequence[Citation], items: Mapping[str, Any]) -> list[Any]:
    kind = items.get("type", "integer")
    if kind in ("integer", "number"):
        return _numbers(citations)
    if kind == "string":
        return [f"[{number}]" for number in _numbers(citations)]
    names = items.get("properties")
    if kind == "object" and isinstance(names, Mapping) and set(items.get("required", ())) <= {"n", "quote"}:
        return [
            {key: value for key, value in (("n", one.n), ("quote", one.quote)) if key in names} for one in citations
        ]
    raise ProviderError(
        "invalid",
        "The extractive provider cannot fill this output schema.",
        why="Its citations are numbers, strings such as [1], or objects with n and quote.",
    )


def _numbers(citations: Sequence[Citation]) -> list[int]:
    """Give the passages' numbers, each once, in order of citation."""
    return list(dict.fromkeys(one.n for one in citations))
