"""From what pydantic says about a document to what a person can act on: file, line, what is wrong, what is right."""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from bundlectl.bundling.yaml import Ambiguous, Document, Path
from bundlectl.model.errors import Problem

_NAME_RULE = "lower-case letters, digits, - and _, starting with a letter or digit, at most 64"
_PATTERNS = {
    "^[a-z0-9][a-z0-9_-]{0,63}$": ("a name", _NAME_RULE),
    "^[a-z0-9][a-z0-9-]{0,39}$": ("a name of an app or environment", "lower-case letters, digits and -, at most 40"),
    "^sha256:[0-9a-f]{64}$": ("a digest", "sha256: and 64 lower-case hex digits"),
    "^[A-Za-z0-9][A-Za-z0-9._@/-]{0,127}$": ("the id of a principal", "letters, digits and . _ @ / -, at most 128"),
    "^[A-Z][A-Z0-9_]{0,63}$": ("an entity of Presidio's", "as it names them, e.g. EMAIL_ADDRESS"),
    "^([1-9][0-9]{0,7}|DRAFT)$": ("the version of a guardrail", 'a number in quotes, e.g. "3"'),
    "^(env:[A-Z][A-Z0-9_]*|file:/.+|aws-sm:.+|ssm:/.+)$": (
        "a reference to a credential",
        "env:NAME, file:/path, aws-sm:name or ssm:/path; the value itself never stands here",
    ),
}
_DURATIONS = {"timeout", "first_token", "between_tokens", "stale_after", "expires_after", "at_least", "max_age"} | {
    "ttl",
    "leeway",
    "keys_ttl",
    "keys_max_age",
}
"""Fields whose text is a duration: a bare number there lacks its unit, not its quotes."""
_BOOLEANS = {"y": "true", "yes": "true", "on": "true", "true": "true"} | {
    "n": "false",
    "no": "false",
    "off": "false",
    "false": "false",
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which of the known names was probably meant, or which there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    if not names:
        return "there is none"
    shown = ", ".join(names[:12])
    return f"there is {shown}" if len(names) == 1 else f"one of: {shown}" + (", …" if len(names) > 12 else "")


def describe(value: Any) -> str:
    """Name a value as its writer would: ``the text '12'``, ``the number 2.14``, ``a list``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean {'true' if value else 'false'}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"the text {value[:57]!r}…"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else type(value).__name__


def problems_of(error: ValidationError, document: Document, model: Any, base: Path = ()) -> list[Problem]:
    """Translate every finding of a validation.

    Args:
        error: what pydantic found.
        document: the parsed file, for the places.
        model: the type that was validated against, for the fields that exist.
        base: where in the document the validated value stands.
    """
    found: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(_path(detail, document, base), []).append(detail)
    missing = {path for path, details in found.items() if details[0]["type"] == "missing"}
    return [_problem(path, details, document, model, base, missing) for path, details in found.items()]


def ambiguous_problems(value: Any, document: Document) -> list[Problem]:
    """Find text, where nothing says what type is expected, that YAML 1.1 would have read as something else.

    Args:
        value: the validated document: typed text has become ``str``, so what is still marked stands under ``Any``.
        document: the parsed file.
    """
    problems: list[Problem] = []

    def walk(node: Any, path: Path) -> None:
        if isinstance(node, Ambiguous):
            plain = _plain_form(node)
            right = f'write "{node}" if it is text' + (f", {plain} if it is not" if plain else "")
            problems.append(document.problem(path, f"{node} may be meant as text or as something else", right))
        elif isinstance(node, BaseModel):
            for name, info in type(node).model_fields.items():
                walk(getattr(node, name), (*path, info.alias or name))
            for name, child in (node.__pydantic_extra__ or {}).items():
                walk(child, (*path, name))
        elif isinstance(node, dict):
            for name, child in node.items():
                walk(child, (*path, name))
        elif isinstance(node, list):
            for position, child in enumerate(node):
                walk(child, (*path, position))

    walk(value, ())
    return problems


def _plain_form(text: str) -> str:
    """Give the unambiguous way to write what an ambiguous text may mean, or ""."""
    low = text.lower()
    if low in _BOOLEANS:
        return _BOOLEANS[low]
    if low in ("~", "null"):
        return "null"
    digits = text.replace("_", "").lstrip("+").lstrip("0") or "0"
    return digits if digits.isdigit() else ""


def _path(detail: ErrorDetails, document: Document, base: Path) -> Path:
    """Give the path of the value a finding is about; parts that only name a union's member are cut off."""
    location = (*base, *detail["loc"])
    if detail["type"] == "missing":
        return _existing(location[:-1], document) + location[-1:]
    if location and location[-1] == "[key]":
        location = location[:-1]
    return _existing(location, document)


def _existing(location: Path, document: Document) -> Path:
    for length in range(len(location), -1, -1):
        if location[:length] in document.values:
            return location[:length]
    return ()


def _problem(
    path: Path, details: list[ErrorDetails], document: Document, model: Any, base: Path, missing: set[Path]
) -> Problem:
    detail = details[0]
    kind = detail["type"]
    if kind == "missing":
        return document.problem(path[:-1], f"{str(path[-1])!r} is missing in {_called(path[:-1])}", key=True)
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_field(path, document, model, base, missing)
    if detail["loc"] and detail["loc"][-1] == "[key]":
        called, rule = _PATTERNS.get(detail.get("ctx", {}).get("pattern", ""), ("a key of the right form", ""))
        return document.problem(path, f"{str(path[-1])!r} is not {called}", rule, key=True)
    value = detail["input"]
    if kind == "string_pattern_mismatch" and len(detail["loc"]) + len(base) == len(path) and len(details) == 1:
        at_key = path in document.keys and path[-1] == value
        called, rule = _PATTERNS.get(detail["ctx"]["pattern"], ("of the right form", detail["ctx"]["pattern"]))
        return document.problem(path, f"{value!r} is not {called}", rule, key=at_key)
    if len(details) > 1:
        expected = " or ".join(dict.fromkeys(_expected(each)[0] for each in details))
        return document.problem(path, f"{_field(path)}expected {expected}, got {describe(value)}")
    return document.problem(path, *_single(path, detail))


def _single(path: Path, detail: ErrorDetails) -> tuple[str, str]:
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "value_error":
        return f"{_field(path)}{context.get('error', detail['msg'])}", ""
    if kind == "literal_error":
        expected = context.get("expected", "")
        options = [option.strip().strip("'") for option in expected.replace(" or ", ", ").split(",")]
        near = suggest(value, options) if isinstance(value, str) else ""
        right = near if near.startswith("did") else ""
        return f"{_field(path)}expected {expected}, got {describe(value)}", right
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "less_than_equal": ("at most", "le"),
        "greater_than": ("more than", "gt"),
        "less_than": ("less than", "lt"),
    }
    if kind in bounds:
        word, key = bounds[kind]
        return f"{_field(path)}{value} is out of range", f"{word} {context[key]}"
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        return f"{_field(path)}{_length(kind, value, context)}", ""
    expected, right = _expected(detail)
    if kind == "string_type" and path and path[-1] in _DURATIONS:
        return f"{_field(path)}expected a duration, got {describe(value)}", "a whole number and its unit, e.g. 8s"
    return f"{_field(path)}expected {expected}, got {describe(value)}", right


