"""What an answer states: its sentences, and the passages that each one cites.

A statement is a sentence (:func:`bundlectl.inference.extractive.sentences`) that holds a word. A line that ends in a
colon only introduces what follows, a question states nothing, and a heading is a title: these are no statements.
``[n]`` cites; one that stands right after the full stop belongs to the sentence before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bundlectl.evaluation.scorers.score import Score, measured, unmeasured
from bundlectl.evaluation.scorers.text import text_of
from bundlectl.inference.extractive import sentences
from bundlectl.inference.words import words
from bundlectl.model.contract import Answer
from bundlectl.model.suite import Case

_MARK = re.compile(r"\s*\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
_LEADING = re.compile(r"(?:\s*\[\d{1,4}(?:\s*,\s*\d{1,4})*\])+")
_HEADING = re.compile(r"#{1,6}\s")


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence without its marks, and the numbers that it cites."""

    text: str
    cites: frozenset[int]


def statements(text: str) -> list[Statement]:
    """Give the statements of an answer's text, in order."""
    pieces: list[str] = []
    for start, end in sentences(text):
        piece = text[start:end]
        leading = _LEADING.match(piece)
        if leading is not None and pieces:
            pieces[-1] += leading[0]
            piece = piece[leading.end() :]
        pieces.append(piece)
    found = []
    for piece in pieces:
        body = _MARK.sub("", piece).strip()
        if words(body) and not body.endswith((":", "?")) and not _HEADING.match(body):
            cites = {int(number) for match in _MARK.finditer(piece) for number in match[1].split(",")}
            found.append(Statement(body, frozenset(cites)))
    return found


def stated(answer: Answer, field: str) -> list[Statement] | Score:
    """Give what an answer states, at least one statement; or the score of an answer that states nothing."""
    if answer.refused is not None:
        return measured(0, f"refused: {answer.refused.code}")
    text = text_of(answer, field)
    found = statements(text) if text is not None else []
    return found or unmeasured("the answer states nothing")


def wants_an_answer(case: Case) -> bool:
    """Say whether a case expects an answer and no refusal; one that expects neither is left alone."""
    expected = case.expected
    if expected.refusal:
        return False
    wanted = (expected.documents, expected.spans, expected.contains, expected.exact, expected.regex)
    return expected.refusal is False or any(wanted)
