"""build: a source becomes a bundle in the registry, with a signed statement of where it came from."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from bundlectl import __version__
from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust
from bundlectl.actions.validate import LintFinding, findings_of
from bundlectl.bundling.build import build as build_bundle
from bundlectl.bundling.source import read_source
from bundlectl.model.attestation import PAYLOAD_TYPE, PROVENANCE
from bundlectl.model.types import Strict, format_time
from bundlectl.registry.collecting import needs_of, spare
from bundlectl.trust.envelope import make_statement, seal

BUILD_TYPE = "urn:bundlectl:build:v1"


class Built(Strict):
    """What build returns. ``provenance`` is the digest of the attestation, absent when nobody signed."""

    bundle: str
    reference: str
    app: str
    size: int
    new: bool
    provenance: str | None
    builder: str | None
    findings: list[LintFinding]


def build(ctx: Context, path: Path, *, sign: bool = True) -> Built:
    """Build a source and store the bundle. Building it again puts the same bytes and attests anew.

    Args:
        ctx: the context; its signer must be a builder of the app.
        path: the source folder.
        sign: False to store the bundle without provenance.

    Raises:
        SourceError: the source is not right.
        UsageError: the key is not a builder's.
        Conflict: gc is deleting the bundle at this moment.
        BackendUnavailable: the registry cannot be written; what is stored already does no harm.
    """
    source = read_source(path)
    bundle = build_bundle(source)
    keyring = open_trust(ctx)
    signer = ctx.signer("builder") if sign else None
    builder = keyring.signing_principal(signer, "builder", source.app, None) if signer else None
    if spare(ctx.registry.store, source.app, needs_of(bundle)):
        ctx.reporter.say("the bundle was marked for collection; the mark is lifted")
    new = not ctx.registry.has_bundle(source.app, bundle.digest)
    ctx.registry.put_bundle(source.app, bundle)
    provenance: str | None = None
    if signer is not None and builder is not None:
        predicate = provenance_of(ctx, path, source.app, builder)
        statement = make_statement(source.app, bundle.digest, PROVENANCE, predicate)
        envelope = seal(statement, PAYLOAD_TYPE, [signer])
        provenance = ctx.registry.attach(source.app, bundle.digest, "provenance", envelope)
    return Built(
        bundle=bundle.digest,
        reference=f"{source.app}@{bundle.digest}",
        app=source.app,
        size=sum(layer.size for layer in bundle.manifest.layers),
        new=new,
        provenance=provenance,
        builder=builder,
        findings=findings_of(source),
    )


def provenance_of(ctx: Context, path: Path, app: str, builder: str) -> dict[str, Any]:
    """Give a SLSA provenance v1 predicate: https://slsa.dev/spec/v1.0/provenance."""
    commit = _git(path)
    now = format_time(ctx.clock())
    definition: dict[str, Any] = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"app": app},
        "internalParameters": {"bundlectl": __version__, "python": platform.python_version()},
    }
    if commit is not None:
        definition["internalParameters"]["dirty"] = commit["dirty"]
        definition["resolvedDependencies"] = [{"uri": commit["uri"], "digest": {"gitCommit": commit["commit"]}}]
    return {
        "buildDefinition": definition,
        "runDetails": {
            "builder": {"id": f"urn:bundlectl:principal:{builder}"},
            "metadata": {"invocationId": ctx.new_id(), "startedOn": now, "finishedOn": now},
        },
    }


def _git(path: Path) -> dict[str, Any] | None:
    """Say which commit the source is of; None outside of a repository or before its first commit."""
    try:
        import git
    except ImportError:  # GitPython's way to say that there is no git executable
        return None
    try:
        repository = git.Repo(path, search_parent_directories=True)
        root = Path(repository.working_dir)
        inside = path.resolve().relative_to(root.resolve())
        return {
            "uri": f"git+file:{inside.as_posix()}",
            "commit": repository.head.commit.hexsha,
            "dirty": bool(repository.git.status("--porcelain", "--", str(inside))),
        }
    except (
        git.InvalidGitRepositoryError,
        git.NoSuchPathError,
        git.GitCommandError,
        git.GitCommandNotFound,
        ValueError,
    ):
        return None
