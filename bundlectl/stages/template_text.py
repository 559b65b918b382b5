"""What does a template read, and on which line? The reading of MiniJinja source that the engine does not offer.

The engine names the variables that a template leaves undeclared, nested as far as they are written with dots,
but gives no lines, and sees neither ``input["name"]`` nor the fields of a loop's variable. Here code is told from
text (comments, ``raw`` blocks, strings), so that those few questions can be answered. Nothing here renders.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_PIECE = re.compile(
    r"""(?P<comment>\{\#.*?\#\})
      | (?P<raw>\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\})
      | (?P<code>\{\{(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?\}\}
               | \{%(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^"'])*?%\})
    """,
    re.DOTALL | re.VERBOSE,
)
_MARK = re.compile(r"\{[{%]|[%}]\}")
_STRING = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'""", re.DOTALL)
_TAG = re.compile(r"\{%[-+]?\s*(\w+)")
_FILTER = re.compile(r"(?<!\|)\|\s*([A-Za-z_]\w*)")
_TEST = re.compile(r"\bis\s+(?:not\s+)?([A-Za-z_]\w*)")
_SUBSCRIPT = re.compile(r"""(?<![\w.])input\s*\[\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')\s*\]""")
_LOOP = re.compile(r"\{%[-+]?\s*for\s+(\w+(?:\s*,\s*\w+)*)\s+in\s+([A-Za-z_]\w*)?")
_BINDING = re.compile(r"\{%[-+]?\s*(?:set|with|macro|call)\b[^%]*?\b(\w+)\s*(?:=|,|\))")


@dataclass(frozen=True, slots=True)
class Code:
    """One ``{{ … }}`` or ``{% … %}``; ``bare`` is the same with every string's content blanked out."""

    text: str
    bare: str
    line: int


def code_of(source: str) -> list[Code]:
    """Give the template's code, in order, each with the line (from 1) at which it starts."""
    found = []
    for piece in _PIECE.finditer(source):
        if piece.lastgroup == "code":
            bare = _STRING.sub(lambda string: string[0][0] + " " * (len(string[0]) - 2) + string[0][0], piece[0])
            found.append(Code(piece[0], bare, source.count("\n", 0, piece.start()) + 1))
    return found


def too_long(source: str, limit: int) -> int:
    """Give the line of the first piece of code that has more than ``limit`` characters, roughly; 0 for none.

    Linear and before any parsing, because it shields the engine's parser.
    """
    opened = -1
    for mark in _MARK.finditer(source + "%}"):
        if mark[0][0] == "{":
            opened = mark.start() if opened < 0 else opened
        elif opened >= 0:
            if mark.start() - opened > limit:
                return source.count("\n", 0, opened) + 1
            opened = -1
    return 0


def tags(code: list[Code]) -> Iterator[tuple[str, int]]:
    """Give each block tag's name and line, e.g. ``for``."""
    for piece in code:
        if tag := _TAG.match(piece.text):
            yield tag[1], piece.line


def filters(code: list[Code]) -> Iterator[tuple[str, int]]:
    """Give each filter's name and line, those of ``{% filter name %}`` too."""
    for piece in code:
        for found in _FILTER.finditer(piece.bare):
            yield found[1], _line(piece, found.start())
        if block := re.match(r"\{%[-+]?\s*filter\s+(\w+)", piece.bare):
            yield block[1], piece.line


def tests(code: list[Code]) -> Iterator[tuple[str, int]]:
    """Give each test's name and line, e.g. ``defined`` of ``x is defined``."""
    for piece in code:
        for found in _TEST.finditer(piece.bare):
            yield found[1], _line(piece, found.start())


def dotted_subscripts(source: str) -> tuple[str, dict[str, str]]:
    """Write ``input["some-name"]`` as ``input.subscript_0``; give the source and what each placeholder stands for.

    For analysis only: the engine then reports these reads too. Lines stay where they are.
    """
    names: dict[str, str] = {}

    def dotted(found: re.Match[str]) -> str:
        placeholder = f"subscript_{len(names)}"
        names[placeholder] = re.sub(r"\\(.)", r"\1", found[1][1:-1])
        return f"input.{placeholder}" + "\n" * found[0].count("\n")

    def in_code(piece: re.Match[str]) -> str:
        return _SUBSCRIPT.sub(dotted, piece[0]) if piece.lastgroup == "code" else piece[0]

    return _PIECE.sub(in_code, source), names


def line_of_read(code: list[Code], path: str) -> int:
    """Give the line of the first read of a dotted path such as ``input.name``; 1 when it is not found as written."""
    parts = r"\s*\.\s*".join(re.escape(part) for part in path.split("."))
    read = re.compile(rf"(?<![\w.]){parts}(?!\w)")
    for piece in code:
        if found := read.search(piece.bare):
            return _line(piece, found.start())
    return 1


def fields_of_loops(code: list[Code], sequence: str) -> Iterator[tuple[str, str, int]]:
    """Give (variable, field, line) of each read of a field of a variable that loops over ``sequence`` alone.

    A variable that any other tag binds too is left out: what it holds where is not known from the text.
    """
    over: dict[str, set[str]] = {}
    bound: set[str] = set()
    for piece in code:
        if loop := _LOOP.match(piece.bare):
            for name in re.split(r"\s*,\s*", loop[1]):
                over.setdefault(name, set()).add(loop[2] or "")
        bound.update(_BINDING.findall(piece.bare))
    for name in sorted(over):
        if over[name] != {sequence} or name in bound:
            continue
        read = re.compile(rf"(?<![\w.]){name}\s*\.\s*([A-Za-z_]\w*)")
        for piece in code:
            for found in read.finditer(piece.bare):
                yield name, found[1], _line(piece, found.start())


def _line(piece: Code, offset: int) -> int:
    return piece.line + piece.bare.count("\n", 0, offset)
