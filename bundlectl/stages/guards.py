"""What may come in and go out: detectors compiled once into one RE2 set, located only when the set says so.

Detection runs on folded text (see folding), so that full-width digits hide nothing; redaction is done in the
original. RE2 runs in linear time, whatever the pattern. A detector that cannot be run blocks. DESIGN section 8.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import re2

from bundlectl.model.components import Detector, Guard
from bundlectl.model.errors import Problem
from bundlectl.stages.entities import BUILT_IN, Judge
from bundlectl.stages.errors import GuardError
from bundlectl.stages.folding import fold

Action = Literal["pass", "flag", "redact", "block"]

TOO_LONG = "max_chars"
"""The finding of a text over the guard's cap."""
BROKEN = "guard_error"
"""The finding when a detector could not be run, or redaction does not come to rest."""

_ROUNDS = 8
"""How often a text is redacted until nothing is left; a second round finds what the first one laid bare."""
_CLEAN_KEYS = 256
_CLEAN_KEY = 64
_SET_MEMORY = 64 * 1024 * 1024
_ALWAYS = ""
"""A pattern that every text matches: when the set does not report it, the set has failed."""


@dataclass(frozen=True, slots=True)
class GuardOutcome:
    """What a guard did. ``text`` is the text to go on with: redacted, or empty when blocked.

    ``findings`` counts by finding name (the entity, or the pattern's name), what flagged and blocked included.
    """

    text: str
    action: Action
    findings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GuardedJson:
    """The same for a JSON value; ``value`` is ``None`` when blocked."""

    value: Any
    action: Action
    findings: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Compiled:
    name: str
    action: Literal["block", "redact", "flag"]
    pattern: Any
    judge: Judge | None


@dataclass(frozen=True, slots=True)
class _Finding:
    start: int
    end: int
    order: int


class CompiledGuard:
    """One side of a profile, ready to run. Safe to share between threads."""

    def __init__(self, guard: Guard, detectors: tuple[_Compiled, ...], patterns: Any) -> None:
        self._max_chars = guard.max_chars
        self._detectors = detectors
        self._set = patterns
        self._no_hits = [len(detectors)]  # the position of _ALWAYS
        self.clean_keys: set[str] = set()
        """Keys of objects that nothing was found in: they come again with every request."""
        self._placeholders = tuple({f"[{d.name.upper()}]" for d in detectors if d.action == "redact"})

    @classmethod
    def compile(cls, guard: Guard) -> CompiledGuard:
        """Compile every detector.

        Raises:
            GuardError: a pattern is no RE2 syntax (it has no look-around and no backreferences), is too large, or
                matches the empty text. All of them together, each with its position.
        """
        detectors: list[_Compiled] = []
        problems: list[Problem] = []
        positions: list[int] = []
        patterns = re2.Set.SearchSet(_options())
        for position, detector in enumerate(guard.detectors):
            try:
                compiled = _compile(detector)
                patterns.Add(_source(detector))
            except re2.error as error:
                problems.append(_problem(position, detector, error))
                positions.append(position)
                continue
            if compiled.pattern.search("") is not None:
                problems.append(_problem(position, detector, "it matches the empty text"))
                positions.append(position)
            detectors.append(compiled)
        if problems:
            raise GuardError(problems, positions)
        compiled_guard = cls(guard, tuple(detectors), patterns)
        try:
            patterns.Add(_ALWAYS)
            patterns.Compile()
            fails = compiled_guard._hits("") is None
        except re2.error:
            fails = True
        if fails:
            problem = Problem("detectors", 0, "the patterns together are too large for RE2", "make repeats smaller")
            raise GuardError([problem], [])
        return compiled_guard

    def clean(self, text: str) -> bool:
        """Say whether one look tells that nothing is in a text, as it does of nearly all; nothing folds in ASCII."""
        return not self._detectors or (text.isascii() and self._set.Match(text.encode()) == self._no_hits)

    def apply(self, text: str) -> GuardOutcome:
        """Inspect one text. Never raises: what cannot be inspected is blocked."""
        if len(text) > self._max_chars:
            return GuardOutcome("", "block", {TOO_LONG: 1})
        if self.clean(text):
            return GuardOutcome(text, "pass")
        counts: Counter[str] = Counter()
        action: Action = "pass"
        for round_ in range(_ROUNDS):
            found = self._find(text)
            if found is None:
                return GuardOutcome("", "block", {**counts, BROKEN: 1})
            redactions = []
            for finding in found:
                detector = self._detectors[finding.order]
                if detector.action == "redact":
                    redactions.append(finding)
                elif round_ == 0 or detector.action == "block":
                    counts[detector.name] += 1
                    action = "block" if "block" in (detector.action, action) else "flag"
            if action == "block":
                counts.update(self._detectors[finding.order].name for finding in _groups(redactions))
                return GuardOutcome("", "block", dict(counts))
            if not redactions:
                return GuardOutcome(text, action, dict(counts))
            action = "redact"
            text = self._redact(text, redactions, counts)
        return GuardOutcome("", "block", {**counts, BROKEN: 1})

    def apply_json(self, value: Any) -> GuardedJson:
        """Inspect every string of a JSON value, and every whole number of 8 digits or more.

        A number that is redacted becomes the placeholder, a string. A finding in a key that would be redacted
        blocks, because renaming a key loses what it says. The cap counts all strings together.
        """
        walk = _Walk(self)
        try:
            guarded = walk.value(value)
        except (RecursionError, ValueError):  # nested too deeply, or a number too long to write out
            return GuardedJson(None, "block", {**walk.counts, BROKEN: 1})
        if walk.length > self._max_chars:
            return GuardedJson(None, "block", {**walk.counts, TOO_LONG: 1})
        if walk.action == "block":
            return GuardedJson(None, "block", walk.counts)
        return GuardedJson(guarded, walk.action, walk.counts)

    def _hits(self, text: str) -> list[int] | None:
        """Give the positions of the detectors whose pattern is somewhere in the text; ``None``: the set failed."""
        hits: list[int] = self._set.Match(text) or []
        if hits == self._no_hits:
            return []
        sentinel = len(self._detectors)
        return sorted(hit for hit in hits if hit != sentinel) if sentinel in hits else None

    def _find(self, text: str) -> list[_Finding] | None:
        folded = fold(text)
        hits = self._hits(folded.text)
        if not hits:
            return None if hits is None else []
        findings = []
        for order in hits:
            for start, end in _locate(self._detectors[order], folded.text):
                if start < end:
                    findings.append(_Finding(*folded.original(start, end), order))
        if findings and self._placeholders:
            covered = sorted(self._covered(text))
            findings = [finding for finding in findings if not _within(finding, covered)]
        return findings

    def _covered(self, text: str) -> Iterator[tuple[int, int]]:
        """Give the spans of placeholders that are in the text already: they hold nothing to find."""
        for placeholder in self._placeholders:
            start = text.find(placeholder)
            while start >= 0:
                yield start, start + len(placeholder)
                start = text.find(placeholder, start + len(placeholder))

    def _redact(self, text: str, findings: list[_Finding], counts: Counter[str]) -> str:
        pieces = []
        at = 0
        for finding in _groups(findings):
            name = self._detectors[finding.order].name
            counts[name] += 1
            pieces += [text[at : finding.start], f"[{name.upper()}]"]
            at = finding.end
        return "".join(pieces) + text[at:]


