"""What every report is made of, and the words that all of them use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bundlectl.evaluation.comparison import Change
from bundlectl.evaluation.report import CaseResult, Report, Row
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.attestation import EvaluationResult, RunMeasure
from bundlectl.model.contract import Answer

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Material:
    """One evaluation.

    ``answers`` and ``baseline_answers``: what was answered, by case and repeat, as far as the run captured it; rows
    that an interrupted run measured, or that a signed result gave, have no text.
    """

    app: str
    loaded: LoadedSuite
    report: Report
    result: EvaluationResult
    changes: Sequence[Change] = ()
    answers: Mapping[Row, Answer] = field(default_factory=dict)
    baseline_answers: Mapping[Row, Answer] = field(default_factory=dict)

    def beside(self, row: CaseResult) -> CaseResult | None:
        """Give the baseline's row of the same case and repeat; its only one, where it was asked once."""
        return self._baseline.get(row.row) or self._baseline.get((row.id, 1))

    def __post_init__(self) -> None:
        held = self.report.baseline
        object.__setattr__(self, "_baseline", {row.row: row for row in held.cases} if held else {})

    _baseline: Mapping[Row, CaseResult] = field(init=False, default_factory=dict)


def state_of(row: CaseResult) -> str:
    """Say how a row came out: ``error``, ``unmeasured``, ``below 1`` or ``full``; the first that fits any score."""
    outcomes = {score.outcome for score in row.scores.values()}
    if row.error is not None or "error" in outcomes:
        return "error"
    if "unmeasured" in outcomes:
        return "unmeasured"
    if any(score.value is not None and score.value < 1 for score in row.scores.values()):
        return "below 1"
    return "full"


def moved(row: CaseResult, beside: CaseResult | None, skip: frozenset[str] = frozenset()) -> str | None:
    """Say whether a row scored ``worse`` than the baseline's, ``better``, ``mixed`` or the ``same``.

    ``None`` without a baseline. Scorers in ``skip``, those of speed, do not count.
    """
    if beside is None:
        return None
    differences = [
        score.value - theirs.value
        for key, score in row.scores.items()
        if key not in skip
        and score.value is not None
        and (theirs := beside.scores.get(key)) is not None
        and theirs.value is not None
    ]
    lost, won = any(d < 0 for d in differences), any(d > 0 for d in differences)
    return "mixed" if lost and won else "worse" if lost else "better" if won else "same"


def name_of(row: CaseResult) -> str:
    """Name a row: the case, and the repeat where it is not the first."""
    return row.id if row.repeat is None else f"{row.id} (repeat {row.repeat})"


def number(value: float | None) -> str:
    """Write a score."""
    return "-" if value is None else f"{value:.3f}"


def amount(measure: RunMeasure, value: float | None) -> str:
    """Write seconds or US dollars."""
    if value is None:
        return "-"
    return f"{value:.3f} s" if measure.measure == "latency" else f"{value:.6f} USD"


def clean(text: str) -> str:
    """Replace what neither XML nor HTML can hold: control characters and halves of surrogate pairs."""
    return _NO_XML.sub("\ufffd", text)
