"""Telephone numbers: what is written like one, and loosely grouped digits where the words around say telephone.

A number with a plus, a leading zero or the North American grouping is taken by its form. Other groups of digits
are order numbers and quantities as often as telephones, so they need a word such as "call" close by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

PHONE: Final = r"(?:\+ ?|\()?[0-9](?:[ \n().\-/]{0,4}[0-9]){6,}"
"""RE2: a run of digits with a few separators between them; it may hold several numbers. Lines may break inside."""

_WORDS_BEFORE = re.compile(
    r"\b(?:phone|telephone|tel|telefon|mobile|mobil|my cell|cell:|cell ?phone|fax|call|calling|called|dial|ring"
    r"|reach|reached|whatsapp|sms|text (?:me|us)|contact|hotline|landline|answering|my number)(?:\b|\s)",
    re.IGNORECASE,
)
_WORDS_AFTER = re.compile(r" ?-? ?(?:office|fax|mobile|cell|home|work)\b", re.IGNORECASE)
_EXTENSION = re.compile(r"\s?(?:x|ext\.?|extension)\s?[0-9]{1,6}\b", re.IGNORECASE)
_FORMS = (
    # North America: 541-714-1388, (541) 714-1388, +1-903-140-4508, 001-518-640-0854
    re.compile(
        r"(?:\+ ?1[ .\-]?|1[ .\-]|001[ .\-]?)?(?:\([1-9][0-9]{2}\)[ .\-]?|[1-9][0-9]{2}[ .\-])[0-9]{3}[ .\-][0-9]{4}"
    ),
    # international: +46 (0)8 928 571 38, +447700900123
    re.compile(r"\+ ?[1-9](?:[ .\-/]{0,2}(?:\([0-9]{1,4}\)|[0-9])){6,14}"),
    # the same with 00
    re.compile(r"00[1-9][0-9]{0,2}(?:[ .\-/](?:\(0\) ?)?[0-9]{1,5}){2,6}|00[1-9][0-9]{9,12}"),
    # national, with the leading zero: 0490 75 40 81, 03.93.92.16.85, (030) 1234567, 07700 900123
    re.compile(
        r"\(0[1-9][0-9]{0,4}\)(?:[ ./\-]{0,2}[0-9]{2,8}){1,4}"
        r"|0[1-9](?:[ .\-][0-9]{2}){4}"
        r"|0[1-9][0-9]{1,4}[ ./\-][0-9]{2,4}[ .\-][0-9]{2,4}(?:[ .\-][0-9]{2,4})?"
        r"|0[1-9][0-9]{2,4}[ /\-][0-9]{5,8}"
    ),
)
_DATE = re.compile(
    r"(?:19|20)[0-9]{2}[ ./\-](?:0?[1-9]|1[0-2])[ ./\-](?:0?[1-9]|[12][0-9]|3[01])(?![0-9])"
    r"|(?:0?[1-9]|[12][0-9]|3[01])[ ./\-](?:0?[1-9]|[12][0-9]|3[01])[ ./\-](?:19|20)[0-9]{2}(?![0-9])"
)
_GROUP = re.compile(r"(?:\+ ?|\()?[0-9]+\)?")
_MOST_GROUPS = 8
_SOCIAL_SECURITY = re.compile(r"[0-9]{3}[ .\-][0-9]{2}[ .\-][0-9]{4}")


def phone_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Give the telephone numbers of one run, each with its extension; the longest at each place."""
    groups = [found.span() for found in _GROUP.finditer(text, start, min(end + 1, len(text)))]
    at = 0
    while at < len(groups):
        taken = _phone_at(text, groups, at)
        if taken:
            yield groups[at][0], _with_extension(text, groups[at + taken - 1][1])
        at += taken or 1


def _with_extension(text: str, end: int) -> int:
    extension = _EXTENSION.match(text, end)
    return extension.end() if extension else end


def _phone_at(text: str, groups: list[tuple[int, int]], at: int) -> int:
    """Give how many groups from ``at`` on are one number; 0 for none."""
    start = groups[at][0]
    for count in range(min(_MOST_GROUPS, len(groups) - at), 0, -1):
        end = groups[at + count - 1][1]
        if not 7 <= end - start <= 26:
            continue
        number = text[start:end].replace("\n", " ")
        digits = sum(map(str.isdigit, number))
        if not 7 <= digits <= 15 or _DATE.match(number) or _SOCIAL_SECURITY.fullmatch(number):
            continue
        if joined(text, start, _with_extension(text, end)):
            continue
        if any(form.fullmatch(number) for form in _FORMS):
            return count
        if count == len(groups) and _loose(text, start, end, number):
            return count
    return 0


def _loose(text: str, start: int, end: int, number: str) -> bool:
    """Say whether a run of groups in no certain form is a telephone by the words before or after it."""
    sizes = [len(group) for group in re.findall(r"[0-9]+", number)]
    grouped = 2 <= len(sizes) <= 5 and min(sizes) >= 2
    if not grouped and not (len(sizes) == 1 and sizes[0] in (10, 11)):
        return False
    return bool(_WORDS_BEFORE.search(text, max(0, start - 40), start) or _WORDS_AFTER.match(text, end))


def joined(text: str, start: int, end: int) -> bool:
    """Say whether a number is a piece of something longer: a word, a decimal, a longer chain of groups."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if before.isalnum() or before in ("_", "#", "$", "€", "£", "/", "=") or after.isalnum() or after in ("_", "%"):
        return True
    if before in ("-", ".", ",", ":") and text[start - 2 : start - 1].isdigit():
        return True
    return after in ("-", ".", ",", ":", "/") and text[end + 1 : end + 2].isdigit()
