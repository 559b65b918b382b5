"""The headings of a Markdown text, and the sections between them.

Headings are ATX (``## Title``) and setext (a line of ``=`` or ``-`` under a paragraph), as CommonMark has them;
what stands in fenced code, in indented code or in an HTML comment is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_NO_PARAGRAPH = re.compile(r" {0,3}(?:>|[-+*][ \t]|\d{1,9}[.)][ \t]|\||<)| {4}|\t")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_MARKS = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)")
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading: its level from 1, its text without marks, and the span of its lines in the text."""

    level: int
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading, up to the next of any level.

    ``path`` is the heading path from the top; it is empty for text before the first heading. ``ordinal`` counts
    earlier sections of the same path in the document. ``start`` and ``end`` are character offsets of the body,
    without the heading itself and without blank space around it.
    """

    path: tuple[str, ...]
    ordinal: int
    start: int
    end: int


def headings(text: str) -> list[Heading]:
    """Find the headings of a Markdown text with LF line ends."""
    found: list[Heading] = []
    fence = ""
    comment = False
    paragraph: list[tuple[int, str]] = []  # open paragraph's lines, for a setext underline
    at = 0
    for line in text.splitlines(keepends=True):
        start, at = at, at + len(line)
        line = line.rstrip("\n")
        if fence:
            closing = line.strip()
            if len(closing) >= len(fence) and set(closing) == {fence[0]} and len(line) - len(line.lstrip(" ")) <= 3:
                fence = ""
            continue
        if comment:
            comment = "-->" not in line
            continue
        if opened := _FENCE.match(line):
            fence, paragraph = opened[1], []
            continue
        if line.lstrip().startswith("<!--"):
            comment, paragraph = "-->" not in line, []
            continue
        if atx := _ATX.match(line):
            found.append(Heading(len(atx[1]), plain(atx[2] or ""), start, at))
            paragraph = []
        elif paragraph and (under := _SETEXT.match(line)):
            title = plain(" ".join(part for _, part in paragraph))
            found.append(Heading(1 if under[1][0] == "=" else 2, title, paragraph[0][0], at))
            paragraph = []
        elif not line.strip() or (not paragraph and _NO_PARAGRAPH.match(line)):
            paragraph = []
        else:
            paragraph.append((start, line.strip()))
    return found


def plain(heading: str) -> str:
    """Give a heading's words without Markdown's marks: links by their text, no emphasis, no code ticks."""
    return _SPACE.sub(" ", _MARKS.sub("", _LINK.sub(r"\1", heading))).strip()


def cut_at(text: str, found: Iterable[Heading]) -> tuple[Section, ...]:
    """Cut a text at its headings. Sections without any text of their own are left out."""
    sections: list[Section] = []
    seen: Counter[tuple[str, ...]] = Counter()
    stack: list[Heading] = []
    begin = 0

    def close(end: int) -> None:
        body = text[begin:end]
        stripped = body.strip()
        if not stripped:
            return
        start = begin + len(body) - len(body.lstrip())
        path = tuple(heading.text for heading in stack)
        sections.append(Section(path, seen[path], start, start + len(stripped)))
        seen[path] += 1

    for heading in found:
        close(heading.start)
        while stack and stack[-1].level >= heading.level:
            stack.pop()
        stack.append(heading)
        begin = heading.end
    close(len(text))
    return tuple(sections)
