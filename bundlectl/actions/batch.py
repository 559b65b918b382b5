"""batch: hand in many requests at once, see how far they are, collect the results, cancel."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from bundlectl.actions.ask import served_by
from bundlectl.actions.batching import BatchPlace, open_book
from bundlectl.actions.context import Context
from bundlectl.actions.routing import router_of
from bundlectl.model.batch import Batch, BatchOwner
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.model.reference import EnvironmentReference, parse_environment
from bundlectl.model.types import Strict
from bundlectl.router.batch.book import Book, NotFinished
from bundlectl.router.batch.intake import Submission, take_in
from bundlectl.router.identity import LOCAL

PIECE: Final = 64 * 1024
PAGE: Final = 200
LOOK: Final = 1.0


class Batches(Strict):
    """The batches that were accepted last, the newest first."""

    batches: list[Batch]


def batch_submit(ctx: Context, environment: str, file: str, place: BatchPlace, *, key: str | None = None) -> Batch:
    """Hand in a file of requests, for workers to answer; all of it is stored when this returns.

    Args:
        ctx: the context.
        environment: ``APP:ENV``; the release that is live there judges the rows, the one that is live when a row
            begins answers it.
        file: JSON Lines, or ``-`` for stdin.
        place: where batches are kept.
        key: handing the same bytes in again under the same key gives the same batch.

    Raises:
        NotFound: there is no such file, or nothing is live there.
        BadRows: lines cannot be taken; nothing was accepted.
        KeyTaken: the key came before with other bytes.
        BackendUnavailable: it cannot be stored.
    """
    ref = parse_environment(environment)
    if ref.serial is not None:
        raise UsageError(f"{ref} names one release.", fix="Name the environment that answers: APP:ENV")
    with _opened(file) as source, _book(ctx, place) as book:
        return asyncio.run(_submit(ctx, ref, source, book, key))


async def _submit(ctx: Context, ref: EnvironmentReference, source: BinaryIO, book: Book, key: str | None) -> Batch:
    live = served_by(ctx, str(ref))
    # Rows are only judged here: no model is asked, so nobody who hands in needs the models' credentials.
    unasked = live.bindings.model_copy(update={"disabled_models": sorted(live.bundle.components.models)})
    async with router_of(ctx, live.app, live.bundle, unasked, ref=live.ref) as (_, compiled):
        owner = BatchOwner(name=LOCAL.name, tenants=["*"], roles=["*"], local=True)
        submission = Submission(compiled, owner, LOCAL, key)
        header, new = await take_in(book, submission, _pieces(source), ctx.clock())
    if not new:
        ctx.reporter.say(f"{header.id} was handed in before, with the same key and the same bytes")
    return book.status(header.id)


def batch_status(ctx: Context, batch: str, place: BatchPlace, *, watch: bool = False) -> Batch:
    """Say how far a batch is; with ``watch``, once it has ended, and show its progress until then.

    Raises:
        BatchMissing: there is none.
    """
    with _book(ctx, place) as book:
        found = book.status(batch)
        if not watch:
            return found
        with ctx.reporter.progress(found.id, found.rows) as bar:
            shown = 0
            while True:
                bar.advance(found.done - shown, _note(found))
                shown = found.done
                if found.ended:
                    return found
                time.sleep(LOOK)
                found = book.status(batch)


def batch_list(ctx: Context, place: BatchPlace, *, limit: int) -> Batches:
    """Give the batches that were accepted last."""
    with _book(ctx, place) as book:
        return Batches(batches=book.recent(limit))


def batch_cancel(ctx: Context, batch: str, place: BatchPlace) -> Batch:
    """Let no row begin any more; what is under way may end.

    Raises:
        BatchMissing: there is none.
    """
    with _book(ctx, place) as book:
        book.cancel(batch)
        return book.status(batch)


def batch_results(ctx: Context, batch: str, place: BatchPlace, write: Callable[[bytes], None], *, partly: bool) -> None:
    """Write the results, a line of JSON each, in the order of the input.

    Raises:
        BatchMissing: there is none.
        NotFinished: it has not ended, and not ``partly``: those that are there.
    """
    with _book(ctx, place) as book:
        found = book.status(batch)
        if not partly and not found.ended:
            raise NotFinished(found)
        after = 0
        while page := book.page(batch, after, PAGE):
            write(b"".join(line + b"\n" for _, line in page))
            after = page[-1][0]


def _note(batch: Batch) -> str:
    parts = []
    if batch.counts.failed:
        parts.append(f"{batch.counts.failed} failed")
    if batch.rate:
        parts.append(f"{batch.rate:g}/s")
    if batch.paused_until:
        parts.append("waiting: a limit, or a model is throttled")
    return ", ".join(parts)


@contextmanager
def _book(ctx: Context, place: BatchPlace) -> Iterator[Book]:
    book = open_book(ctx, place)
    try:
        yield book
    finally:
        book.close()


@contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115  # only opening it is foreseen to fail
    except OSError as error:
        raise NotFound(f"{file} cannot be read.", why=error.strerror or "") from error
    with source:
        yield source


async def _pieces(source: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(source.read, PIECE):
        yield piece
