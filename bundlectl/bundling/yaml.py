"""Strict YAML: text to plain values, with the place of every value; surprises of YAML 1.1 are refused.

What is read is a small, safe YAML: one document of mappings with text keys, lists and scalars. Tags, anchors,
aliases, merge keys and directives are refused; so are duplicate keys. A plain scalar is ``true``, ``false``,
``null`` (or empty), a decimal number without a leading zero, or text. Plain text that another YAML reader would
take for something else (``no``, ``012``, ``1_000``, ``2024-01-01``) stays text and is marked
:class:`Ambiguous`: harmless where text is expected, refused by the caller where nothing says what is expected.

PyYAML's own events are used, in its Python form on every machine, so that there is one parser. Caps are
checked while events arrive, before anything is built.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from bundlectl.model.errors import Problem

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 50_000
MAX_PROBLEMS = 50
"""A file with more problems than this is given up on: the rest would bury the first."""

MAX_INTEGER = 2**53 - 1

Path = tuple[str | int, ...]
"""Where a value is in its document: keys and list positions from the top."""

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_AMBIGUOUS = re.compile(
    r"""
    ~ | [Nn]ull | NULL
    | [yYnN] | [Yy]es | YES | [Nn]o | NO | [Tt]rue | TRUE | [Ff]alse | FALSE | [Oo]n | ON | [Oo]ff | OFF
    | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)
    | [-+]?0[bB][01_]+ | [-+]?0[oO][0-7_]+ | [-+]?0[xX][0-9a-fA-F_]+
    | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?
    | [-+]?[0-9_]*[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?
    | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:.*)?
    """,
    re.VERBOSE,
)

_LINE_BREAKS = {"\x85": "U+0085", "\u2028": "U+2028", "\u2029": "U+2029", "\ufeff": "U+FEFF"}


class Ambiguous(str):
    """Plain text that YAML 1.1 reads as a boolean, a number, a date or null. It equals its text."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Line and column of a value, from 1. ``text_line``: the line on which the first line of its text is."""

    line: int
    column: int
    text_line: int = 0


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: its value, where each value and each key stands, and what is wrong with it.

    ``value`` is complete only when ``problems`` is empty.
    """

    file: str
    value: Any
    values: Mapping[Path, Place]
    keys: Mapping[Path, Place]
    problems: list[Problem]

    def place(self, path: Path) -> Place:
        """Give the place of a value, or of the nearest value around it that exists."""
        for length in range(len(path), -1, -1):
            if (found := self.values.get(path[:length])) is not None:
                return found
        return Place(0, 0)

    def key_place(self, path: Path) -> Place:
        """Give the place of the key of a mapping's entry; for anything else that of the value."""
        return self.keys.get(path) or self.place(path)

    def problem(self, path: Path, message: str, right: str = "", *, key: bool = False) -> Problem:
        """Make a problem at a value, or at its key."""
        place = self.key_place(path) if key else self.place(path)
        return Problem(self.file, place.line, message, right, column=place.column)


def parse_yaml(data: bytes, file: str) -> Document:
    """Parse a file; never raises for what is in it: everything wrong is in ``problems``.

    Args:
        data: the file's bytes.
        file: its name for people, put into every problem.
    """
    text, problems = decode_text(data, file)
    if text is None:
        return Document(file, None, {}, {}, problems)
    builder = _Builder(file)
    try:
        builder.run(text)
    except _Stop:
        pass
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = "this is not YAML: " + (error.problem or error.context or "it does not parse")
        builder.problem(mark, message, _syntax_help(error.problem or "", text, mark))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        builder.problems.append(
            Problem(file, line, f"the control character U+{ord(text[error.position]):04X} is not allowed in YAML")
        )
    except (ValueError, OverflowError) as error:
        # PyYAML converts \U escapes and %YAML numbers without checking their range.
        right = "a \\U escape or a number is out of range"
        builder.problem(builder.mark, f"this is not YAML: {str(error)[:100]}", right)
    return Document(file, builder.value, builder.values, builder.keys, builder.problems)


