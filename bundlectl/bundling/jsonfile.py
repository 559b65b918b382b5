"""Strict JSON source files: values from the JSON parser, lines from the YAML one, of which JSON is nearly a part."""

from __future__ import annotations

import json
import re
from typing import Any

from bundlectl.bundling.yaml import MAX_DEPTH, MAX_INTEGER, Document, Path, decode_text, parse_yaml
from bundlectl.model.errors import Problem


def parse_json_file(data: bytes, file: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Parse a JSON file that holds one object.

    Returns:
        the object and no problems, or None and what is wrong.
    """
    text, problems = decode_text(data, file)
    if text is None:
        return None, problems

    def wrong(line: int, message: str, right: str = "") -> tuple[None, list[Problem]]:
        return None, [Problem(file, line, message, right)]

    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_int, parse_float=_float)
    except _Refused as error:
        return wrong(_line(error, text), error.message, error.right)
    except json.JSONDecodeError as error:
        return wrong(error.lineno, f"this is not JSON: {error.msg}", "strict JSON: double quotes, no comments")
    except RecursionError:
        return wrong(1, f"values are nested deeper than {MAX_DEPTH} levels")
    if not isinstance(value, dict):
        return wrong(1, "the file must hold a JSON object", "{…}")
    if _too_deep(value):
        return wrong(1, f"values are nested deeper than {MAX_DEPTH} levels")
    if re.search("\\\\u[dD][89a-fA-F]", text) and _surrogate(value):
        return wrong(1, "a text holds half a character (a surrogate)", "write the whole character")
    return value, []


def json_places(data: bytes, file: str) -> Document:
    """Give the places of a JSON file's values; empty where its text is outside what YAML and JSON share."""
    # A raw tab stands only between tokens in JSON, and a space is as wide, so columns stay.
    return parse_yaml(data.replace(b"\t", b" "), file)


def pointer_path(pointer: str, value: Any) -> Path:
    """Turn a JSON Pointer (RFC 6901) into a path, with list positions as numbers."""
    path: list[str | int] = []
    for raw in pointer.split("/")[1:]:
        part = raw.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
            path.append(int(part))
        else:
            value = value.get(part) if isinstance(value, dict) else None
            path.append(part)
    return tuple(path)


class _Refused(Exception):
    """JSON that Python reads and we do not. ``token``: what to look for in the text, and which occurrence."""

    def __init__(self, message: str, right: str, token: str, nth: int = 1) -> None:
        super().__init__(message)
        self.message, self.right, self.token, self.nth = message, right, token, nth


def _line(error: _Refused, text: str) -> int:
    for number, found in enumerate(re.finditer(error.token, text), start=1):
        if number == error.nth:
            return text.count("\n", 0, found.start()) + 1
    return 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            token = re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:"
            raise _Refused(f"the key {key!r} is there twice in one object", "keep one", token, 2)
        made[key] = value
    return made


def _refuse(name: str) -> Any:
    raise _Refused(f"{name} is not JSON", "use a finite number", re.escape(name))


def _int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise _Refused(f"the number {text[:40]} is beyond 2^53", "use a smaller number", re.escape(text))
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _Refused(f"the number {text[:40]} is too large", "use a finite number", re.escape(text))
    return number


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.values()]
    return value if isinstance(value, list) else []


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
    return bool(level)


def _surrogate(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    keys = list(value) if isinstance(value, dict) else []
    return any(_surrogate(child) for child in [*keys, *_children(value)])
