"""Guarding text while it streams: a window is held back, so that nothing is released before it is seen whole.

Law: what is released, joined, is what the guard makes of the whole text, for every finding of at most
:data:`WINDOW` characters. Text is cut only where cutting changes nothing the guard finds.
"""

from __future__ import annotations

import re
from typing import Final

from bundlectl.router.run import Refusal
from bundlectl.stages.guards import TOO_LONG, Action, CompiledGuard, GuardOutcome

WINDOW: Final = 400
STEP: Final = 64
"""Characters that are waited for beyond the window, so that a long answer is not inspected at every token."""

_BREAK = re.compile(r"\s")
_SEVERITY: tuple[Action, ...] = ("pass", "flag", "redact", "block")


class GuardedStream:
    """One answer's gate. ``action`` and ``findings`` are of what was released so far."""

    def __init__(self, guard: CompiledGuard, max_chars: int) -> None:
        self._guard = guard
        self._max_chars = max_chars
        self._held = ""
        self._look_at = WINDOW + STEP
        self._length = 0
        self._action = 0
        self.findings: dict[str, int] = {}

    @property
    def action(self) -> Action:
        """The gravest thing the guard did."""
        return _SEVERITY[self._action]

    def feed(self, text: str, *, last: bool = False) -> str:
        """Take a piece and give what may be released; ``last``: nothing follows, so all of it.

        Raises:
            Refusal: the guard blocks.
        """
        self._held += text
        self._length += len(text)
        if self._length > self._max_chars:
            return self._release(GuardOutcome("", "block", {TOO_LONG: 1}), 0)
        if last:
            return self._release(self._inspect(self._held), len(self._held))
        if len(self._held) < self._look_at:
            return ""
        whole = self._inspect(self._held)
        if whole.action == "block":
            return self._release(whole, 0)
        for cut in self._cuts():
            head, tail = self._inspect(self._held[:cut]), self._inspect(self._held[cut:])
            if head.text + tail.text == whole.text and _sum(head, tail) == whole.findings:
                self._look_at = WINDOW + STEP
                return self._release(head, cut)
        # Looked at again once it is a quarter longer: a finding that does not end would cost its length at every token.
        self._look_at = len(self._held) * 5 // 4
        return ""

    def _cuts(self) -> list[int]:
        """Give places to cut: after white space, the latest first; a text without any is cut at the window."""
        limit = len(self._held) - WINDOW
        ends = [match.end() for match in _BREAK.finditer(self._held, 0, limit)]
        return ends[:-9:-1] or [limit]

    def _inspect(self, text: str) -> GuardOutcome:
        return self._guard.apply(text)

    def _release(self, outcome: GuardOutcome, cut: int) -> str:
        self._action = max(self._action, _SEVERITY.index(outcome.action))
        for name, count in outcome.findings.items():
            self.findings[name] = self.findings.get(name, 0) + count
        if outcome.action == "block":
            raise Refusal("output_blocked", f"The answer was blocked: {', '.join(sorted(outcome.findings))}.")
        self._held = self._held[cut:]
        return outcome.text


def _sum(head: GuardOutcome, tail: GuardOutcome) -> dict[str, int]:
    found = dict(head.findings)
    for name, count in tail.findings.items():
        found[name] = found.get(name, 0) + count
    return found
