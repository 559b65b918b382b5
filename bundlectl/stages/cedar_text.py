"""Where in a Cedar file is it? Cedar's Python messages carry no position, so statements are cut apart here.

Cutting needs to know only what may hold a semicolon that ends nothing: strings and comments.
Cedar itself then parses each piece; nothing here decides what a policy means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r'//[^\n]*|"(?:\\.|[^"\\])*"|;|\S', re.DOTALL)
_QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Statement:
    """One policy's text, and the line (from 1) of the file at which it starts."""

    text: str
    line: int

    def line_of(self, message: str) -> int:
        """Give the file's line that a message about this statement most likely means."""
        return self.line + line_of(message, self.text) - 1


def split_policies(text: str) -> list[Statement]:
    """Cut a policy file at the semicolons that end its policies; what follows the last one is a piece too."""
    statements = []
    start = -1
    for token in _TOKEN.finditer(text):
        if token[0].startswith("//"):
            continue
        if start < 0:
            start = token.start()
        if token[0] == ";":
            statements.append(_statement(text, start, token.end()))
            start = -1
    if start >= 0:
        statements.append(_statement(text, start, len(text)))
    return statements


def _statement(text: str, start: int, end: int) -> Statement:
    return Statement(text[start:end].rstrip(), text.count("\n", 0, start) + 1)


def line_of(message: str, text: str) -> int:
    """Give the line, from 1, of the first place that one of the words quoted in ``message`` has in ``text``.

    Words are tried from the most telling: attribute and token names come before types. Line 1 when none is there.
    """
    for word in sorted(_QUOTED.findall(message), key=lambda word: word.startswith("policy")):
        bounded = rf"(?<!\w){re.escape(word)}(?!\w)" if word[:1].isalnum() else re.escape(word)
        found = re.search(bounded, text)
        if found:
            return text.count("\n", 0, found.start()) + 1
    return 1
