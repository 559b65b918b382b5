"""Is this answer of the form that was promised? JSON Schema 2020-12, compiled once; broken JSON is repaired once.

A repair may add what JSON puts around what is said, and nothing else: where it would lose or change a word or a digit
(``1 000`` read as 1, the first of two objects), or the end is missing, the answer is invalid, and not another one.

Patterns in a schema run in linear time, because what they are matched against is written by a model: look-around
and backreferences are refused. References stay inside the schema. DESIGN section 8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import jsonschema_rs

from bundlectl.model.components import Output
from bundlectl.model.errors import Problem
from bundlectl.stages.errors import SchemaError

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_MAX_ERRORS = 20
_BRACKET = re.compile(r"[\[\]{}]")
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_SPACE = re.compile(r"\\[nrtbf]|\s")
_BETWEEN = re.compile(r"(?<!\d),|,(?!\d)")
_AROUND = re.compile(r"[\"'`:{}\[\]\\]")
_MAX_REPAIR = 32_000
_MAX_OPEN = 64
_MAX_BRACKETS = 1_000
"""What broken JSON may have at most, in characters, in brackets open at once and in brackets, to be repaired.

json-repair takes quadratic time in each (4,000 open braces before 60,000 letters: 30 s); within these, half a second.
"""


@dataclass(frozen=True, slots=True)
class OutputResult:
    """A checked answer.

    ``value`` is the parsed value (the text itself for format ``text``), ``None`` when invalid. ``errors`` begin with
    a JSON Pointer into the answer (or ``the whole answer``) and can be sent back to the model.
    """

    value: Any
    outcome: Literal["valid", "repaired", "invalid"]
    errors: tuple[str, ...] = ()


class CompiledOutput:
    """The form of a task's answer, ready to check. Safe to share between threads."""

    def __init__(self, output: Output, validator: jsonschema_rs.Draft202012Validator | None) -> None:
        self.format = output.format
        self.schema = output.schema_
        self._validator = validator

    @classmethod
    def compile(cls, output: Output) -> CompiledOutput:
        """Check the schema itself and compile it.

        Raises:
            SchemaError: it names another dialect, refers outside itself or in a circle, has a pattern that is not
                linear, or is no valid schema.
        """
        if output.schema_ is None:
            return cls(output, None)
        findings = list(_references(output.schema_))
        if not findings:
            try:
                validator = jsonschema_rs.Draft202012Validator(
                    output.schema_, offline=True, pattern_options=jsonschema_rs.RegexOptions()
                )
            except jsonschema_rs.ValidationError as error:
                findings.append((_pointer(error.instance_path), error.message))
            else:
                return cls(output, validator)
        raise SchemaError(
            [Problem("schema", 0, f"{pointer or 'the whole schema'}: {message}") for pointer, message in findings],
            [pointer for pointer, _ in findings],
        )

    def check(self, text: str, *, cut: bool = False) -> OutputResult:
        """Parse and validate what a model wrote; format ``text`` takes it as it is. Never raises.

        ``cut``: the model was stopped at its longest answer, so that an end which is missing says something.
        """
        if self._validator is None:
            return OutputResult(text, "valid")
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return self._cut_off() if cut else self._repair(text)
        errors = self._errors(value)
        return OutputResult(None, "invalid", errors) if errors else OutputResult(value, "valid")

    def _repair(self, text: str) -> OutputResult:
        not_json = OutputResult(None, "invalid", ("the whole answer: not JSON, and not near enough to JSON to repair",))
        if not _repairable(text):
            return not_json
        value = _only_one(text)
        if value is None:
            value = _repaired(text)
        if not isinstance(value, dict | list):
            return not_json
        errors = self._errors(value)
        return OutputResult(None, "invalid", errors) if errors else OutputResult(value, "repaired")

    def _cut_off(self) -> OutputResult:
        problem = "the whole answer: cut off, as it was longer than the model may answer; say it shorter"
        return OutputResult(None, "invalid", (problem,))

    def _errors(self, value: Any) -> tuple[str, ...]:
        assert self._validator is not None, "called only where there is a schema"
        try:
            if self._validator.is_valid(value):
                return ()
            found = []
            for error in self._validator.iter_errors(value):
                found.append(f"{_pointer(error.instance_path) or 'the whole answer'}: {error.message}")
                if len(found) == _MAX_ERRORS:
                    break
        except ValueError as error:
            return (f"the whole answer: cannot be checked: {error}",)
        return tuple(sorted(found))


def _repairable(text: str) -> bool:
    if len(text) > _MAX_REPAIR:
        return False
    brackets = _BRACKET.findall(text)
    depth = deepest = 0
    for bracket in brackets:
        depth = depth + 1 if bracket in "{[" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return 0 < deepest <= _MAX_OPEN and len(brackets) <= _MAX_BRACKETS


def _only_one(text: str) -> Any:
    """Give the value of the only JSON in a text, whatever words are before and after; ``None`` where there is none."""
    start = _BRACKET.search(text)
    if start is None:
        return None
    try:
        value, end = _STRICT.raw_decode(text, start.start())
    except (ValueError, RecursionError):
        return None
    return value if _BRACKET.search(text, end) is None else None


def _repaired(text: str) -> Any:
    """Give the value that broken JSON says; ``None`` where it would say something else."""
    import json_repair  # of the extra 'router': checking a schema at build must not need it

    start = _BRACKET.search(text)
    body = text[start.start() if start else 0 :]
    try:
        value = json_repair.loads(body)
        said = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
    return value if _words(body) == _words(said) else None


def _words(text: str) -> str:
    """Give what JSON says, without what it puts around that."""
    text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # two halves escaped are one character
    bare = _AROUND.sub("", _BETWEEN.sub("", _SPACE.sub("", text)))
    return bare.casefold().replace("none", "null")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(parse_constant=_no_constant)


def _pointer(path: list[str | int]) -> str:
    """Write a path as a JSON Pointer, RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _references(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Find what would take the schema out of itself: another dialect, remote references, references in a circle."""
    dialect = schema.get("$schema", DIALECT)
    if dialect not in (DIALECT, DIALECT + "#"):
        yield "/$schema", f"dialect {dialect!r} is not supported: write {DIALECT}, or leave $schema out"
    direct: dict[str, str] = {}
    for path, node in _nodes(schema, ""):
        for keyword in ("$ref", "$dynamicRef"):
            target = node.get(keyword)
            if isinstance(target, str):
                if not target.startswith("#"):
                    yield f"{path}/{keyword}", f"reference {target!r} leaves the schema: copy it into $defs"
                elif keyword == "$ref":
                    direct["#" + path] = target
    for start in direct:
        seen = {start}
        at = direct[start]
        while at in direct and at not in seen:
            seen.add(at)
            at = direct[at]
        if at == start:
            yield f"{start[1:]}/$ref", "reference in a circle: it never reaches a schema"


def _nodes(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every object with its pointer; what is under ``const``, ``enum``, ``default``, ``examples`` is data."""
    pending: list[tuple[str, Any]] = [(path, value)]
    while pending:
        at, item = pending.pop()
        if isinstance(item, dict):
            yield at, item
            data = ("const", "enum", "default", "examples")
            pending += [(at + _pointer([key]), child) for key, child in item.items() if key not in data]
        elif isinstance(item, list):
            pending += [(f"{at}/{index}", child) for index, child in enumerate(item)]
