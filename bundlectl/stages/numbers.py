"""Numbers that carry a checksum: payment cards (ISO/IEC 7812, Luhn) and IBANs (ISO 13616, mod 97)."""

from __future__ import annotations

import re
from collections.abc import Iterator

_GROUP = re.compile(r"[0-9]+")

_PREFIXES: tuple[tuple[int, int, frozenset[int]], ...] = (
    # first and last prefix of equal length; lengths of the whole number
    (4, 4, frozenset({13, 16, 19})),  # Visa
    (51, 55, frozenset({16})),  # Mastercard
    (2221, 2720, frozenset({16})),
    (34, 34, frozenset({15})),  # American Express
    (37, 37, frozenset({15})),
    (300, 305, frozenset({14, 16, 19})),  # Diners Club
    (3095, 3095, frozenset({14, 16, 19})),
    (36, 36, frozenset({14, 16, 19})),
    (38, 39, frozenset({14, 16, 19})),
    (6011, 6011, frozenset({16, 17, 18, 19})),  # Discover
    (644, 649, frozenset({16, 17, 18, 19})),
    (65, 65, frozenset({16, 17, 18, 19})),
    (3528, 3589, frozenset({16, 17, 18, 19})),  # JCB, and its 15 digits of before 2000
    (1800, 1800, frozenset({15})),
    (2131, 2131, frozenset({15})),
    (62, 62, frozenset({16, 17, 18, 19})),  # UnionPay
    (81, 81, frozenset({16, 17, 18, 19})),
    (5018, 5018, frozenset(range(13, 20))),  # Maestro
    (5020, 5020, frozenset(range(13, 20))),
    (5038, 5038, frozenset(range(13, 20))),
    (5893, 5893, frozenset(range(13, 20))),
    (6304, 6304, frozenset(range(13, 20))),
    (6759, 6759, frozenset(range(13, 20))),
    (6761, 6763, frozenset(range(13, 20))),
    (2200, 2204, frozenset({16, 17, 18, 19})),  # Mir
    (60, 60, frozenset({16})),  # RuPay
    (82, 82, frozenset({16})),
    (508, 508, frozenset({16})),
)

_LENGTHS_BY_PREFIX: dict[str, frozenset[int]] = {}
for _first, _last, _lengths in _PREFIXES:
    for _prefix in range(_first, _last + 1):
        _key = str(_prefix)
        _LENGTHS_BY_PREFIX[_key] = _LENGTHS_BY_PREFIX.get(_key, frozenset()) | _lengths

_SPECIAL_GROUPS = frozenset({(4, 6, 5), (4, 6, 4), (6, 13), (8, 8), (4, 4, 4, 4, 3), (4, 4, 5), (6, 4, 5)})
"""Groupings in print whose groups are not all alike."""

_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip
"""Length of an IBAN by country, SWIFT's registry."""


def iban_length(country: str) -> int:
    """Give the number of characters of a country's IBAN; 0 for a code that has none."""
    return _IBAN_LENGTHS.get(country, 0)


def mod97_is_one(compact: str) -> bool:
    """Check an IBAN, written without separators, by ISO 7064 mod 97-10."""
    turned = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in turned)) % 97 == 1


def luhn(digits: str) -> bool:
    """Check the Luhn digit of a number."""
    total = sum(int(digit) for digit in digits[-1::-2])
    total += sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return total % 10 == 0


def is_card(digits: str) -> bool:
    """Check prefix, length for that prefix, and Luhn digit of a card number."""
    lengths = (_LENGTHS_BY_PREFIX.get(digits[:size]) for size in (1, 2, 3, 4))
    return any(known is not None and len(digits) in known for known in lengths) and luhn(digits)


def card_windows(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Give the card numbers within a run of digits and single separators.

    A card starts and ends where a group does, and is grouped as cards are printed: all groups but the last alike,
    or one of the special groupings. The longest at each place; they do not overlap. Linear in the run's length.
    """
    groups = [(found.start(), found.end()) for found in _GROUP.finditer(text, start, end)]
    at = 0
    while at < len(groups):
        taken = _card_at(text, groups, at)
        if taken:
            yield groups[at][0], groups[at + taken - 1][1]
        at += taken or 1


def _card_at(text: str, groups: list[tuple[int, int]], at: int) -> int:
    """Give how many groups from ``at`` on make a card; 0 for none."""
    digits = ""
    sizes: tuple[int, ...] = ()
    best = 0
    for count, (start, end) in enumerate(groups[at : at + 19], 1):
        digits += text[start:end]
        sizes += (end - start,)
        if len(digits) > 19 or (count > 1 and not _alike(text[groups[at][1]], text[start - 1])):
            break
        if len(digits) >= 13 and _printed(sizes) and is_card(digits):
            best = count
    return best


def _alike(separator: str, other: str) -> bool:
    """Say whether two separators are the same; a line may break where a space is."""
    return separator == other or (separator.isspace() and other.isspace())


def _printed(sizes: tuple[int, ...]) -> bool:
    return sizes in _SPECIAL_GROUPS or (len(set(sizes[:-1])) <= 1 and sizes[-1] <= sizes[0])