def _length(kind: str, value: Any, context: dict[str, Any]) -> str:
    limit = context.get("min_length", context.get("max_length"))
    word = "at least" if kind.endswith("short") else "at most"
    if kind.startswith("string"):
        return f"the text has {len(value)} characters, {word} {limit} expected"
    kind_of = "entries" if isinstance(value, dict) else "items"
    return f"{len(value)} {kind_of} here, {word} {limit} expected"


def _expected(detail: ErrorDetails) -> tuple[str, str]:
    """Say what type was expected, and how the value that is there would be written as that type."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "literal_error":
        return str(context.get("expected", "")), ""
    if kind == "string_pattern_mismatch":
        called, rule = _PATTERNS.get(context["pattern"], ("text of the right form", context["pattern"]))
        return f"{called} ({rule})", ""
    if kind == "value_error":
        return str(context.get("error", detail["msg"])), ""
    if kind in ("int_type", "int_from_float", "float_type"):
        called = "a number" if kind == "float_type" else "a whole number"
        plain = _plain_form(value) if isinstance(value, str) else ""
        number = plain if plain.isdigit() else ""
        return called, f"write {number}, without quotes" if number else f"e.g. {'0.5' if kind == 'float_type' else 3}"
    if kind == "bool_type":
        plain = _BOOLEANS.get(value.lower(), "") if isinstance(value, str) else ""
        return "true or false", f"write {plain}" if plain else ""
    if kind == "string_type":
        quotable = isinstance(value, int | float)
        return "text", f"put it in quotes: {json.dumps(str(value).lower())}" if quotable else ""
    if kind in ("dict_type", "model_type", "model_attributes_type", "dataclass_type"):
        return "a mapping (key: value)", ""
    if kind in ("list_type", "tuple_type"):
        one = value if isinstance(value, str) else "…"
        return "a list", f"[{one}], or one line with - for each"
    return detail["msg"].removeprefix("Input should be ").removeprefix("a valid "), ""


def _unknown_field(path: Path, document: Document, model: Any, base: Path, missing: set[Path]) -> Problem:
    name = str(path[-1]) if path else ""
    known = fields_at(model, path[len(base) : -1])
    absent = [field for field in known if (*path[:-1], field) in missing]
    near = difflib.get_close_matches(name, absent, n=1, cutoff=0.5)
    right = f"did you mean {near[0]!r}?" if near else suggest(name, known)
    return document.problem(path, f"unknown field {name!r} in {_called(path[:-1])}", right, key=True)


def _called(path: Path) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in path) or "the file"


def _field(path: Path) -> str:
    if not path:
        return ""
    last = path[-1]
    return f"{last}: " if isinstance(last, str) else f"{_called(path[-2:-1])} item {last + 1}: "


def fields_at(model: Any, path: Path) -> list[str]:
    """Give the field names that a model allows at a path; empty where any key is allowed."""
    kinds = _models(model)
    for part in path:
        kinds = [inner for kind in kinds for inner in _step(kind, part)]
    names = [
        info.alias or name
        for kind in kinds
        if isinstance(kind, type) and issubclass(kind, BaseModel)
        for name, info in kind.model_fields.items()
    ]
    return list(dict.fromkeys(names))


def _step(kind: Any, part: str | int) -> list[Any]:
    origin = get_origin(kind)
    if origin is dict:
        return _models(get_args(kind)[1])
    if origin is list:
        return _models(get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            if part == (info.alias or name):
                return _models(info.annotation)
        extra = typing.get_type_hints(kind, include_extras=True).get("__pydantic_extra__")
        return _models(get_args(extra)[1]) if get_origin(extra) is dict else []
    return []


def _models(annotation: Any) -> list[Any]:
    """Unwrap Annotated, unions and aliases down to models, dicts and lists."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [inner for member in get_args(annotation) for inner in _models(member)]
    return [annotation]
