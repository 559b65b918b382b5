"""Read a suite with its dataset, and choose the cases of a run."""

from __future__ import annotations

import fnmatch
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from bundlectl.bundling.documents import read_document
from bundlectl.bundling.messages import problems_of, suggest
from bundlectl.bundling.yaml import Document
from bundlectl.evaluation.calibration import Calibration, judge_problems, read_calibrations
from bundlectl.evaluation.dataset import Dataset, read_dataset, tags_of
from bundlectl.evaluation.scorers.own_code import OwnCode, OwnOptions, read_own, suite_form
from bundlectl.evaluation.scorers.table import KINDS, make_scorer
from bundlectl.evaluation.shelf import Picked
from bundlectl.evaluation.statistics import groups_needed
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.contract import Request
from bundlectl.model.errors import Problem, SourceError, UsageError
from bundlectl.model.suite import Case, Scorer, Suite


@dataclass(frozen=True, slots=True)
class LoadedSuite:
    """A suite whose every line was checked.

    ``cases``: those of the suite's splits, in the dataset's order; ``chosen``: those of this run, the same unless
    narrowed by :meth:`only`. ``dataset_digest`` is of the whole dataset, whatever the splits. ``code``: that of the
    suite's own scorers, by their keys, and ``calibrations`` those of its judges, where they were made; the digests of
    both are part of ``suite_digest``. ``narrowed``: the cases of the run were named one by one, all of them or not.
    """

    suite: Suite
    cases: Sequence[Case]
    chosen: Sequence[Case]
    suite_digest: str
    dataset_digest: str
    folder: Path
    code: Mapping[str, OwnCode] = field(default_factory=dict)
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    narrowed: bool = False

    @property
    def gates(self) -> tuple[tuple[Scorer, str | None, float], ...]:
        """Every margin: the scorer, the tag or None for all cases, and how much worse is still no worse."""
        return tuple(
            (line, tag, margin)
            for line in self.suite.scorers
            for tag, margin in [(None, line.margin), *sorted((line.tag_margins or {}).items())]
            if margin is not None
        )

    def undecidable(self) -> list[str]:
        """Name the margins over all cases that the dataset is too small for, as far as one can say beforehand."""
        gates = [gate for gate in self.gates if gate[1] is None]
        return [_too_small(*gate, have, needed) for gate, have, needed in _undersized(self.cases, gates)]

    def without(self, keys: Collection[str]) -> LoadedSuite:
        """Leave scorers out of what is measured; it stays the same exam, by the same digest."""
        lines = [line for line in self.suite.scorers if line.key not in keys]
        return replace(self, suite=self.suite.model_copy(update={"scorers": lines}))

    @property
    def whole(self) -> bool:
        """Whether the run is the suite's and no choice from it."""
        return not self.narrowed

    def only(self, patterns: Sequence[str]) -> LoadedSuite:
        """Narrow the run to cases whose id is one of the patterns (or matches: ``*``, ``?``), or that have it as a tag.

        Such a run is not complete and never passes.

        Raises:
            UsageError: a pattern matches no case.
        """
        wanted: set[int] = set()
        for pattern in patterns:
            found = {
                position
                for position, case in enumerate(self.cases)
                if fnmatch.fnmatchcase(case.id, pattern) or pattern in (case.id, *tags_of(case))
            }
            if not found:
                raise UsageError(
                    f"No case of suite {self.suite.name} has the id or the tag {pattern!r}.",
                    fix=suggest(pattern, [name for case in self.cases for name in (case.id, *sorted(tags_of(case)))]),
                )
            wanted |= found
        return replace(self, chosen=Picked(self.cases, sorted(wanted)), narrowed=True)


def read_suite(path: Path) -> LoadedSuite:
    """Read a suite file and the dataset beside it.

    Raises:
        SourceError: either cannot be read or is wrong; every problem with file and line.
    """
    suite, document = read_document(path, Suite)
    problems = [*_scorer_problems(suite, document)]
    code: dict[str, OwnCode] = {}
    calibrations: dict[str, Calibration] = {}
    if not problems:
        problems = judge_problems(suite, document)
        code, wrong = _own_code(suite, path.parent)
        calibrations, unread = read_calibrations(suite, path.parent)
        problems += [*wrong, *unread]
    dataset: Dataset | None = None
    try:
        dataset = read_dataset(path.parent, suite.dataset)
    except SourceError as error:
        problems += error.problems
    if dataset is None or problems:
        raise SourceError(problems)
    cases, problems = _choose(suite, dataset, document, str(path.parent / suite.dataset))
    problems += _gate_problems(suite, cases, document)
    if problems:
        raise SourceError(problems)
    form = suite_form(suite.form(), code)
    if calibrations:
        form["calibrations"] = {key: record.digest for key, record in sorted(calibrations.items())}
    return LoadedSuite(suite, cases, cases, digest(canonical(form)), dataset.digest, path.parent, code, calibrations)


def request_of(case: Case, suite: Suite, profile: str) -> Request:
    """Give the request that asks a case; ``profile`` is used where neither case nor suite names one."""
    return Request(
        task=suite.task,
        tenant_id=case.tenant,
        user_role=case.role,
        data_scope=case.scopes,
        latency_class=case.latency_class,
        response_format=case.response_format,
        policy_profile=case.profile or suite.profile or profile,
        input=case.input,
    )


