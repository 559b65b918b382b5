"""Where batches are kept and worked on, as serve, worker and batch need it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from bundlectl.actions.context import Context
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.router.batch.book import Book, Settings

if TYPE_CHECKING:
    from bundlectl.router.batch.http import BatchApi
    from bundlectl.router.batch.row import Answering

QUEUE_VARIABLE = "BUNDLECTL_BATCH_QUEUE"
STORE_VARIABLE = "BUNDLECTL_BATCH_STORE"
LEASE_VARIABLE = "BUNDLECTL_BATCH_LEASE"
SHORTEST_LEASE = 2.0
JOURNAL = "batches/journal.sqlite3"


@dataclass(frozen=True)
class BatchPlace:
    """Where batches are kept: with neither, in the journal beside the workspace.

    ``queue`` is ``sqs:URL`` and ``store`` the folder or bucket that holds their rows and results; both or neither.
    ``concurrency``: how many rows are worked on here at once; 0 leaves them to workers elsewhere.
    """

    queue: str | None = None
    store: str | None = None
    concurrency: int = 4


def settings_of(ctx: Context, place: BatchPlace) -> Settings:
    """Say how batches are worked on here.

    Raises:
        UsageError: ``BUNDLECTL_BATCH_LEASE`` is no number of seconds.
    """
    settings = Settings(concurrency=place.concurrency)
    named = ctx.environ.get(LEASE_VARIABLE, "").strip()
    if not named:
        return settings
    try:
        lease = float(named)
    except ValueError:
        lease = 0.0
    if not SHORTEST_LEASE <= lease <= 3600:
        raise UsageError(
            f"{LEASE_VARIABLE} is {named!r}, which is no lease.",
            fix=f"Give seconds, {SHORTEST_LEASE:g} to 3600: how long after its worker was lost a row begins again.",
        )
    return replace(settings, lease=lease)


class Workers(Protocol):
    """What works on batches."""

    def tell(self) -> None:
        """Say that there may be something new to do."""
        ...

    def end(self) -> None:
        """Begin nothing more."""
        ...

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until told to end."""
        ...


@dataclass(frozen=True)
class Working:
    """The batch endpoints of a server, if it has any, and how to let its workers end."""

    api: BatchApi | None
    end: Callable[[], None]


def named_place(ctx: Context, place: BatchPlace) -> BatchPlace:
    """Fill in what the environment variables say.

    Raises:
        UsageError: a queue without a store, or the other way round; or the queue is none.
    """
    queue = place.queue or ctx.environ.get(QUEUE_VARIABLE, "").strip() or None
    store = place.store or ctx.environ.get(STORE_VARIABLE, "").strip() or None
    if (queue is None) != (store is None):
        raise UsageError(
            "Batches over a queue need the queue and a store: messages name rows, and the store holds them.",
            fix="Give both: --batch-queue sqs:https://sqs.… --batch-store s3://bucket/prefix",
        )
    if queue is not None and not queue.startswith("sqs:"):
        raise UsageError(f"{queue!r} is no queue.", fix="Write it like sqs:https://sqs.eu-central-1.amazonaws.com/1/q")
    return replace(place, queue=queue, store=store)


def open_book(ctx: Context, place: BatchPlace) -> Book:
    """Open where batches are kept.

    Raises:
        UsageError: the place is none.
        BackendUnavailable: it cannot be opened.
    """
    place = named_place(ctx, place)
    if place.queue is not None and place.store is not None:
        from bundlectl.router.batch.queue import open_queue
        from bundlectl.router.batch.store import StoreBook
        from bundlectl.storage.store import open_store

        return StoreBook(open_store(place.store), open_queue(place.queue), ctx.clock)
    from bundlectl.router.batch.journal import Journal

    return Journal(ctx.workspace / JOURNAL, ctx.clock)


def make_workers(
    ctx: Context,
    book: Book,
    sources: Sequence[Answering],
    settings: Settings,
    admits: Callable[[], bool] = lambda: True,
) -> Workers:
    """Make what works on a book's batches; ``admits`` says whether rows may begin now."""
    from bundlectl.router.batch.journal import Journal

    if isinstance(book, Journal):
        from bundlectl.router.batch.workers import LocalWorkers

        return LocalWorkers(book, sources, settings, clock=ctx.clock, on_problem=ctx.reporter.warn, admits=admits)
    from bundlectl.router.batch.sqs import QueueWorkers
    from bundlectl.router.batch.store import StoreBook

    if not isinstance(book, StoreBook):
        raise TypeError(f"{type(book).__name__} is no book that workers know")
    return QueueWorkers(book, sources, settings, clock=ctx.clock, on_problem=ctx.reporter.warn, admits=admits)


async def open_batches(
    ctx: Context,
    place: BatchPlace,
    sources: Sequence[Answering],
    stack: AsyncExitStack,
    *,
    admits: Callable[[], bool] = lambda: True,
) -> Working:
    """Open a server's batch endpoints, and start working on batches unless the place says that others do.

    ``admits`` says whether rows may begin now. Leaving the stack lets what is under way end, or gives it back.
    """
    from bundlectl.router.batch.http import BatchApi

    try:
        book = open_book(ctx, place)
    except BackendUnavailable as error:
        # A server on a disk that cannot be written still answers requests.
        ctx.reporter.warn(f"batches are not taken here: {error.what} {error.why}")
        return Working(None, lambda: None)
    stack.callback(book.close)
    if not place.concurrency:
        return Working(BatchApi(book, clock=ctx.clock), lambda: None)
    workers = make_workers(ctx, book, sources, settings_of(ctx, place), admits)
    task = asyncio.create_task(workers.run())

    def over(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            ctx.reporter.warn(f"batches are not worked on here any more: {type(error).__name__}: {error}")

    async def ended() -> None:
        workers.end()
        await asyncio.wait({task})

    task.add_done_callback(over)
    stack.push_async_callback(ended)
    return Working(BatchApi(book, clock=ctx.clock, on_accepted=workers.tell), workers.end)
