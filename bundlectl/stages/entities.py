"""The built-in detectors: for each entity an RE2 pattern that is cheap, and a judgement that is exact.

A pattern finds candidates in folded text; the judgement looks at a candidate in its surroundings and gives the
spans that are the entity: checksums, ranges and lengths live here. Precision first: a number that merely looks
like a card, an IBAN or an address is left alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bundlectl.stages.numbers import card_windows, iban_length, mod97_is_one
from bundlectl.stages.phones import PHONE, joined, phone_spans

Span = tuple[int, int]
Judge = Callable[[str, int, int], Iterator[Span]]
"""(folded text, start, end of a candidate) -> spans that are the entity; they may reach past the candidate."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity's detector."""

    pattern: str
    judge: Judge


def _whole(text: str, start: int, end: int) -> Iterator[Span]:
    yield start, end


def _before(text: str, start: int) -> str:
    return text[start - 1] if start else ""


def _after(text: str, end: int) -> str:
    return text[end] if end < len(text) else ""


# ---------------------------------------------------------------- email

_LETTERS: Final = r"\p{Latin}\p{Cyrillic}\p{Greek}"
_EMAIL: Final = (
    rf"[{_LETTERS}0-9_][{_LETTERS}0-9.!#$%&'*+/=?^_`{{|}}~-]{{0,63}}@"
    rf"(?:[{_LETTERS}0-9](?:[{_LETTERS}0-9-]{{0,61}}[{_LETTERS}0-9])?\.)+(?:xn--[a-z0-9-]{{1,59}}|[{_LETTERS}]{{2,63}})"
)


def _email(text: str, start: int, end: int) -> Iterator[Span]:
    local = text[start : text.rindex("@", start, end)]
    if not local.endswith(".") and ".." not in local:
        yield start, end


# ---------------------------------------------------------------- credit card

_CARD: Final = r"[2-6][0-9](?:[ \n.-]?[0-9]){10,}|[18](?:[ \n.-]?[0-9]){12,}"
_HEX_BEFORE = re.compile(r"[0-9a-fA-F]+$")
_HEX_AFTER = re.compile(r"[0-9a-fA-F]+")


def _card(text: str, start: int, end: int) -> Iterator[Span]:
    # RE2 finds the first place that looks like a card's prefix; a card starts where its group of digits does.
    while start and text[start - 1].isdigit():
        start -= 1
    for window in card_windows(text, start, end):
        if not _in_digest(text, *window):
            yield window


def _in_digest(text: str, start: int, end: int) -> bool:
    """Say whether digits are a piece of a long hexadecimal word, such as a sha256: some of those pass as cards."""
    before = _HEX_BEFORE.search(text, max(0, start - 64), start)
    after = _HEX_AFTER.match(text, end, end + 64)
    return (len(before[0]) if before else 0) + end - start + (len(after[0]) if after else 0) >= 32


# ---------------------------------------------------------------- IBAN

_IBAN: Final = r"(?i)[A-Z]{2}[ -]?[0-9]{2}[ \n-]?[A-Z0-9]{2}"


def _iban(text: str, start: int, end: int) -> Iterator[Span]:
    if _before(text, start).isalnum():
        return
    length = iban_length(text[start : start + 2].upper())
    taken: list[str] = []
    at = start
    while at < len(text) and len(taken) < length:
        character = text[at]
        if character.isascii() and character.isalnum():
            taken.append(character)
        elif character not in " \n-" or text[at - 1] in " \n-":
            return
        at += 1
    if length and len(taken) == length and not _after(text, at).isalnum() and mod97_is_one("".join(taken)):
        yield start, at


# ---------------------------------------------------------------- US social security number

_SSN: Final = r"\b[0-8][0-9]{2}([- .])[0-9]{2}[- .][0-9]{4}\b|\b[0-8][0-9]{8}\b"
_SSN_WORDS = re.compile(r"\b(?:ssn|social security|soc\.? sec)\b", re.IGNORECASE)
_NEVER_ISSUED = frozenset({"078051120", "219099999", "123456789"})
"""Numbers of advertisements and examples; the Social Security Administration voided the first two."""


def _ssn(text: str, start: int, end: int) -> Iterator[Span]:
    if joined(text, start, end):
        return
    digits = "".join(character for character in text[start:end] if character.isdigit())
    separators = {character for character in text[start:end] if not character.isdigit()}
    if digits[:3] in ("000", "666") or digits[3:5] == "00" or digits[5:] == "0000" or digits in _NEVER_ISSUED:
        return
    said = _SSN_WORDS.search(text, max(0, start - 48), start)
    if separators == {"-"} or (len(separators) < 2 and said):
        yield start, end


# ---------------------------------------------------------------- IP addresses

_IPV4: Final = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
_IP: Final = rf"\b{_IPV4}\b|(?i)(?:[0-9a-f]{{0,4}}:){{2,8}}(?:{_IPV4}|[0-9a-f]{{0,4}})"
_VERSION = re.compile(r"(?:\bv(?:er(?:sion)?)?\.? ?|\brelease |\bfirmware |\bbuild )$", re.IGNORECASE)


def _ip(text: str, start: int, end: int) -> Iterator[Span]:
    before, after = _before(text, start), _after(text, end)
    if before.isalnum() or before in ("_", ":") or after.isalnum() or after == "_":
        return
    found = text[start:end]
    if ":" not in found:
        if before in ("-", ".") or (after == "." and _after(text, end + 1).isdigit()):
            return
        if _VERSION.search(text, max(0, start - 12), start):
            return
    elif before == "-" or after == "-":
        return  # A slice with a step, x[-1::-2].
    elif "::" in found and not any(character.isdigit() for character in found):
        return  # Names of programs, dead::beef, are written like this.
    if found.endswith(":") and not found.endswith("::"):
        found = found[:-1]
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return
    if not address.is_unspecified:
        yield start, start + len(found)


# ---------------------------------------------------------------- secrets

_AWS: Final = (
    r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"
    r"|(?i:aws_?secret_?access_?key|secretaccesskey)[\"']?\s{0,3}[=:]\s{0,3}[\"']?[A-Za-z0-9/+]{40}\b"
)
_PEM_END: Final = r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
_PEM: Final = (
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    rf"(?:[A-Za-z0-9+/=\s\\:,.()-]*?{_PEM_END}|[A-Za-z0-9+/=\s\\]*)"
)


BUILT_IN: Final[dict[str, Entity]] = {
    "email": Entity(_EMAIL, _email),
    "phone": Entity(PHONE, phone_spans),
    "credit_card": Entity(_CARD, _card),
    "iban": Entity(_IBAN, _iban),
    "us_ssn": Entity(_SSN, _ssn),
    "ip_address": Entity(_IP, _ip),
    "aws_access_key": Entity(_AWS, _whole),
    "private_key": Entity(_PEM, _whole),
}
"""Every entity of the model, by name."""
