"""export and import: a bundle with its attestations as an OCI layout, for skopeo and registries."""

from __future__ import annotations

from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.opening import resolve_bundle
from bundlectl.model.errors import UsageError
from bundlectl.model.types import Strict
from bundlectl.registry.oci import export as export_oci
from bundlectl.registry.oci import import_ as import_oci
from bundlectl.registry.oci import read_layout

SCHEME = "oci:"


class Transferred(Strict):
    """What was written or read."""

    reference: str
    app: str
    bundle: str
    layout: str
    attestations: int
    missing: list[str] = []


def oci_folder(target: str) -> Path:
    """Read ``oci:DIR``.

    Raises:
        UsageError: it has another form.
    """
    if not target.startswith(SCHEME) or len(target) == len(SCHEME):
        raise UsageError(f"{target!r} is not an OCI layout.", fix="Write oci:DIR, e.g. oci:./support")
    return Path(target.removeprefix(SCHEME))


def export(ctx: Context, reference: str, target: str) -> Transferred:
    """Write a stored bundle and everything attested about it as an OCI layout.

    Raises:
        UsageError: the folder is there already, or ``target`` is not ``oci:DIR``.
        NotFound: nothing is stored under the reference.
    """
    folder = oci_folder(target)
    app, bundle = resolve_bundle(ctx, reference)
    done = export_oci(ctx.registry, app, bundle, folder)
    return Transferred(
        reference=f"{app}@{bundle}", app=app, bundle=bundle, layout=str(folder), attestations=done.attestations
    )


def import_(ctx: Context, source: str, *, app: str | None = None) -> Transferred:
    """Check every byte of an OCI layout and store its bundle and attestations.

    What the layout should hold and does not (attestations left behind by a copy without ``--all``) is told.

    Raises:
        UsageError: the bundle is not ``app``'s.
        VerificationFailed: a byte is not what its digest says.
    """
    folder = oci_folder(source)
    owner = read_layout(folder)[0].components.application.app
    if app is not None and app != owner:
        raise UsageError(
            f"{source} holds a bundle of {owner}, not of {app}; nothing was stored.",
            fix=f"Leave --app out, or name {owner}.",
        )
    done = import_oci(folder, ctx.registry, owner)
    for line in done.missing:
        ctx.reporter.warn(line)
    return Transferred(
        reference=f"{owner}@{done.bundle}",
        app=owner,
        bundle=done.bundle,
        layout=str(folder),
        attestations=done.attestations,
        missing=list(done.missing),
    )