def decode_text(data: bytes, file: str) -> tuple[str | None, list[Problem]]:
    """Decode a source file's bytes as the one text form that is allowed: UTF-8, no mark, line feeds only.

    Returns:
        the text and no problems, or None and the problem.
    """
    if len(data) > MAX_BYTES:
        return None, [Problem(file, 0, f"the file has {len(data):,} bytes", f"at most {MAX_BYTES:,}")]
    if data.startswith(b"\xef\xbb\xbf"):
        return None, [Problem(file, 1, "the file starts with a byte order mark", "save it as UTF-8 without BOM")]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return None, [Problem(file, line, f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8")]
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        return None, [Problem(file, line, "the line ends with a carriage return (CRLF)", "save it with LF line ends")]
    for mark, name in _LINE_BREAKS.items():
        if mark in text:
            line = text.count("\n", 0, text.index(mark)) + 1
            right = f'leave it out, or write it as "\\u{ord(mark):04x}" in double quotes'
            return None, [Problem(file, line, f"the invisible character {name} is not allowed", right)]
    return text, []


def _syntax_help(problem: str, text: str, mark: Any) -> str:
    if mark is None:
        return ""
    lines = text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\\t" in problem or "\t" in line[: len(line) - len(line.lstrip())]:
        return "indent with spaces, not tabs"
    if "mapping values are not allowed" in problem:
        return 'text with ": " in it needs quotes, and keys of one mapping the same indentation'
    if "{{" in line or "{%" in line:
        return "put text that starts with { into quotes"
    if "expected ',' or" in problem:
        return "a [list] or {mapping} is not closed, or misses a comma"
    if "cannot start any token" in problem:
        return "put the text into quotes"
    return ""


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


class _Stop(Exception):
    """Parsing ends here; the reason is among the problems."""


@dataclass(slots=True)
class _Frame:
    """A collection under construction. ``key``: the mapping's key that waits for its value; negative if refused."""

    path: Path
    made: dict[str, Any] | list[Any]
    key: str | int | None = None
    refused: int = 0


@dataclass(slots=True)
class _Builder:
    file: str
    value: Any = None
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    mark: Any = None
    nodes: int = 0
    documents: int = 0
    frames: list[_Frame] = field(default_factory=list)

    def problem(self, mark: Any, message: str, right: str = "") -> None:
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        self.problems.append(Problem(self.file, line, message, right, column=column))
        if len(self.problems) >= MAX_PROBLEMS:
            raise _Stop

    def run(self, text: str) -> None:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            self.mark = event.start_mark
            self.take(event)
        if self.documents == 0:
            self.problems.append(Problem(self.file, 1, "the file is empty"))

    def take(self, event: Event) -> None:
        if isinstance(event, StreamStartEvent | StreamEndEvent):
            return
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.problem(event.start_mark, "a second document starts here", "one document in a file")
                raise _Stop
            if event.version or event.tags:
                self.problem(event.start_mark, "directives (%YAML, %TAG) are not allowed", "leave the line out")
            return
        if isinstance(event, MappingEndEvent | SequenceEndEvent):
            frame = self.frames.pop()
            self.add(frame.made, frame.path)
            return
        if isinstance(event, ScalarEvent | CollectionStartEvent | AliasEvent):
            self.node(event)

    def node(self, event: ScalarEvent | CollectionStartEvent | AliasEvent) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self.problem(event.start_mark, f"the file holds more than {MAX_NODES:,} values")
            raise _Stop
        if isinstance(event, AliasEvent):
            self.problem(event.start_mark, f"the alias *{event.anchor} is not allowed", "write the value out")
            self.put_scalar(event, None)
            return
        if event.anchor is not None:
            self.problem(event.start_mark, f"the anchor &{event.anchor} is not allowed", "leave it out")
        if event.tag is not None:
            self.problem(event.start_mark, f"the tag {event.tag!r} is not allowed", 'leave it out; "…" makes text')
        if isinstance(event, ScalarEvent):
            self.put_scalar(event, self.scalar(event))
        else:
            self.open(event)

    def open(self, event: CollectionStartEvent) -> None:
        if len(self.frames) >= MAX_DEPTH:
            self.problem(event.start_mark, f"values are nested deeper than {MAX_DEPTH} levels")
            raise _Stop
        path = self.path(event.start_mark)
        if path is None:
            right = 'a key is text; text that starts with "{{" or "[" needs quotes'
            self.problem(event.start_mark, "a key is a list or a mapping", right)
            raise _Stop
        self.values[path] = _place(event.start_mark)
        self.frames.append(_Frame(path, {} if isinstance(event, MappingStartEvent) else []))

    def path(self, mark: Any) -> Path | None:
        """Give the path of the value that comes now; None when it is a mapping's key."""
        if not self.frames:
            return ()
        frame = self.frames[-1]
        if isinstance(frame.made, list):
            return (*frame.path, len(frame.made))
        return None if frame.key is None else (*frame.path, frame.key)

    def put_scalar(self, event: ScalarEvent | AliasEvent, value: Any) -> None:
        path = self.path(event.start_mark)
        mark = event.start_mark
        if path is None:
            self.put_key(event, value)
            return
        block = isinstance(event, ScalarEvent) and event.style in ("|", ">")
        place = _place(mark)
        self.values[path] = Place(place.line, place.column, place.line + (1 if block else 0))
        self.add(value, path)

    def put_key(self, event: ScalarEvent | AliasEvent, value: Any) -> None:
        frame = self.frames[-1]
        key = self.key_text(event, value)
        first = self.keys.get((*frame.path, key)) if key is not None else None
        if key is not None and first is None:
            self.keys[(*frame.path, key)] = _place(event.start_mark)
            frame.key = key
            return
        frame.refused += 1
        frame.key = -frame.refused
        if first is not None:
            self.problem(event.start_mark, f"the key {key!r} is here a second time", f"first on line {first.line}")

    def key_text(self, event: ScalarEvent | AliasEvent, value: Any) -> str | None:
        if isinstance(event, AliasEvent):
            return None
        if event.style is None and event.value == "<<":
            self.problem(event.start_mark, "merge keys (<<) are not allowed", "write the fields out")
            return None
        if not isinstance(value, str):
            self.problem(
                event.start_mark, f"the key {event.value or 'nothing'} is not text", f'quote it: "{event.value}"'
            )
            return None
        if unicodedata.normalize("NFC", value) != value:
            self.problem(event.start_mark, f"the key {value!r} is not in Unicode normal form C (NFC)")
            return None
        return str(value)

    def add(self, value: Any, path: Path) -> None:
        if not self.frames:
            self.value = value
            return
        frame = self.frames[-1]
        if isinstance(frame.made, list):
            frame.made.append(value)
        else:
            if isinstance(frame.key, str):
                frame.made[frame.key] = value
            frame.key = None

    def scalar(self, event: ScalarEvent) -> Any:
        text: str = event.value
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.problem(event.start_mark, "the text holds half a character (a surrogate)", "write the whole one")
            return None
        if event.style is not None:
            return text
        if text in ("", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.fullmatch(text):
            if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
                self.problem(event.start_mark, f"the number {text[:40]} is beyond 2^53", "quote it if it is text")
                return None
            return int(text)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                self.problem(event.start_mark, f"the number {text[:40]} is too large", "quote it if it is text")
                return None
            return number
        return Ambiguous(text) if _AMBIGUOUS.fullmatch(text) else text
