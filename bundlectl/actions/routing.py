"""Opening a router over one bundle in this process: what ask, eval, dev and serve share."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust
from bundlectl.inference.embeddings import open_embedder
from bundlectl.inference.presidio import PresidioProcesses
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.contract import ReleaseRef
from bundlectl.model.errors import MissingExtra, UsageError
from bundlectl.model.receipt import Receipt
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.router.assemble import Compiled, World, assemble
from bundlectl.router.indexes import Indexes
from bundlectl.router.router import Router
from bundlectl.trust.keyring import VerifiedKeyring

RECEIPT_KEY_FILE = "receipt.key"
RECEIPT_KEY_BYTES = 32


class Discarded:
    """A place for receipts that nobody keeps: those of evaluations and of `dev`."""

    def write(self, receipt: Receipt) -> None:
        """Drop it; its caller has it in its hands."""


def without_addresses(bundle: Bundle) -> Bindings:
    """Give the bindings of nowhere in particular: models that need an address are skipped, so routes fall back."""
    needy = sorted(name for name, model in bundle.components.models.items() if model.provider != "extractive")
    return Bindings(disabled_models=needy)


def unreleased(app: str, bundle: Bundle, bindings: Bindings) -> ReleaseRef:
    """Name a bundle that runs without a release: serial 0 of no environment."""
    return ReleaseRef(
        app=app,
        environment="-",
        epoch=0,
        serial=0,
        bundle=bundle.digest,
        bindings=digest(canonical(bindings.form())),
    )


def receipts_folder(ctx: Context, app: str) -> Path:
    """Give where this machine keeps an app's receipts: beside a folder registry, never in it.

    A server must be able to write them while the registry is away, without making a folder in its place.
    """
    return ctx.workspace / "receipts" / app


def input_key(ctx: Context) -> bytes:
    """Give the key that input digests are made with; made once for the workspace, so that receipts compare.

    Raises:
        UsageError: it is there and cannot be read or is no key, or cannot be written.
    """
    file = ctx.workspace / RECEIPT_KEY_FILE
    try:
        if not file.exists():
            _make_key(file)
    except OSError as error:
        raise UsageError(f"The receipt key {file} cannot be made.", why=str(error)) from error
    try:
        key = file.read_bytes()
    except OSError as error:
        raise UsageError(f"The receipt key {file} cannot be read.", why=str(error)) from error
    if len(key) != RECEIPT_KEY_BYTES:
        raise UsageError(
            f"The receipt key {file} has {len(key)} bytes, and not {RECEIPT_KEY_BYTES}.",
            why="With a shorter key, short questions could be guessed from their digests in receipts.",
            fix="Restore it; or remove it: a new one is made, and older receipts compare no more by their inputs.",
        )
    return key


def _make_key(file: Path) -> None:
    """Make the key appear whole: a process that looks at the same time finds all of it or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".receipt-key-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(secrets.token_bytes(RECEIPT_KEY_BYTES))
            out.flush()
            os.fsync(out.fileno())
        os.link(name, file)
    except FileExistsError:
        pass  # another process made it first; its key is the one
    finally:
        Path(name).unlink(missing_ok=True)


@asynccontextmanager
async def world(
    ctx: Context,
    *,
    cache: Path | None = None,
    keyring: Callable[[], VerifiedKeyring] | None = None,
) -> AsyncIterator[World]:
    """Open what assembling needs from outside of bundles: indexes, embedders, one HTTP client.

    Args:
        ctx: the context.
        cache: a folder that index snapshots are served from, so that serving outlives the registry.
        keyring: gives root's newest word; by default read from the registry each time it is asked for.

    Raises:
        MissingExtra: the extra ``router`` is not installed.
    """
    try:
        from bundlectl.inference.client import HttpClient
    except ModuleNotFoundError as error:
        raise MissingExtra("Serving requests", "router") from error
    indexes = Indexes(
        ctx.registry,
        ctx.registry_folder,
        keyring or (lambda: open_trust(ctx)),
        cache=cache,
        downloads=ctx.workspace / "cache",
        on_warning=ctx.reporter.warn,
    )
    http = HttpClient()
    presidio = PresidioProcesses()
    try:
        yield World(
            open_index=indexes.open,
            make_embedder=open_embedder,
            http=http,
            environ=ctx.environ,
            input_key=input_key(ctx),
            presidio=presidio,
        )
    finally:
        await presidio.close()
        await http.close()


def verified_compiler(opened: World) -> Callable[[VerifiedBundle], Awaitable[Compiled]]:
    """Give the function by which a resolver prepares a verified bundle."""

    async def prepare(verified: VerifiedBundle) -> Compiled:
        return await assemble(verified.bundle, verified.bindings, verified.ref, opened)

    return prepare


@asynccontextmanager
async def router_of(
    ctx: Context, app: str, bundle: Bundle, bindings: Bindings, *, ref: ReleaseRef | None = None
) -> AsyncIterator[tuple[Router, Compiled]]:
    """Open a router over one bundle; its receipts are its caller's.

    Raises:
        BundlectlError: the bundle cannot be assembled with these bindings.
    """
    async with world(ctx) as opened:
        compiled = await assemble(bundle, bindings, ref or unreleased(app, bundle, bindings), opened)
        yield Router(lambda: compiled, Discarded(), ctx.clock, ctx.new_id), compiled
