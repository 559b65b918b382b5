"""Rows folded into columns: of each row no more than what verdicts and comparisons compute with.

A hundred thousand rows are read once, one by one; each takes 16 bytes and 8 more for every scorer, ids of cases aside.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.scorers.score import Score
from bundlectl.evaluation.suite import LoadedSuite

_ABSENT, _UNMEASURED, _ERROR = -1.0, -2.0, -3.0
"""In a column of scores, which lie in [0, 1]: the scorer does not apply, measured nothing, failed."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The scores of one scorer, over some cases: their sum, and how many there are of each outcome."""

    total: float
    measured: int
    unmeasured: int
    errors: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.measured + self.unmeasured + self.errors


class Fold:
    """Columns of rows, for the scorers of a suite. Rows of one case keep their order."""

    def __init__(self, loaded: LoadedSuite, rows: Iterable[CaseResult] = ()) -> None:
        self._numbers: dict[str, int] = {}
        self._first, self._last, self._next, self._case = array("q"), array("q"), array("q"), array("q")
        self._scores = {line.key: array("d") for line in loaded.suite.scorers}
        for row in rows:
            self.add(row)

    def add(self, row: CaseResult) -> None:
        """Take a row."""
        at = len(self._next)
        number = self._numbers.setdefault(row.id, len(self._numbers))
        if number == len(self._first):
            self._first.append(at)
            self._last.append(at)
        else:
            self._next[self._last[number]] = at
            self._last[number] = at
        self._next.append(-1)
        self._case.append(number)
        for key, column in self._scores.items():
            column.append(_cell(row.scores.get(key)))

    @property
    def cases(self) -> Collection[str]:
        """The ids of the cases that have rows."""
        return self._numbers.keys()

    @property
    def repeated(self) -> bool:
        """Whether any case has more than one row."""
        return len(self._next) > len(self._numbers)

    def values(self, case: str, key: str) -> list[float | None]:
        """Give the scores of a case's rows, None where one is missing; none where the scorer does not apply."""
        column, found = self._scores[key], []
        number = self._numbers.get(case)
        at = self._first[number] if number is not None else -1
        while at >= 0:
            if column[at] != _ABSENT:
                found.append(column[at] if column[at] >= 0 else None)
            at = self._next[at]
        return found

    def tally(self, key: str, cases: Collection[str] | None = None) -> Tally:
        """Count and add up a scorer's scores, of all cases or of those with these ids."""
        column: Iterable[float] = self._scores[key]
        if cases is not None:
            wanted = {self._numbers[case] for case in cases if case in self._numbers}
            column = array("d", (value for value, of in zip(column, self._case, strict=True) if of in wanted))
        values = array("d", (value for value in column if value >= 0))
        counts = {kind: sum(value == kind for value in column) for kind in (_UNMEASURED, _ERROR)}
        return Tally(math.fsum(values), len(values), counts[_UNMEASURED], counts[_ERROR])


def _cell(score: Score | None) -> float:
    if score is None:
        return _ABSENT
    if score.value is not None:
        return score.value
    return _UNMEASURED if score.outcome == "unmeasured" else _ERROR
