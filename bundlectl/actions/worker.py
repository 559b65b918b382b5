"""worker: work on the batches of some environments, in a process of its own, until told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack

from bundlectl.actions.batching import BatchPlace, make_workers, open_book, settings_of
from bundlectl.actions.context import Context
from bundlectl.actions.serve import follow, followed
from bundlectl.model.reference import EnvironmentReference


def worker(ctx: Context, environments: Sequence[str], place: BatchPlace, *, poll: float, until_empty: bool) -> None:
    """Answer rows of batches until SIGINT or SIGTERM, then let what is under way end, or give it back.

    Args:
        ctx: the context.
        environments: ``APP:ENV``, one or more; each row is answered by what is live there when the row begins.
        place: where batches are kept, and how many rows are worked on at once.
        poll: seconds between looks at the registry.
        until_empty: leave once every row has a result.

    Raises:
        UsageError: the place is none.
        BackendUnavailable: the registry is away and nothing was kept; or the place cannot be used.
        VerificationFailed: what is live does not verify and nothing was kept.
    """
    asyncio.run(_work(ctx, followed(environments), place, poll, until_empty))


async def _work(
    ctx: Context, refs: Sequence[EnvironmentReference], place: BatchPlace, poll: float, until_empty: bool
) -> None:
    async with AsyncExitStack() as stack:
        book = open_book(ctx, place)
        stack.callback(book.close)
        served = await follow(ctx, refs, poll, stack)
        workers = make_workers(ctx, book, served, settings_of(ctx, place))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, workers.end)
            stack.callback(loop.remove_signal_handler, number)
        for one in served:
            ref = one.current().ref
            ctx.reporter.say(f"{ref.app}:{ref.environment} release {ref.serial} {ref.bundle}")
        ctx.reporter.say(f"working on batches, {place.concurrency} rows at once")
        await workers.run(until_empty=until_empty)
