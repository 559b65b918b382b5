"""Which packed passages an answer rests on: its ``[n]``, its ``citations`` array, or what the provider says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from bundlectl.inference.provider import Passage
from bundlectl.model.contract import Citation

_NUMBER = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")


def cited(
    output: Any, given: Sequence[Citation] | None, passages: Sequence[Passage]
) -> tuple[list[Citation], list[int]]:
    """Give the citations in order of first mention, and the numbers that name no packed passage.

    Args:
        output: the answer: a string, or an object. In an object, an array ``citations`` of numbers or of objects
            with ``n`` (and ``quote``) wins over ``[n]`` in its strings.
        given: citations by the provider itself; they win over everything.
        passages: what was packed; their ``n`` is what may be cited. A quote that is not verbatim in its passage is
            left out.
    """
    by_number = {passage.n: passage for passage in passages}
    found: dict[tuple[int, str | None], Citation] = {}
    unknown: dict[int, None] = {}
    for number, quote in _mentions(output, given):
        passage = by_number.get(number)
        if passage is None:
            unknown[number] = None
            continue
        quote = quote if quote is not None and quote in passage.text else None
        found.setdefault(
            (number, quote),
            Citation(
                n=number, document=passage.document, section=list(passage.section), chunk=passage.chunk, quote=quote
            ),
        )
    quoted = {number for number, quote in found if quote is not None}
    kept = [citation for (number, quote), citation in found.items() if quote is not None or number not in quoted]
    return kept, list(unknown)


def _mentions(output: Any, given: Sequence[Citation] | None) -> Iterator[tuple[int, str | None]]:
    if given is not None:
        for citation in given:
            yield citation.n, citation.quote
        return
    if isinstance(output, dict) and isinstance(output.get("citations"), list):
        for item in output["citations"]:
            if isinstance(item, dict):
                quote = item.get("quote")
                yield from _number(item.get("n"), quote if isinstance(quote, str) else None)
            else:
                yield from _number(item, None)
        return
    for text in _strings(output):
        for match in _NUMBER.finditer(text):
            for number in match[1].split(","):
                yield int(number), None


def _number(value: Any, quote: str | None) -> Iterator[tuple[int, str | None]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield value, quote
    elif isinstance(value, str) and (match := re.fullmatch(r"\[?(\d{1,4})\]?", value)):
        yield int(match[1]), quote


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child)
