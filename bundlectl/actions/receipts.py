"""receipts: find one, list the newest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.model.receipt import Receipt
from bundlectl.model.types import Strict
from bundlectl.receipts.reader import find, recent


class Receipts(Strict):
    """Receipts, newest first."""

    receipts: list[Receipt]


def find_receipt(ctx: Context, receipt: str) -> Receipt:
    """Give a receipt by its id or the first 6 characters of it or more, from any app's.

    Raises:
        NotFound: there is none.
        UsageError: several begin so.
    """
    found: list[Receipt] = []
    for folder in _folders(ctx):
        try:
            found.append(find(folder, receipt, on_damage=_damaged(ctx)))
        except NotFound:
            continue
    whole = [one for one in found if one.id == receipt]
    if len(whole or found) > 1:
        raise UsageError(
            f"{len(found)} apps have a receipt that begins with {receipt}.",
            why=", ".join(f"{one.id} of {one.release.app}" for one in found),
            fix="Give more of the id.",
        )
    if not found:
        raise NotFound(
            f"There is no receipt {receipt!r}.",
            why=f"Receipts are kept beside {ctx.registry_url}.",
            fix="List the newest: bundlectl receipts list",
        )
    return (whole or found)[0]


def list_receipts(
    ctx: Context, *, count: int = 20, tenant: str | None = None, environment: str | None = None
) -> Receipts:
    """List the newest receipts of every app."""
    found: list[Receipt] = []
    for folder in _folders(ctx):
        found += recent(folder, count, tenant=tenant, environment=environment, on_damage=_damaged(ctx))
    return Receipts(receipts=sorted(found, key=lambda receipt: receipt.time, reverse=True)[:count])


def _folders(ctx: Context) -> list[Path]:
    root = ctx.workspace / "receipts"
    return sorted(folder for folder in root.iterdir() if folder.is_dir()) if root.is_dir() else []


def _damaged(ctx: Context) -> Callable[[Path, int], None]:
    return lambda file, line: ctx.reporter.warn(f"{file}:{line} is no receipt and is passed over")
