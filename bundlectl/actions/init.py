"""init: a new app that validates, builds and evaluates untouched, with keys, a registry and an index."""

from __future__ import annotations

from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.index import index_build
from bundlectl.actions.keyring import Initialised, keyring_init
from bundlectl.bundling.scaffold import write_scaffold
from bundlectl.model.errors import MissingExtra
from bundlectl.model.types import Strict


class Scaffolded(Strict):
    """What init made. ``snapshot`` is absent where the extra ``rag`` is not installed."""

    folder: str
    app: str
    files: list[str]
    registry: Initialised
    snapshot: str | None
    next: list[str]


def init(ctx: Context, folder: Path, *, app: str, owner: str = "developer") -> Scaffolded:
    """Write the scaffold, make keys, keyring, policy and registry beside it, and index its documents.

    Args:
        ctx: the context; its registry is ``folder/.bundlectl/registry``.
        folder: a folder that does not exist yet or is empty of what the scaffold writes.
        app: the app's name.
        owner: who is behind the development keys.

    Raises:
        UsageError: something of it is already there; nothing was replaced.
    """
    files = write_scaffold(folder, app)
    registry = keyring_init(ctx, app, owner=owner)
    snapshot: str | None = None
    for source in sorted((folder / "indexes").glob("*.yaml")):
        try:
            snapshot = index_build(ctx, source, app=app, pin=folder).snapshot
        except MissingExtra as error:
            ctx.reporter.warn(f"the documents are not indexed: {error.what} {error.fix}")
    return Scaffolded(
        folder=str(folder),
        app=app,
        files=[str(file) for file in files],
        registry=registry,
        snapshot=snapshot,
        next=[
            f"cd {folder}",
            "bundlectl validate .",
            "bundlectl build .",
            "bundlectl eval .",
            'bundlectl promote . --to staging --reason "first release"',
        ],
    )
