"""Verdicts: pass, fail, inconclusive or error; the worst wins; only pass passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Verdict = Literal["pass", "fail", "inconclusive", "error"]

_BADNESS: dict[Verdict, int] = {"pass": 0, "inconclusive": 1, "error": 2, "fail": 3}


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Give the worst of the verdicts. None at all is inconclusive: nothing was measured."""
    found = list(verdicts)
    return max(found, key=_BADNESS.__getitem__) if found else "inconclusive"
