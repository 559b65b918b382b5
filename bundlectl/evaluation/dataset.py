"""Read a dataset: JSON Lines, one case a line, every problem with its line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bundlectl.bundling.messages import problems_of
from bundlectl.bundling.yaml import Document, Place
from bundlectl.evaluation.beside import open_beside
from bundlectl.evaluation.scorers.text import compiled
from bundlectl.evaluation.shelf import Shelf
from bundlectl.model.canonical import canonical, canonical_array, digest_of, parse_json
from bundlectl.model.errors import Problem, SourceError, VerificationFailed
from bundlectl.model.suite import Case
from bundlectl.model.types import lean

MAX_BYTES = 64 * 1024 * 1024
MAX_PROBLEMS = 50
SPLIT_TAG = "split:"
"""What a suite writes before a split's name where it means the cases of that split as it means those of a tag."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The cases in the order of their lines; ``digest`` is of the canonical JSON array of all of them."""

    cases: Sequence[Case]
    digest: str


def tags_of(case: Case) -> set[str]:
    """Give a case's tags, and the one that its split stands for."""
    return {*case.tags, *([SPLIT_TAG + case.split] if case.split is not None else [])}


def read_dataset(folder: Path, relative: str) -> Dataset:
    """Read and check a dataset.

    Args:
        folder: the suite's folder.
        relative: the dataset's path under it.

    Raises:
        SourceError: it cannot be read, holds no case, or a line is no case; ids occur twice.
    """
    shown = str(folder / relative)
    cases = Shelf(Case)
    forms = _Array()
    problems: list[Problem] = []
    first: dict[str, int] = {}
    with open_beside(folder, relative, "the dataset", MAX_BYTES) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            case, form, found = _case(line.removesuffix(b"\n"), number, shown)
            if case is not None and (before := first.setdefault(case.id, number)) != number:
                again = f"the id {case.id!r} is here a second time"
                found.append(Problem(shown, number, again, f"first on line {before}"))
            problems += found
            if len(problems) >= MAX_PROBLEMS:
                break
            if case is not None and not problems:
                cases.add(case)
                forms.add(form)
    if not problems and not cases:
        problems.append(Problem(shown, 0, "the dataset holds no case", "one JSON object on each line"))
    if problems:
        raise SourceError(problems)
    return Dataset(cases, forms.digest())


def dataset_digest(cases: Iterable[Case]) -> str:
    """Give the digest of the canonical JSON array of the cases."""
    return digest_of(canonical_array(case.form() for case in cases))


class _Array:
    """The digest of a canonical JSON array, of its elements one by one as they were written."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256(b"[")
        self._before = b""

    def add(self, element: bytes) -> None:
        self._digest.update(self._before + element)
        self._before = b","

    def digest(self) -> str:
        whole = self._digest.copy()
        whole.update(b"]")
        return "sha256:" + whole.hexdigest()


def _case(line: bytes, number: int, shown: str) -> tuple[Case | None, bytes, list[Problem]]:
    """Give the case of a line, its canonical JSON, and what is wrong with it."""
    try:
        value = parse_json(line, what=f"{shown}:{number}")
    except VerificationFailed as error:
        why = f"this line is not JSON: {error.why or error.what}"
        return None, b"", [Problem(shown, number, why, "one JSON object")]
    try:
        case = Case.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        return None, b"", problems_of(error, Document(shown, value, {(): Place(number, 1)}, {}, []), Case)
    lean(case.expected)
    wrong = _wrong(case)
    form = b""
    try:
        form = canonical(case.form())
    except (ValueError, UnicodeError) as error:
        wrong.append((f"{case.id!r} has no canonical form: {error}", "whole numbers within 2^53, whole characters"))
    return lean(case), form, [Problem(shown, number, message, right) for message, right in wrong]


def _wrong(case: Case) -> list[tuple[str, str]]:
    """Find what the type alone does not see."""
    found: list[tuple[str, str]] = []
    if case.expected.regex is not None:
        try:
            compiled(case.expected.regex)
        except ValueError as error:
            found.append((f"expected.regex of {case.id!r} does not compile: {error}", "RE2 syntax"))
    if any(not part.strip() for part in case.expected.contains or []):
        found.append((f"expected.contains of {case.id!r} holds an empty string, which every answer contains", ""))
    if any(tag.startswith(SPLIT_TAG) for tag in case.tags):
        found.append((f"a tag of {case.id!r} starts with {SPLIT_TAG!r}, which stands for splits", "another name"))
    return found
