"""Commands on the keyring: make the first one, show, export; and make keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundlectl.cli.verb import FirstUseOption, verb

if TYPE_CHECKING:
    from rich.console import Console

    from bundlectl.actions.applying import KeyringExported
    from bundlectl.actions.keyring import GeneratedKey, Initialised, ShownKeyring
    from bundlectl.model.keyring import Keyring


def register(app: typer.Typer) -> None:
    """Add the family's commands."""
    from bundlectl.cli.session import Session

    keyring = typer.Typer(help="Who may do what: root's signed document.", no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(keyring, name="keyring")

    @verb(keyring, "init", examples="bundlectl keyring init --app support --suite support")
    def keyring_init(
        session: Session,
        app: Annotated[str, typer.Option("--app", metavar="NAME", help="The first app.")],
        owner: Annotated[str, typer.Option(metavar="WHO", help="Who is behind the development keys.")] = "developer",
        scheme: Annotated[str, typer.Option(metavar="S", help="ed25519 or ecdsa-p256-sha256.")] = "ed25519",
        suite: Annotated[
            list[str] | None,
            typer.Option(
                "--suite", metavar="NAME", help="Suites that staging and prod ask for. [default: the app's name]"
            ),
        ] = None,
    ) -> None:
        """Make a registry, in a folder or S3: development keys (one for each role), keyring 1, policy 1, the pin."""
        from bundlectl.actions.keyring import keyring_init as act

        result = act(session.context(), app, owner=owner, scheme=scheme, suites=suite)
        session.show(result, lambda out: initialised(out, result))

    @verb(keyring, "show", examples="bundlectl keyring show\nbundlectl keyring show -o json")
    def keyring_show(session: Session, trust_first_use: FirstUseOption = False) -> None:
        """Show who may do what, by the newest keyring that the pin leads to."""
        from bundlectl.actions.keyring import keyring_show as act

        result = act(session.context(trust_first_use=trust_first_use))
        session.show(result, lambda out: _keyring(out, result))

    @verb(
        keyring,
        "generate",
        examples="bundlectl keyring generate keys/approver.pem\n"
        "BUNDLECTL_PASSPHRASE_FILE=secret bundlectl keyring generate keys/root.pem --encrypt",
    )
    def keyring_generate(
        session: Session,
        path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to; must not exist.")],
        scheme: Annotated[str, typer.Option(metavar="S", help="ed25519 or ecdsa-p256-sha256.")] = "ed25519",
        encrypt: Annotated[bool, typer.Option("--encrypt", help="Encrypt it with a passphrase.")] = False,
    ) -> None:
        """Make a private key in a file that only you can read, and print its public key."""
        from bundlectl.actions.keyring import generate as act

        result = act(session.context(), path, scheme=scheme, encrypt=encrypt)
        session.show(result, lambda out: _generated(out, result))

    @verb(
        keyring,
        "export",
        examples="bundlectl keyring export first.json --version 1",
    )
    def keyring_export(
        session: Session,
        file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not exist.")],
        version: Annotated[
            int | None, typer.Option("--version", metavar="N", min=1, help="[default: the newest]", show_default=False)
        ] = None,
    ) -> None:
        """Write the signed bytes of one keyring version. Its digest can be a machine's pin."""
        from bundlectl.actions.applying import export_keyring as act

        result = act(session.context(), file, version=version)
        session.show(result, lambda out: _exported(out, result))

    from bundlectl.cli import succession

    succession.register(keyring)


def initialised(out: Console, result: Initialised) -> None:
    """Print what a new registry consists of."""
    from os.path import relpath

    out.print(f"registry  {result.registry}", markup=False)
    out.print(f"pin       {result.registry_id}", markup=False)
    out.print(f"  kept in {relpath(result.pin_file)}", markup=False)
    folders = sorted({relpath(Path(key).parent) for key in result.keys})
    roles = ", ".join(Path(key).stem for key in result.keys)
    out.print(f"keys      {len(result.keys)} in {', '.join(folders)}: {roles}", markup=False)


def _generated(out: Console, result: GeneratedKey) -> None:
    out.print(f"{result.path} ({result.scheme}, {'encrypted' if result.encrypted else 'not encrypted'})", markup=False)
    out.print(result.key_id, markup=False)
    out.print(result.public.strip(), markup=False)


def _keyring(out: Console, result: ShownKeyring) -> None:
    from rich.table import Table

    out.print(f"registry {result.registry}", markup=False)
    out.print(f"keyring  {result.version}, {result.digest}, expires {result.expires or 'never'}", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("principal", "owner", "role", "where", "state", "key"):
        table.add_column(column, no_wrap=True)
    for principal in result.principals:
        table.add_row(
            principal.principal,
            principal.owner,
            ", ".join(principal.roles),
            _where(result.document, principal.principal),
            principal.state,
            principal.scheme,
        )
    out.print(table)
    _thresholds(out, result.document)
    for principal in result.principals:
        if principal.subject is not None:
            out.print(f"{principal.principal} is {principal.subject} by {principal.issuer}", markup=False)
    for one in result.sigstore:
        told = f"sigstore {one.name}: trusted root {one.trusted_root}, vouches for {', '.join(one.issuers)}"
        out.print(told, markup=False)
    for blocked in result.document.blocked:
        out.print(f"blocked {blocked.digest}: {blocked.reason}", markup=False)


def _where(document: Keyring, principal: str) -> str:
    """Say what a principal's role is limited to, as ``APP:ENV``; nothing where it is not."""
    limits = [
        f"{','.join(grant.apps)}:{','.join(grant.environments)}"
        for grant in document.grants
        if principal in grant.principals and (grant.apps, grant.environments) != (["*"], ["*"])
    ]
    owned = [name for name, one in sorted(document.apps.items()) if principal in one.owners.principals]
    return "  ".join(limits + owned)


def _thresholds(out: Console, document: Keyring) -> None:
    root = document.root
    out.print(f"root: {root.threshold} of {len(root.principals)} sign a keyring", markup=False)
    for name, one in sorted(document.apps.items()):
        of = f"{one.owners.threshold} of {len(one.owners.principals)}"
        out.print(f"app {name}: {of} owners sign its policy, version {one.policy} or later", markup=False)
        for environment, epoch in sorted(one.epochs.items()):
            out.print(f"epoch of {name}:{environment}: {epoch}", markup=False)


def _exported(out: Console, result: KeyringExported) -> None:
    out.print(f"{result.file}: keyring {result.version}", markup=False)
    out.print(result.digest, markup=False)
