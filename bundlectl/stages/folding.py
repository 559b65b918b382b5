"""Look-alike characters folded to plain ones, for detection only, with offsets that lead back to the text.

Full-width digits, other scripts' digits, typographic dashes and spaces, compatibility forms (NFKC) and invisible
characters would hide an entity from a pattern. Folding is character by character, so that every character of the
folded text has one place in the original.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\ufe58\ufe63\uff0d")
_DOTS = frozenset("\u3002\uff0e\uff61\u2024")
_INVISIBLE = frozenset({"Cf", "Mn", "Me"})
"""Format characters (zero-width space and joiners, soft hyphen, direction marks) and combining marks."""


def fold_character(character: str) -> str:
    """Give what stands for one character: none, one or several characters."""
    if character in _DASHES:
        return "-"
    if character in _DOTS:
        return "."
    category = unicodedata.category(character)
    if category in _INVISIBLE:
        return ""
    if category == "Cs":
        return "\ufffd"  # a lone surrogate cannot be encoded
    if category == "Zs":
        return " "
    if category == "Nd":
        return str(unicodedata.decimal(character))
    return unicodedata.normalize("NFKC", character)


class _Table(dict[int, str]):
    """Folds by code point, filled as characters are met; ``uneven`` are those that are not one to one."""

    def __init__(self) -> None:
        super().__init__({code: chr(code) for code in range(128)})
        self.uneven: set[str] = set()

    def __missing__(self, code: int) -> str:
        folded = fold_character(chr(code))
        if len(folded) != 1:
            self.uneven.add(chr(code))
        self[code] = folded
        return folded


_TABLE = _Table()


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text. ``places`` gives each folded character's index in the original, or is ``None`` when equal."""

    text: str
    places: list[int] | None

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Give the span of the original that a non-empty span of the folded text comes from."""
        if self.places is None:
            return start, end
        return self.places[start], self.places[end - 1] + 1


def fold(text: str) -> Folded:
    """Fold a text."""
    if text.isascii():
        return Folded(text, None)
    folded = text.translate(_TABLE)
    if _TABLE.uneven.isdisjoint(text):
        return Folded(folded, None)
    places = [index for index, character in enumerate(text) for _ in _TABLE[ord(character)]]
    return Folded(folded, places)
