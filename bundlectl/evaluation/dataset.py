"""Read a dataset: JSON Lines, one case a line, every problem with its line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bundlectl.bundling.messages import problems_of
from bundlectl.bundling.yaml import Document, Place
from bundlectl.evaluation.beside import read_beside
from bundlectl.evaluation.scorers.text import compiled
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

    cases: tuple[Case, ...]
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
    data = read_beside(folder, relative, "the dataset", MAX_BYTES)
    cases: list[Case] = []
    problems: list[Problem] = []
    first: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        case, found = _case(line, number, shown)
        if case is not None and (before := first.setdefault(case.id, number)) != number:
            found.append(Problem(shown, number, f"the id {case.id!r} is here a second time", f"first on line {before}"))
        problems += found
        if len(problems) >= MAX_PROBLEMS:
            break
        if case is not None:
            cases.append(case)
    if not problems and not cases:
        problems.append(Problem(shown, 0, "the dataset holds no case", "one JSON object on each line"))
    if problems:
        raise SourceError(problems)
    return Dataset(tuple(cases), dataset_digest(cases))


def dataset_digest(cases: Sequence[Case]) -> str:
    """Give the digest of the canonical JSON array of the cases."""
    return digest_of(canonical_array(case.form() for case in cases))


def _case(line: bytes, number: int, shown: str) -> tuple[Case | None, list[Problem]]:
    try:
        value = parse_json(line, what=f"{shown}:{number}")
    except VerificationFailed as error:
        return None, [Problem(shown, number, f"this line is not JSON: {error.why or error.what}", "one JSON object")]
    try:
        case = Case.model_validate(value, by_alias=True, by_name=False)
    except ValidationError as error:
        return None, problems_of(error, Document(shown, value, {(): Place(number, 1)}, {}, []), Case)
    lean(case.expected)
    return lean(case), [Problem(shown, number, message, right) for message, right in _wrong(case)]


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
    try:
        canonical(case.form())
    except (ValueError, UnicodeError) as error:
        found.append((f"{case.id!r} has no canonical form: {error}", "whole numbers within 2^53, whole characters"))
    return found
