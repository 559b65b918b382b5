"""Commands that move bundles and documents: export, import, copy, index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import SignerOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.copying import Copied
    from bundlectl.actions.index import IndexBuilt, IndexDiff, IndexShown
    from bundlectl.actions.transfer import Transferred

App = Annotated[str, typer.Option("--app", metavar="NAME", help="Whose index.")]


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    @verb(app, "export", examples="bundlectl export support:prod oci:./support")
    def export(
        session: Session,
        reference: Annotated[str, typer.Argument(metavar="REF", help="support@sha256:… or support:prod.")],
        target: Annotated[str, typer.Argument(metavar="oci:DIR", help="The layout to write; must not exist.")],
    ) -> None:
        """Write a bundle and everything attested about it as an OCI layout.

        `skopeo copy --all oci:DIR docker://…` keeps every digest. Without --all the attestations stay behind, and
        `bundlectl verify oci:DIR` says so.
        """
        from bundlectl.actions.transfer import export as act

        result = act(session.context(), reference, target)
        session.show(result, lambda out: _transferred(out, result, "exported to"))

    @verb(app, "import", examples="bundlectl import oci:./support")
    def import_(
        session: Session,
        source: Annotated[str, typer.Argument(metavar="oci:DIR", help="The layout to read.")],
        app: Annotated[str | None, typer.Option("--app", metavar="NAME", help="Refuse another app's bundle.")] = None,
    ) -> None:
        """Check every byte of an OCI layout and store its bundle and attestations."""
        from bundlectl.actions.transfer import import_ as act

        result = act(session.context(), source, app=app)
        session.show(result, lambda out: _transferred(out, result, "imported from"))

    @verb(
        app,
        "copy",
        examples="bundlectl copy support:staging ssm:/bundlectl/tooling ssm:/bundlectl/production\n"
        "bundlectl copy support@sha256:3f2a77b0 s3://tooling/registry ./registry --from-pin sha256:77b0…",
    )
    def copy(
        session: Session,
        reference: Annotated[str, typer.Argument(metavar="REF", help="The bundle, as FROM knows it.")],
        from_: Annotated[str, typer.Argument(metavar="FROM", help="The registry to read.")],
        to: Annotated[str, typer.Argument(metavar="TO", help="The registry to write.")],
        from_pin: Annotated[
            str | None,
            typer.Option("--from-pin", metavar="DIGEST", help="FROM's pin. [default: beside its folder, or by ssm:]"),
        ] = None,
    ) -> None:
        """Carry a bundle into another registry: its bytes, snapshots and attestations, and its releases in FROM.

        Nothing is signed again. Attestations count in TO as far as TO's keyring knows the keys. The releases count
        where TO's policy accepts a soak in FROM. Again: bring what is new since.
        """
        from bundlectl.actions.copying import contexts
        from bundlectl.actions.copying import copy as act

        result = act(*contexts(session.context(), from_, to, from_pin), reference)
        session.show(result, lambda out: _copied(out, result))

    index = typer.Typer(help="The searchable documents.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(index, name="index")

    @verb(
        index,
        "build",
        examples="bundlectl index build bundles/support/indexes/support_docs.yaml --pin bundles/support",
    )
    def index_build(
        session: Session,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="The index source file.")],
        pin: Annotated[
            Path | None, typer.Option("--pin", metavar="DIR", help="Set the snapshot in this folder's bundle.yaml.")
        ] = None,
        app: Annotated[
            str | None, typer.Option("--app", metavar="NAME", help="Whose index. [default: that of ../bundle.yaml]")
        ] = None,
        signer: SignerOption = None,
    ) -> None:
        """Read documents, cut, embed and store them as a snapshot, and point at it.

        The same documents and settings give the same snapshot digest.
        """
        from bundlectl.actions.index import index_build as act

        result = act(session.context(signer=signer), file, app=app, pin=pin)
        session.show(result, lambda out: built(out, result))

    @verb(index, "show", examples="bundlectl index show support_docs --app support")
    def index_show(
        session: Session, index: Annotated[str, typer.Argument(metavar="INDEX", help="Its name.")], app: App
    ) -> None:
        """Show the newest snapshot of an index: documents by scope and tenant, and when its source was last checked."""
        from bundlectl.actions.index import index_show as act

        result = act(session.context(), app, index)
        session.show(result, lambda out: _shown(out, result))

    @verb(index, "diff", examples="bundlectl index diff sha256:3f2a… sha256:77b0… --app support")
    def index_diff(
        session: Session,
        a: Annotated[str, typer.Argument(metavar="A", help="The earlier snapshot's digest.")],
        b: Annotated[str, typer.Argument(metavar="B", help="The later snapshot's digest.")],
        app: App,
    ) -> None:
        """Compare two snapshots by section: added, removed, changed, renamed."""
        from bundlectl.actions.index import index_diff as act

        result = act(session.context(), app, a, b)
        session.show(result, lambda out: _differences(out, result))


def _transferred(out: Console, result: Transferred, verb_: str) -> None:
    out.print(result.reference, markup=False)
    out.print(f"{verb_} {result.layout}, with {result.attestations} attestations", markup=False)


def _copied(out: Console, result: Copied) -> None:
    out.print(result.reference, markup=False)
    out.print(f"copied from {result.source} to {result.target}", markup=False)
    out.print(f"  {result.attestations} attestations, of which {result.counts} count there", markup=False)
    for release in result.releases:
        live = "live" if release.live else "former"
        out.print(
            f"  {live} release {release.serial} of {release.environment}: since {release.since}, as of {release.time}",
            markup=False,
        )
    named = f"{{id: {result.registry}, keyring: {result.keyring}}}"
    out.print(f"  a policy accepts them as a soak with registry: {named}", markup=False)


def built(out: Console, result: IndexBuilt) -> None:
    """Print the snapshot that was built."""
    out.print(result.snapshot, markup=False)
    state = "a new snapshot" if result.changed else "the same snapshot as before"
    out.print(
        f"{result.index}: {result.documents} documents, {result.sections} sections, {result.chunks} chunks; {state}",
        markup=False,
    )
    if result.pinned:
        out.print(f"pinned in {result.pinned}", markup=False)


def _shown(out: Console, result: IndexShown) -> None:
    out.print(f"{result.index} of {result.app}: {result.snapshot}", markup=False)
    out.print(f"checked {result.checked} by {result.actor}; {result.embedding}", markup=False)
    out.print(f"{result.documents} documents, {result.chunks} chunks", markup=False)
    for title, counts in (("scope", result.scopes), ("tenant", result.tenants)):
        for name, count in sorted(counts.items()):
            out.print(f"  {title} {name}: {count}", markup=False)


def _differences(out: Console, result: IndexDiff) -> None:
    from rich.text import Text

    from bundlectl.cli.differences import MARK

    for change in result.changes:
        sign, style = MARK[change.kind]
        was = f" (was {' > '.join(change.was)})" if change.was else ""
        out.print(Text(f"{sign} ", style=style) + Text(f"{change.document} § {' > '.join(change.section)}{was}"))
    if not result.changes:
        out.print("the same sections")
