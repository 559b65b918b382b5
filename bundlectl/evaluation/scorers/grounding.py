"""The scorer groundedness: the share of an answer's statements that the packed passages support, without a model.

A statement (:mod:`bundlectl.evaluation.scorers.statements`) is supported when some window of the packed passages,
one to three sentences in a row of one passage, together with the passage's title and headings,

    1. covers it: the terms of the statement that stand in the window weigh at least ``options.threshold`` of all of
       them. Terms are stems of words that name something: no stop words, pronouns, auxiliaries. A term weighs
       ln(1 + (N - n + .5) / (n + .5)), with n of the N sentences of all packed passages holding it, so that a rare
       word counts and one that stands nowhere weighs most
    2. and holds every number of the statement. Digits are compared as numbers (1,000 = 1000, 2.50 = 2.5) and the
       words two to twelve as what they mean
    3. and agrees in negation: the sentence of the window that covers most of the statement has a negation (no, not,
       never, without, cannot, n't, neither, nor, none) exactly when the statement has one.

A statement whose words stand in a passage one after the other, none between them, is supported whatever 1 to 3 say.

What it cannot see: an exchanged word of the same weight (before for after, the name of another thing from the same
passage), who does what to whom, sums, and support that is spread over distant sentences. A true statement in
altogether different words counts as unsupported. So it finds what was made up, and does not prove what was not:
docs/scorer-measures.md has how often, on statements that were made wrong on purpose.

A refusal where an answer is wanted scores 0. An answer that states nothing is unmeasured, and so is one of a task that
packs nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from bundlectl.evaluation.scorers.score import Sample, Score, measured, unmeasured
from bundlectl.evaluation.scorers.statements import stated, wants_an_answer
from bundlectl.inference.extractive import ASKING, sentences
from bundlectl.inference.provider import Passage
from bundlectl.inference.words import STOP_WORDS, stem, words
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict

WINDOW = 3
"""Sentences in a row that may support a statement together."""

THRESHOLD = 0.75
"""Weighted share of a statement's terms that has to be there: docs/scorer-measures.md."""

_NEGATION = re.compile(r"\b(?:no|not|never|without|cannot|neither|nor|none|nothing|nobody)\b|n['’]t\b", re.IGNORECASE)
_ONE = re.compile(r"\bone\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*")
# fmt: off
_UNSAID = STOP_WORDS | ASKING | frozenset((
    "may", "might", "must", "shall", "cannot", "being", "having", "its", "he", "she", "him", "her", "them", "us", "who",
    "also", "too", "just", "only", "very", "while", "both", "each", "here", "thus", "either", "other", "others", "s",
    "t", "don", "doesn", "didn", "isn", "aren", "wasn", "weren", "won", "ll", "re", "ve", "never", "without", "none",
    "neither", "nor",
))
"""Words that say nothing by themselves. Negations are among them: they are compared apart."""
_SPELLED = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}
# fmt: on


class GroundingOptions(Strict):
    """``threshold``: the weighted share of a statement's terms that supports it. ``field``: where the text stands."""

    threshold: Annotated[float, Field(gt=0, le=1)] = THRESHOLD
    field: str = "answer"


@dataclass(frozen=True, slots=True)
class Groundedness:
    """The share of supported statements."""

    options: GroundingOptions

    def applies(self, case: Case) -> bool:
        """Cases that want an answer."""
        return wants_an_answer(case)

    def score(self, sample: Sample) -> Score:
        """Look for support for each statement."""
        said = stated(sample.answer, self.options.field)
        if isinstance(said, Score):
            return said
        if sample.receipt.retrieval is None or not sample.passages:
            return unmeasured("no passage was packed")
        context = Context(sample.passages)
        supported = sum(context.supports(one.text, self.options.threshold) for one in said)
        return measured(supported / len(said), f"{supported} of {len(said)} statements are supported")


@dataclass(frozen=True, slots=True)
class _Sentence:
    terms: frozenset[str]
    numbers: frozenset[str]
    negated: bool


@dataclass(frozen=True, slots=True)
class _Read:
    """A passage: its words in a row, the terms of its title and headings, and its sentences."""

    words: str
    about: frozenset[str]
    sentences: tuple[_Sentence, ...]


class Context:
    """What was packed, prepared for looking statements up in it."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._read = [_read(passage) for passage in passages]
        every = [sentence for passage in self._read for sentence in passage.sentences]
        self._rows = len(every)
        self._frequency = Counter(term for sentence in every for term in sentence.terms)

    def supports(self, statement: str, threshold: float = THRESHOLD) -> bool:
        """Say whether one of the passages supports a statement."""
        said = f" {' '.join(words(statement))} "
        if any(said in passage.words for passage in self._read):
            return True
        wanted = content(statement)
        if not wanted:
            return False
        # "one" is rarely a quantity, so nothing has to stand for it; where it does stand, it is a 1.
        numbers, negated = numbers_of(_ONE.sub("", statement)), is_negated(statement)
        weights = {term: self._weight(term) for term in wanted}
        whole = math.fsum(weights.values())

        def covers(held: frozenset[str]) -> float:
            return math.fsum(weights[term] for term in wanted & held) / whole

        for passage in self._read:
            for window in _windows(passage.sentences):
                held = passage.about.union(*(sentence.terms for sentence in window))
                if covers(held) < threshold or not numbers <= frozenset().union(*(s.numbers for s in window)):
                    continue
                nearest = max(window, key=lambda sentence: covers(sentence.terms))
                if nearest.negated == negated:
                    return True
        return False

    def _weight(self, term: str) -> float:
        found = self._frequency[term]
        return math.log(1 + (self._rows - found + 0.5) / (found + 0.5))


def content(text: str) -> frozenset[str]:
    """Give the stems of the words that name something."""
    return frozenset(stem(word) for word in words(text) if word not in _UNSAID)


def numbers_of(text: str) -> frozenset[str]:
    """Give the numbers that a text names, each in one way of writing it."""
    written = {_plain(match[0]) for match in _NUMBER.finditer(text)}
    return frozenset(written | {_SPELLED[word] for word in words(text) if word in _SPELLED})


def is_negated(text: str) -> bool:
    """Say whether a text holds a negation."""
    return _NEGATION.search(text) is not None


def _plain(number: str) -> str:
    whole, _, rest = number.replace(",", "").partition(".")
    if "." in rest:  # a version or an address: not a quantity
        return number
    rest = rest.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{rest}" if rest else "")


def _read(passage: Passage) -> _Read:
    found = [passage.text[start:end] for start, end in sentences(passage.text)]
    return _Read(
        words=f" {' '.join(words(passage.text))} ",
        about=content(" ".join((passage.title, *passage.section))),
        sentences=tuple(_Sentence(content(s), numbers_of(s), is_negated(s)) for s in found),
    )


def _windows(found: Sequence[_Sentence]) -> Iterator[Sequence[_Sentence]]:
    for size in range(1, WINDOW + 1):
        for start in range(len(found) - size + 1):
            yield found[start : start + size]
