"""A check: one requirement, its verdict, and what to tell a person about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bundlectl.model.verdict import Verdict, worst


@dataclass(frozen=True)
class Check:
    """One requirement, judged.

    ``name`` is stable (scripts match on it), ``fix`` is a command where there is one. A ``warning`` is shown
    with its honest verdict and decides nothing. ``override`` is the digest of the override that made it one.
    """

    name: str
    verdict: Verdict
    why: str
    fix: str = ""
    warning: bool = False
    override: str = ""


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """Give the worst verdict of the checks that are no warnings. None at all is inconclusive."""
    return worst(check.verdict for check in checks if not check.warning)
