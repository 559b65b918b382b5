"""What looks at text elsewhere, asked about texts and JSON values. Who cannot be asked in time lets nothing through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bundlectl.inference.inspection import Inspection, Inspector, Side
from bundlectl.inference.provider import ProviderError
from bundlectl.model.receipt import GuardRecord
from bundlectl.stages.guards import BROKEN, Action

_SEVERITY: tuple[Action, ...] = ("pass", "flag", "redact", "block")
_LONG_NUMBER = 10_000_000
"""Whole numbers from here on are inspected as text: they may be a card's or an account's."""


async def inspect_texts(inspectors: Sequence[Inspector], texts: Sequence[str], side: Side) -> Inspection:
    """Show texts to each inspector in turn, as the one before it left them; the first that blocks ends it."""
    action: Action = "pass"
    findings: dict[str, int] = {}
    units: dict[str, int] = {}
    for inspector in inspectors:
        try:
            seen = await inspector.inspect(texts, side)
        except ProviderError as error:
            return Inspection((), "block", {**findings, BROKEN: 1, f"{inspector.name}:{error.kind}": 1}, units)
        _add(findings, seen.findings)
        _add(units, seen.units)
        action = max(action, seen.action, key=_SEVERITY.index)
        if seen.action == "block":
            return Inspection((), "block", findings, units)
        texts = seen.texts
    return Inspection(tuple(texts), action, findings, units)


async def inspect_json(inspectors: Sequence[Inspector], value: Any, side: Side) -> tuple[Any, Inspection]:
    """Inspect every text of a JSON value, and give the value as it may go on; ``None`` when it may not.

    Keys and whole numbers of 8 digits or more are texts too. A key that would be redacted blocks, because renaming it
    loses what it says; a number that is redacted becomes a string.
    """
    seen = await inspect_texts(inspectors, list(_texts(value)), side)
    if seen.action == "block":
        return None, seen
    try:
        return _with(value, iter(seen.texts)), seen
    except _KeyRedacted:
        return None, Inspection((), "block", seen.findings, seen.units)


def joined(record: GuardRecord, seen: Inspection, side: Side) -> GuardRecord:
    """Add what inspectors did to what the detectors did on the same side."""
    findings = dict(record.findings)
    units = dict(record.units or {})
    _add(findings, seen.findings)
    _add(units, seen.units)
    action = max(record.action, seen.action, key=_SEVERITY.index)
    return GuardRecord(side=side, action=action, findings=findings, units=units or None)


class _KeyRedacted(Exception):
    pass


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, int) and abs(value) >= _LONG_NUMBER:
        yield str(value)


def _with(value: Any, texts: Iterator[str]) -> Any:
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, dict):
        made = {}
        for key, item in value.items():
            if next(texts) != key:
                raise _KeyRedacted
            made[key] = _with(item, texts)
        return made
    if isinstance(value, list | tuple):
        return [_with(item, texts) for item in value]
    if isinstance(value, int) and abs(value) >= _LONG_NUMBER:
        text = next(texts)
        return value if text == str(value) else text
    return value


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count
