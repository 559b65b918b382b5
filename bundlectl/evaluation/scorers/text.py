"""Scorers for the answer's text: exact, contains, regex.

The text is the output itself when it is a string; of an object it is the string in ``options.field`` (default
``answer``). An object without that field, and a refused request, have no text: they score 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import re2

from bundlectl.evaluation.scorers.score import Sample, Score, measured
from bundlectl.model.contract import Answer
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict


class TextOptions(Strict):
    """``field``: where the text of a structured answer stands."""

    field: str = "answer"


def text_of(answer: Answer, field: str) -> str | None:
    """Give the answer's text, or ``None`` when it has none."""
    if isinstance(answer.output, str):
        return answer.output
    found = (answer.output or {}).get(field)
    return found if isinstance(found, str) else None


def _no_text(answer: Answer, field: str) -> Score:
    if answer.refused is not None:
        return measured(0, f"refused: {answer.refused.code}")
    return measured(0, f"the output has no text in {field!r}")


@dataclass(frozen=True, slots=True)
class Exact:
    """1 when the text is the expected string, white space around both left aside; else 0."""

    options: TextOptions

    def applies(self, case: Case) -> bool:
        """Cases with ``expected.exact``."""
        return case.expected.exact is not None

    def score(self, sample: Sample) -> Score:
        """Compare."""
        text = text_of(sample.answer, self.options.field)
        if text is None:
            return _no_text(sample.answer, self.options.field)
        same = text.strip() == (sample.case.expected.exact or "").strip()
        return measured(1) if same else measured(0, "the text differs")


@dataclass(frozen=True, slots=True)
class Contains:
    """The share of the expected strings that occur, without regard to case and to how white space is written."""

    options: TextOptions

    def applies(self, case: Case) -> bool:
        """Cases with at least one string in ``expected.contains``."""
        return bool(case.expected.contains)

    def score(self, sample: Sample) -> Score:
        """Count."""
        text = text_of(sample.answer, self.options.field)
        if text is None:
            return _no_text(sample.answer, self.options.field)
        wanted = sample.case.expected.contains or []
        inside = _folded(text)
        found = sum(_folded(part) in inside for part in wanted)
        return measured(found / len(wanted), "" if found == len(wanted) else f"{found} of {len(wanted)} occur")


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True)
class Regex:
    """1 when the RE2 pattern is found anywhere in the text; else 0."""

    options: TextOptions

    def applies(self, case: Case) -> bool:
        """Cases with ``expected.regex``."""
        return case.expected.regex is not None

    def score(self, sample: Sample) -> Score:
        """Search."""
        text = text_of(sample.answer, self.options.field)
        if text is None:
            return _no_text(sample.answer, self.options.field)
        found = compiled(sample.case.expected.regex or "").search(text) is not None
        return measured(1) if found else measured(0, "the pattern is not found")


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> Any:
    """Compile an RE2 pattern.

    Raises:
        ValueError: RE2 does not know it; the message is RE2's.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "it does not compile"
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from error
