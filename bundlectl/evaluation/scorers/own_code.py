"""A scorer of one's own: where its code is, and which code it is. Nothing is imported or run here.

The code is one Python file under the suite's folder, or an installed entry point of the group ``bundlectl.scorers``.
Its digest is part of the suite's, so that a signed result names the code that scored: of a file, its bytes; of an entry
point, the distribution with its version and the digests of its files as they were installed. What the code imports is
not covered, which is why the file's own folder is not on its path. Of a distribution that is installed editable, only
its version is known.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from bundlectl.evaluation.beside import read_beside
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import Problem, SourceError
from bundlectl.model.types import RelativePath, Strict

GROUP = "bundlectl.scorers"
MAX_BYTES = 256 * 1024
DEFAULT_FUNCTION = "score"
METHOD = "score"

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class OwnOptions(Strict):
    """Which code scores, and how it is run.

    ``file`` with a ``function`` in it (by default ``score``) or a ``class``; or an ``entry_point`` that is either.
    ``settings`` are what the class is made with, or the function's second argument where there are any. ``tags``: the
    cases that it applies to have one of them; by default all. ``timeout``: seconds for one case. ``environment``: names
    of the environment variables that the code may see; it sees no others but the few that Python itself reads.
    """

    file: RelativePath | None = None
    function: str | None = None
    class_: str | None = Field(default=None, alias="class")
    entry_point: str | None = None
    settings: dict[str, Any] = {}
    tags: list[str] = []
    timeout: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 10.0
    environment: list[str] = []

    @model_validator(mode="after")
    def _one_place(self) -> OwnOptions:
        if (self.file is None) == (self.entry_point is None):
            raise ValueError("give the file with the code, or the entry_point of an installed one")
        named = [name for name in (self.function, self.class_) if name is not None]
        if len(named) == 2 or (named and self.entry_point is not None):
            raise ValueError("give the function or the class in the file; an entry_point names its own")
        return self


@dataclass(frozen=True, slots=True)
class OwnCode:
    """Code as it was read. ``shown``: its file or entry point, as people know it. ``source`` is a file's text."""

    shown: str
    digest: str
    name: str
    is_class: bool | None = None
    source: str | None = field(default=None, repr=False)


def read_own(folder: Path, options: OwnOptions) -> OwnCode:
    """Read the code and check what can be checked without running it.

    Args:
        folder: the suite's folder.
        options: of the suite's line.

    Raises:
        SourceError: it is not there, is no Python, or does not have what is named; each problem with file and line.
    """
    if options.entry_point is not None:
        return _installed(options.entry_point)
    relative = options.file or ""
    shown = str(folder / relative)
    data = read_beside(folder, relative, "the scorer", MAX_BYTES)
    try:
        source = data.decode()
        tree = ast.parse(source, shown)
    except UnicodeDecodeError as error:
        raise SourceError([Problem(shown, 0, "the scorer is not UTF-8 text")]) from error
    except SyntaxError as error:
        raise SourceError([Problem(shown, error.lineno or 0, f"this is no Python: {error.msg}")]) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise SourceError([Problem(shown, 0, f"this is no Python: {error}")]) from error
    name = options.class_ or options.function or DEFAULT_FUNCTION
    problem = _problem(tree, name, is_class=options.class_ is not None, shown=shown)
    if problem is not None:
        raise SourceError([problem])
    return OwnCode(shown, digest(data), name, options.class_ is not None, source)


def suite_form(form: Mapping[str, Any], code: Mapping[str, OwnCode]) -> dict[str, Any]:
    """Give the form of a suite that its digest is of: with the digests of own scorers' code, where there are any."""
    return {**form, **({"code": {key: own.digest for key, own in sorted(code.items())}} if code else {})}


def _installed(name: str) -> OwnCode:
    found = list(entry_points(group=GROUP, name=name))
    if len(found) != 1:
        there = ", ".join(sorted({point.name for point in entry_points(group=GROUP)})) or "none"
        what = "no installed package has" if not found else "several installed packages have"
        raise SourceError([Problem(name, 0, f"{what} the entry point {name!r} of {GROUP}", f"there are: {there}")])
    point = found[0]
    return OwnCode(f"{GROUP}:{name}", digest(canonical(_content(point))), point.value)


def _content(point: EntryPoint) -> dict[str, Any]:
    content: dict[str, Any] = {"entry_point": point.value}
    if point.dist is not None:
        content |= {"distribution": point.dist.name, "version": point.dist.version}
        content["files"] = {
            str(file): file.hash.value for file in point.dist.files or [] if file.hash is not None
        }  # of the distribution's RECORD
    return content


def _problem(tree: ast.Module, name: str, *, is_class: bool, shown: str) -> Problem | None:
    """Find what is wrong with the definition; one that is imported or assigned is seen only when it is loaded."""
    what = "class" if is_class else "function"
    bound = dict(_bound(tree))
    if name not in bound:
        right = f"def {name}(sample): ..." if not is_class else f"class {name}: ..."
        return Problem(shown, 0, f"the file has no {what} {name!r}", right)
    node = bound[name]
    if isinstance(node, ast.AsyncFunctionDef):
        return _no_async(shown, node)
    if not isinstance(node, ast.ClassDef):
        return (
            Problem(shown, node.lineno, f"{name!r} is no class") if is_class and isinstance(node, _FUNCTIONS) else None
        )
    if not is_class:
        return Problem(shown, node.lineno, f"{name!r} is a class", f"options: {{class: {name}}}")
    method = next((one for one in node.body if isinstance(one, _FUNCTIONS) and one.name == METHOD), None)
    if isinstance(method, ast.AsyncFunctionDef):
        return _no_async(shown, method)
    if method is None and not node.bases:
        return Problem(
            shown, node.lineno, f"class {name!r} has no method {METHOD!r}", f"def {METHOD}(self, sample): ..."
        )
    return None


def _no_async(shown: str, node: ast.AsyncFunctionDef) -> Problem:
    right = "a plain function: each scorer has a process of its own, in which it may wait"
    return Problem(shown, node.lineno, f"{node.name!r} is async, and scorers are called plainly", right)


def _bound(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Give the names that a module binds at its top level, with the statement that does."""
    for node in tree.body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from ((alias.asname or alias.name, node) for alias in node.names)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))
