"""One strict YAML file to one checked document: a bundle, prompt, bindings, suite, index source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bundlectl.bundling.files import BadPath, Folder
from bundlectl.bundling.messages import ambiguous_problems, problems_of
from bundlectl.bundling.yaml import Document, parse_yaml
from bundlectl.model.errors import Problem, SourceError

T = TypeVar("T")


def load_document(path: Path, model: type[T]) -> T:
    """Read one strict YAML file as a document of that type.

    Args:
        path: the file; a link in the path is followed, since the caller named it.
        model: a model, or any type pydantic can validate.

    Raises:
        SourceError: it cannot be read or is not such a document; every problem with file and line.
    """
    return read_document(path, model)[0]


def read_document(path: Path, model: type[T]) -> tuple[T, Document]:
    """As :func:`load_document`, with the parsed file, whose ``problem(path, …)`` gives later findings their line.

    Raises:
        SourceError: it cannot be read or is not such a document.
    """
    try:
        resolved = path.resolve()
        data = Folder(resolved.parent).read(resolved.name)
    except BadPath as error:
        raise SourceError([Problem(str(path), 0, error.message, error.right)]) from error
    document = parse_yaml(data, str(path))
    value, problems = validated(document, model)
    if value is None:
        raise SourceError(problems)
    return value, document


def validated(document: Document, model: type[T]) -> tuple[T | None, list[Problem]]:
    """Check a parsed file against a type.

    Returns:
        the checked value and no problems, or None and all problems in the order of their lines.
    """
    problems = list(document.problems)
    if not problems:
        try:
            value: T = adapter(model).validate_python(document.value, by_alias=True, by_name=False)
        except ValidationError as error:
            problems = problems_of(error, document, model)
        else:
            problems = ambiguous_problems(value, document)
            if not problems:
                return value, []
    return None, in_order(problems)


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def adapter(model: type[T]) -> TypeAdapter[T]:
    """Give the validator of a type, built once."""
    if model not in _ADAPTERS:
        _ADAPTERS[model] = TypeAdapter(model)
    return _ADAPTERS[model]


def in_order(problems: list[Problem], first: str = "") -> list[Problem]:
    """Sort problems by file and line, the file ``first`` before all others; the same one twice is one."""
    unique = {(p.file, p.line, p.message): p for p in problems}.values()
    return sorted(unique, key=lambda p: (p.file != first, p.file, p.line, p.column, p.message))
