"""validate: check a source folder, and say what it builds to."""

from __future__ import annotations

from pathlib import Path

from bundlectl.bundling.build import build
from bundlectl.bundling.checks import find_suites
from bundlectl.bundling.lint import lint
from bundlectl.bundling.source import Source, read_source
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.errors import Problem, SourceError
from bundlectl.model.types import Strict


class LintFinding(Strict):
    """Something that is allowed and that a gate may forbid."""

    rule: str
    place: str
    message: str


class Validated(Strict):
    """What validate returns: the source is right, and this is what it builds to.

    ``suites``: those that it names and that lie beside it, checked with their datasets. ``warnings``: what is allowed
    and will probably disappoint.
    """

    app: str
    bundle: str
    version: str
    tasks: list[str]
    components: dict[str, str]
    environments: list[str]
    findings: list[LintFinding]
    suites: list[str] = []
    warnings: list[str] = []


def validate(path: Path) -> Validated:
    """Check a source: form, names, prompts, policies, access cases, schemas, guards; its suites; then lint.

    Raises:
        SourceError: with every problem, each with file and line.
    """
    source = read_source(path)
    bundle = build(source)
    application = source.components.application
    suites = _suites(path, source)
    return Validated(
        app=source.app,
        bundle=bundle.digest,
        version=application.version,
        tasks=sorted(application.tasks),
        components=bundle.component_digests(),
        environments=sorted(source.bindings),
        findings=findings_of(source),
        suites=[loaded.suite.name for loaded in suites],
        warnings=[f"suite {loaded.suite.name}: {warning}" for loaded in suites for warning in loaded.undecidable()],
    )


def _suites(path: Path, source: Source) -> list[LoadedSuite]:
    """Read the suites that a source names, where they lie beside it; a source alone is right without them."""
    folder = find_suites(path if path.is_dir() else path.parent)
    if folder is None:
        return []
    loaded: list[LoadedSuite] = []
    problems: list[Problem] = []
    for name in source.components.evaluation.suites:
        try:
            loaded.append(read_suite(folder / f"{name}.yaml"))
        except SourceError as error:
            problems += error.problems
    if problems:
        raise SourceError(problems)
    return loaded


def findings_of(source: Source) -> list[LintFinding]:
    """Lint a source, each finding with its file and line."""
    return [LintFinding(rule=f.rule, place=source.where(f.place), message=f.message) for f in lint(source.components)]