def group_of(case: Case) -> str:
    """Give the group whose cases stand or fall together: ``group``, else the first document expected, else the case.

    A case that expects spans and no documents is in the group of its first span's document.
    """
    if case.group is not None:
        return case.group
    if case.expected.documents:
        return case.expected.documents[0].document
    if case.expected.spans:
        return case.expected.spans[0].document
    return f"case {case.id}"


Gate = tuple[Scorer, str | None, float]
"""A margin: the scorer, the tag or None for all cases, and how much worse is still no worse."""


def _undersized(cases: Sequence[Case], gates: Sequence[Gate]) -> Iterator[tuple[Gate, int, int | None]]:
    """Give the gates that have fewer groups of cases than their margin takes, with how many they have and need."""
    scorers = {line.key: make_scorer(line, None) for line, _, _ in gates}
    groups: list[set[str]] = [set() for _ in gates]
    for case in cases if gates else ():
        group, tags = group_of(case), tags_of(case)
        for (line, tag, _), found in zip(gates, groups, strict=True):
            if (tag is None or tag in tags) and scorers[line.key].applies(case):
                found.add(group)
    for gate, found in zip(gates, groups, strict=True):
        needed = groups_needed(gate[2])
        if needed is None or len(found) < needed:
            yield gate, len(found), needed


def _too_small(line: Scorer, tag: str | None, margin: float, have: int, needed: int | None) -> str:
    what = f"{line.key} [{tag}]" if tag is not None else line.key
    return (
        f"{what} has {have} groups of cases, and a margin of {margin:g} takes about "
        f"{f'{needed:,}' if needed is not None else 'more than a million'}, if one outcome in ten differs"
    )


def _gate_problems(suite: Suite, cases: Sequence[Case], document: Document) -> list[Problem]:
    """Find tag gates that their size cannot decide: such a gate would stop every candidate, good or bad."""
    gates: list[Gate] = [(line, *gate) for line in suite.scorers for gate in sorted((line.tag_margins or {}).items())]
    places = {line.key: position for position, line in enumerate(suite.scorers)}
    right = "a wider margin, more groups of cases, or a floor for the tag"
    return [
        document.problem(
            ("scorers", places[line.key], "tag_margins", tag or ""), _too_small(line, tag, margin, have, needed), right
        )
        for (line, tag, margin), have, needed in _undersized(cases, gates)
    ]


def _no_request(case: Case, suite: Suite) -> str:
    try:
        request_of(case, suite, "any")
    except ValidationError as error:
        return "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors(include_url=False))
    return ""


def _own_code(suite: Suite, folder: Path) -> tuple[dict[str, OwnCode], list[Problem]]:
    """Read the code of the suite's own scorers."""
    code: dict[str, OwnCode] = {}
    problems: list[Problem] = []
    for line in suite.scorers:
        options = KINDS[line.name].options.model_validate(line.options)
        if isinstance(options, OwnOptions):
            try:
                code[line.key] = read_own(folder, options)
            except SourceError as error:
                problems += error.problems
    return code, problems


def _scorer_problems(suite: Suite, document: Document) -> list[Problem]:
    problems: list[Problem] = []
    keys: dict[str, int] = {}
    for position, line in enumerate(suite.scorers):
        here = ("scorers", position)
        if line.name not in KINDS:
            message = f"there is no scorer {line.name!r}"
            problems.append(document.problem((*here, "name"), message, suggest(line.name, KINDS)))
            continue
        if keys.setdefault(line.key, position) != position:
            message = f"a second scorer reports as {line.key!r}"
            problems.append(document.problem(here, message, "give one another name with 'as'"))
        try:
            make_scorer(line, None)
        except ValidationError as error:
            problems += problems_of(error, document, KINDS[line.name].options, (*here, "options"))
        except ValueError as error:
            summary = str(error).split("\n", 1)[0]
            problems.append(document.problem((*here, "options", "schema"), f"this is no JSON Schema: {summary}"))
    return problems


def _choose(suite: Suite, dataset: Dataset, document: Document, shown: str) -> tuple[Sequence[Case], list[Problem]]:
    """Give the cases of the suite's splits; and what is wrong: what the suite names and the dataset does not have."""
    problems: list[Problem] = []
    wrong: list[Problem] = []
    splits: set[str] = set()
    known: set[str] = set()
    chosen: set[str] = set()
    positions = array("Q")
    must_pass = frozenset(suite.must_pass)
    for at, case in enumerate(dataset.cases):
        if case.split is not None:
            splits.add(case.split)
        if case.id in must_pass:
            known.add(case.id)
        if suite.splits is not None and case.split not in suite.splits:
            continue
        positions.append(at)
        if case.id in must_pass:
            chosen.add(case.id)
        if why := _no_request(case, suite):
            wrong.append(Problem(shown, 0, f"case {case.id!r} makes no request: {why}"))
    for position, split in enumerate(suite.splits or []):
        if split not in splits:
            message = f"no case of {suite.dataset} has the split {split!r}"
            problems.append(document.problem(("splits", position), message, suggest(split, splits)))
    if not positions and not problems:
        problems.append(document.problem(("splits",), "the splits choose no case"))
    for position, case_id in enumerate(suite.must_pass):
        if case_id not in known:
            message = f"no case of {suite.dataset} has the id {case_id!r}"
            like = suggest(case_id, [case.id for case in dataset.cases])
            problems.append(document.problem(("must_pass", position), message, like))
        elif case_id not in chosen:
            message = f"the case {case_id!r} must pass and is in none of the splits"
            problems.append(document.problem(("must_pass", position), message, "add its split, or leave it out"))
    return Picked(dataset.cases, positions), problems + wrong
