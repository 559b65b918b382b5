"""Read what people said of answers: JSON Lines, one label a line, every problem with its line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from bundlectl.bundling.messages import problems_of, suggest
from bundlectl.bundling.yaml import Document, Place
from bundlectl.evaluation.beside import read_beside
from bundlectl.evaluation.scorers.judged import Exhibit
from bundlectl.model.canonical import canonical, digest, parse_json
from bundlectl.model.errors import Problem, SourceError, VerificationFailed
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict

MAX_BYTES = 64 * 1024 * 1024
MAX_PROBLEMS = 50


class Label(Strict):
    """What a person said of an answer to a case of the dataset.

    ``other``: the answer beside it, where the question is which is better: then ``good`` means ``answer`` is, ``bad``
    that ``other`` is. ``passages``: the texts that the answer was made from, for scorers that show them to the judge.
    ``by``: who said it.
    """

    case: str
    answer: str = Field(min_length=1)
    other: str | None = None
    passages: list[str] | None = None
    label: Literal["good", "bad", "tie"]
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a file; ``digest`` is of the canonical JSON array of all of them."""

    labels: tuple[Label, ...]
    exhibits: tuple[Exhibit, ...]
    digest: str


def read_labels(folder: Path, relative: str, cases: Mapping[str, Case], *, paired: bool) -> Labels:
    """Read and check labels.

    Args:
        folder: the suite's folder.
        relative: the file's path under it.
        cases: the suite's cases by id.
        paired: whether they say which of two answers is better.

    Raises:
        SourceError: the file cannot be read, a line is no label, an answer is labelled twice, or a case is unknown.
    """
    shown = str(folder / relative)
    labels: list[Label] = []
    problems: list[Problem] = []
    first: dict[tuple[str, str, str | None], int] = {}
    for number, line in enumerate(read_beside(folder, relative, "the labels", MAX_BYTES).split(b"\n"), start=1):
        if not line.strip() or len(problems) >= MAX_PROBLEMS:
            continue
        label, found = _label(line, number, shown)
        problems += found
        if label is None:
            continue
        problems += [Problem(shown, number, *wrong) for wrong in _wrong(label, cases, paired)]
        key = (label.case, label.answer, label.other)
        if (before := first.setdefault(key, number)) != number:
            # One answer that counts twice would make an interval narrower than it is.
            problems.append(Problem(shown, number, "this answer has a label already", f"first on line {before}"))
        labels.append(label)
    if not labels and not problems:
        problems.append(Problem(shown, 0, "the file holds no label", "one JSON object on each line"))
    if problems:
        raise SourceError(problems)
    exhibits = tuple(
        Exhibit(cases[label.case], label.answer, tuple(label.passages or ()), label.other) for label in labels
    )
    return Labels(tuple(labels), exhibits, digest(canonical([label.form() for label in labels])))


def _label(line: bytes, number: int, shown: str) -> tuple[Label | None, list[Problem]]:
    try:
        value = parse_json(line, what=f"{shown}:{number}")
    except VerificationFailed as error:
        return None, [Problem(shown, number, f"this line is not JSON: {error.why or error.what}", "one JSON object")]
    try:
        return Label.model_validate(value, by_alias=True, by_name=False), []
    except ValidationError as error:
        return None, problems_of(error, Document(shown, value, {(): Place(number, 1)}, {}, []), Label)


def _wrong(label: Label, cases: Mapping[str, Case], paired: bool) -> list[tuple[str, str]]:
    found = []
    if label.case not in cases:
        found.append((f"the suite has no case {label.case!r}", suggest(label.case, cases)))
    if paired and label.other is None:
        found.append(("there is no other answer that this one is preferred to", "other: the text of the other answer"))
    if not paired and label.label == "tie":
        found.append(("an answer by itself is good or bad", "label: good, or bad"))
    return found
