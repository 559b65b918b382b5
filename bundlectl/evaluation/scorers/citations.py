"""Scorers for what an answer cites: citation_correctness, citation_recall, citation_coverage.

A citation is correct when it names a passage that was packed, of a document that the case expects; with
``by: section`` of the expected heading path, an expected document without one being met by any of its sections. With
C the distinct documents (or sections) that the answer cites, U the numbers in it that name no packed passage, and E
what ``expected.documents`` lists:

    citation_correctness   correct of C / (|C| + |U|)
    citation_recall        items of E that a citation meets / |E|
    citation_coverage      statements with at least one citation of a packed passage / statements

An answer that cites nothing scores 0 on all three, and so does a refusal where an answer is wanted. What counts as a
statement, and which one a ``[n]`` belongs to: :mod:`bundlectl.evaluation.scorers.statements`. Where citations stand
beside the text, in the array ``citations`` of a structured answer and nowhere in the text, a statement counts as cited
if it and a quote hold one another; without quotes coverage is unmeasured.

These say whether an answer points to the right places, and not whether those places say what it says: that is
``groundedness``. Precision and recall of citations as ALCE has them (Gao et al., "Enabling Large Language Models to
Generate Text with Citations", 2023) ask a model whether the text entails the statement; here the case says which
documents are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bundlectl.evaluation.scorers.score import Sample, Score, measured, unmeasured
from bundlectl.evaluation.scorers.statements import Statement, stated, wants_an_answer
from bundlectl.inference.words import words
from bundlectl.model.contract import Citation
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict
from bundlectl.router.citations import cited


class CoverageOptions(Strict):
    """``field``: where the text of a structured answer stands."""

    field: str = "answer"


Place = tuple[str, tuple[str, ...] | None]
"""A document, and a heading path in it or None for any."""


@dataclass(frozen=True, slots=True)
class Cited:
    """Of ``places`` that are cited ``right`` are expected; of those ``wanted`` ``met`` are cited.

    ``strangers``: how many numbers name no packed passage.
    """

    right: int
    places: int
    strangers: int
    met: int
    wanted: int


def correctness(found: Cited) -> float:
    """Share of what was cited that is right."""
    return found.right / (found.places + found.strangers) if found.places + found.strangers else 0.0


def recall(found: Cited) -> float:
    """Share of what was expected that was cited."""
    return found.met / found.wanted


@dataclass(frozen=True, slots=True)
class CitationScorer:
    """Correctness or recall."""

    formula: Callable[[Cited], float]
    by: Literal["document", "section"]

    def applies(self, case: Case) -> bool:
        """Cases that expect at least one document."""
        return bool(case.expected.documents)

    def score(self, sample: Sample) -> Score:
        """Compare what is cited with what is expected."""
        if sample.answer.refused is not None:
            return measured(0, f"refused: {sample.answer.refused.code}")
        found = self._look(sample)
        if not found.places + found.strangers:
            return measured(0, "the answer cites nothing")
        why = f"{found.right} of {found.places} cited are expected, {found.met} of {found.wanted} expected are cited"
        if found.strangers:
            why += f"; {found.strangers} name no passage"
        return measured(self.formula(found), why)

    def _look(self, sample: Sample) -> Cited:
        sections = self.by == "section"
        wanted: set[Place] = {
            (item.document, tuple(item.section) if sections and item.section is not None else None)
            for item in sample.case.expected.documents or []
        }
        packed = {passage.chunk for passage in sample.passages}
        places: dict[Place, bool] = {}
        met: set[Place] = set()
        for citation in sample.answer.citations:
            place: Place = (citation.document, tuple(citation.section) if sections else None)
            meets = {place, (citation.document, None)} & wanted if citation.chunk in packed else set()
            places[place] = places.get(place, False) or bool(meets)
            met |= meets
        return Cited(sum(places.values()), len(places), len(strangers(sample)), len(met), len(wanted))


def strangers(sample: Sample) -> list[int]:
    """Give the numbers in an answer that name no packed passage."""
    return cited(sample.answer.output, None, sample.passages)[1]


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of the answer's statements that carry a citation."""

    options: CoverageOptions

    def applies(self, case: Case) -> bool:
        """Cases that want an answer."""
        return wants_an_answer(case)

    def score(self, sample: Sample) -> Score:
        """Count."""
        found = stated(sample.answer, self.options.field)
        if isinstance(found, Score):
            return found
        if not sample.answer.citations:
            return measured(0, "the answer cites nothing")
        marked = {passage.n for passage in sample.passages}
        carry = [bool(one.cites & marked) for one in found]
        if not any(one.cites for one in found):
            quotes = [citation.quote for citation in sample.answer.citations if citation.quote is not None]
            if not quotes:
                return unmeasured("the citations stand beside the text and quote nothing")
            carry = [quoted(one, sample.answer.citations) for one in found]
        return measured(sum(carry) / len(found), f"{sum(carry)} of {len(found)} statements carry a citation")


def quoted(statement: Statement, citations: list[Citation]) -> bool:
    """Say whether a statement and the quote of a citation hold one another, but for case, accents and punctuation."""
    said = f" {' '.join(words(statement.text))} "
    quotes = [f" {' '.join(words(citation.quote))} " for citation in citations if citation.quote]
    return any(quote.strip() and (said in quote or quote in said) for quote in quotes)