class _Walk:
    """One passage through a JSON value."""

    def __init__(self, guard: CompiledGuard) -> None:
        self._guard = guard
        self.length = 0
        self.action: Action = "pass"
        self.counts: dict[str, int] = {}

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self._key(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        if isinstance(value, int) and abs(value) >= 10_000_000:
            text = str(value)
            guarded = self._text(text)
            return value if guarded == text else guarded
        return value

    def _text(self, text: str) -> str:
        self.length += len(text)
        if self._guard.clean(text):
            return text  # however long it is: the cap is on all of them together
        outcome = self._guard.apply(text)
        for name, count in outcome.findings.items():
            self.counts[name] = self.counts.get(name, 0) + count
        if not outcome.findings:
            return outcome.text
        self.action = max(self.action, outcome.action, key=_SEVERITY.index)
        return outcome.text

    def _key(self, key: str) -> str:
        if key in self._guard.clean_keys:
            self.length += len(key)
            return key
        guarded = self._text(key)
        if not self.counts and len(key) <= _CLEAN_KEY and len(self._guard.clean_keys) < _CLEAN_KEYS:
            self._guard.clean_keys.add(key)
        if guarded != key:
            self.action = "block"
        return key


_SEVERITY: tuple[Action, ...] = ("pass", "flag", "redact", "block")


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _SET_MEMORY
    return options


def _source(detector: Detector) -> str:
    if detector.entity is not None:
        return BUILT_IN[detector.entity].pattern
    assert detector.pattern is not None, "the model takes an entity or a pattern"
    return detector.pattern


def _compile(detector: Detector) -> _Compiled:
    judge = BUILT_IN[detector.entity].judge if detector.entity else None
    name = detector.entity or detector.name or ""
    return _Compiled(name, detector.action, re2.compile(_source(detector), _options()), judge)


def _problem(position: int, detector: Detector, error: object) -> Problem:
    reason = error.args[0] if isinstance(error, re2.error) and error.args else error
    reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
    return Problem(
        f"detector {position + 1}",
        0,
        f"pattern {detector.name!r} ({detector.pattern}) does not compile: {reason}",
        "RE2 syntax, see https://github.com/google/re2/wiki/Syntax",
    )


def _locate(detector: _Compiled, text: str) -> Iterator[tuple[int, int]]:
    # For ASCII, offsets in bytes are offsets in characters, and RE2 need not convert them.
    searched: str | bytes = text.encode() if text.isascii() else text
    for candidate in detector.pattern.finditer(searched):
        start, end = candidate.span()
        if detector.judge is None:
            yield start, end
        else:
            yield from detector.judge(text, start, end)


def _within(finding: _Finding, covered: list[tuple[int, int]]) -> bool:
    """Say whether a finding lies inside one of the spans, which are sorted and do not overlap."""
    at = bisect_right(covered, (finding.start, sys.maxsize)) - 1
    return at >= 0 and finding.end <= covered[at][1]


def _groups(findings: list[_Finding]) -> list[_Finding]:
    """Join findings that overlap into the span of all of them, named after the longest, then the earlier detector.

    Joined, not dropped: no part of a finding that lost may be left in the text.
    """
    joined: list[_Finding] = []
    winner: _Finding | None = None
    for finding in sorted(findings, key=lambda f: (f.start, f.order, -f.end)):
        if winner is None or not joined or finding.start >= joined[-1].end:
            winner = finding
            joined.append(finding)
            continue
        winner = min(winner, finding, key=lambda f: (f.start - f.end, f.order, f.start))
        joined[-1] = _Finding(joined[-1].start, max(joined[-1].end, finding.end), winner.order)
    return joined
