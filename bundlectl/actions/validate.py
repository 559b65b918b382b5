"""validate: check a source folder, and say what it builds to."""

from __future__ import annotations

from pathlib import Path

from bundlectl.bundling.build import build
from bundlectl.bundling.lint import lint
from bundlectl.bundling.source import Source, read_source
from bundlectl.model.types import Strict


class LintFinding(Strict):
    """Something that is allowed and that a gate may forbid."""

    rule: str
    place: str
    message: str


class Validated(Strict):
    """What validate returns: the source is right, and this is what it builds to."""

    app: str
    bundle: str
    version: str
    tasks: list[str]
    components: dict[str, str]
    environments: list[str]
    findings: list[LintFinding]


def validate(path: Path) -> Validated:
    """Check a source: form, names, prompts, policies, access cases, schemas, guards; then lint.

    Raises:
        SourceError: with every problem, each with file and line.
    """
    source = read_source(path)
    bundle = build(source)
    application = source.components.application
    return Validated(
        app=source.app,
        bundle=bundle.digest,
        version=application.version,
        tasks=sorted(application.tasks),
        components=bundle.component_digests(),
        environments=sorted(source.bindings),
        findings=findings_of(source),
    )


def findings_of(source: Source) -> list[LintFinding]:
    """Lint a source, each finding with its file and line."""
    return [LintFinding(rule=f.rule, place=source.where(f.place), message=f.message) for f in lint(source.components)]
