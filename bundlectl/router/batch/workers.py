"""Workers of the local journal: a few rows at a time, at most while nobody else needs the process.

A worker leases rows, asks them, stores what came of it, and moves its leases on while it lives. When it is told to
end, it begins nothing more, waits for what is under way, and gives back what does not end in time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from bundlectl.model.errors import BackendUnavailable
from bundlectl.router.batch.book import Settings
from bundlectl.router.batch.journal import Journal, LeasedRow, Settled
from bundlectl.router.batch.row import Answering, Row, ask
from bundlectl.router.router import random_ids

T = TypeVar("T")

LATE: Final = 0.02
"""Seconds that the event loop may be late; when it is later, requests are waiting for it, and batches wait for them."""
INSTANT: Final = 0.005
HOLDS: Final = 0.1
SWEEP_EVERY: Final = 3600.0


def backoff(settings: Settings, attempts: int) -> float:
    """Give seconds until a row is asked again: up to twice as long each time, and never less than half of that."""
    longest = min(settings.longest_pause, settings.first_pause * 2.0 ** min(attempts, 30))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


class Room:
    """Says whether the event loop keeps up. An instant of it is measured, so this costs the requests nothing."""

    def __init__(self) -> None:
        self._until = 0.0

    async def there_is(self) -> bool:
        """Measure; what was found holds for a tenth of a second, if there was room."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if began < self._until:
            return True
        await asyncio.sleep(INSTANT)
        late = loop.time() - began - INSTANT
        if late >= LATE:
            return False
        self._until = began + HOLDS
        return True


class LocalWorkers:
    """Works on the batches of some apps' environments until told to end. One event loop."""

    def __init__(
        self,
        journal: Journal,
        sources: Sequence[Answering],
        settings: Settings,
        *,
        clock: Callable[[], datetime],
        on_problem: Callable[[str], None],
        admits: Callable[[], bool] = lambda: True,
    ) -> None:
        """Take what is worked on.

        Args:
            journal: where rows are.
            sources: who answers; rows of other apps' environments are left alone.
            settings: how.
            clock: the present time, UTC.
            on_problem: told in words what went wrong beside the rows.
            admits: asked before rows are begun: False while requests that somebody waits for need the room. What is
                under way goes on.
        """
        self._journal = journal
        self._sources: Mapping[tuple[str, str], Answering] = {(one.app, one.environment): one for one in sources}
        self._settings = settings
        self._clock = clock
        self._problem = on_problem
        self._admits = admits
        self._worker = random_ids()()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._room = Room()
        self._told = asyncio.Event()
        self._ending = False
        self._tasks: dict[asyncio.Task[None], LeasedRow] = {}
        self._unstored: list[tuple[Settled, asyncio.Future[None]]] = []
        self._some = asyncio.Event()

    def tell(self) -> None:
        """Say that there may be something new to do."""
        self._told.set()

    def end(self) -> None:
        """Begin nothing more; :meth:`run` returns once what is under way has ended or was given back."""
        self._ending = True
        self._told.set()

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until told to end; with ``until_empty``, only until every row has a result."""
        helpers = [asyncio.create_task(work) for work in (self._beat(), self._store(), self._sweep())]
        try:
            while not self._ending:
                self._told.clear()
                begun = await self._begin()
                if until_empty and not begun and not self._tasks and not await self._open():
                    return
                await self._wait()
        finally:
            await self._drain()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self._thread.shutdown(wait=True)

    async def _begin(self) -> int:
        """Lease rows for what is free, and begin them; give how many."""
        free = self._settings.concurrency - len(self._tasks)
        if free <= 0 or not self._admits():
            return 0
        if not await self._room.there_is():
            free = 0 if self._tasks else 1
        if self._ending or not free:
            return 0
        try:
            rows = await self._call(
                partial(self._journal.claim, self._worker, free, list(self._sources), self._settings)
            )
        except BackendUnavailable as error:
            self._problem(f"{error.what} {error.why}")
            return 0
        for row in rows:
            task = asyncio.create_task(self._work(row))
            self._tasks[task] = row
        return len(rows)

    async def _wait(self) -> None:
        """Wait for a row to end, to be told of a new one, or for the next look."""
        told = asyncio.create_task(self._told.wait())
        await asyncio.wait({told, *self._tasks}, timeout=self._settings.idle, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        for task in [task for task in self._tasks if task.done()]:
            row = self._tasks.pop(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # Its lease runs out, and the row begins again, until it was begun too often.
                self._problem(f"{row.header.id}, row {row.id}: {type(error).__name__}: {error}")

    async def _work(self, leased: LeasedRow) -> None:
        settings, header = self._settings, leased.header
        row = Row(
            header,
            leased.line,
            leased.id,
            leased.request,
            leased.attempts,
            leased.attempts + 1 >= settings.attempts,
            self._clock,
        )
        asked = await ask(row, self._sources[header.app, header.environment])
        again = asked.kind == "again"
        settled = Settled(
            leased,
            asked.usd,
            asked.result,
            pause=backoff(settings, leased.attempts) if again else 0.0,
            asked=again,
            pause_batch=(settings.first_pause, settings.longest_pause, asked.pause) if asked.slow else None,
        )
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unstored.append((settled, stored))
        self._some.set()
        await stored

    async def _store(self) -> None:
        """Store what came of rows: all that has come meanwhile in one transaction, as each waits for the disk."""
        while True:
            await self._some.wait()
            self._some.clear()
            taken, self._unstored = self._unstored, []
            until = asyncio.get_running_loop().time() + self._settings.lease
            while taken:
                try:
                    await self._call(partial(self._journal.settle, [one for one, _ in taken], self._worker))
                except BackendUnavailable as error:
                    self._problem(f"{error.what} {error.why}")
                    if asyncio.get_running_loop().time() > until:
                        for _, stored in taken:
                            if not stored.done():
                                stored.set_exception(error)
                        break
                    await asyncio.sleep(self._settings.idle)
                else:
                    for _, stored in taken:
                        if not stored.done():
                            stored.set_result(None)
                    break

    async def _drain(self) -> None:
        """Let what is under way end; give back what does not end in time."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.grace)
        left = [(task, row) for task, row in self._tasks.items() if not task.done()]
        for task, _ in left:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, row in left:
            try:
                await self._call(partial(self._journal.put_back, row, self._worker, pause=0.0, asked=False, usd=0.0))
            except BackendUnavailable as error:
                self._problem(f"{error.what} {error.why} The row begins again when its lease has run out.")

    async def _beat(self) -> None:
        """Move the leases on, three times in the time that they last."""
        while True:
            await asyncio.sleep(self._settings.lease / 3)
            rows = [row for task, row in self._tasks.items() if not task.done()]
            if rows:
                try:
                    await self._call(partial(self._journal.extend, self._worker, rows, self._settings.lease))
                except BackendUnavailable as error:
                    self._problem(f"{error.what} {error.why}")

    async def _sweep(self) -> None:
        while True:
            try:
                await self._call(self._journal.sweep)
            except BackendUnavailable as error:
                self._problem(f"{error.what} {error.why}")
            await asyncio.sleep(SWEEP_EVERY)

    async def _open(self) -> int:
        return await self._call(partial(self._journal.open_rows, list(self._sources)))

    async def _call(self, work: Callable[[], T]) -> T:
        """Use the journal in the one thread that does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
