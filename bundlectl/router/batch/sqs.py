"""Workers of a queue: each message names a row, and is kept from others while its row is worked on.

A worker that is killed keeps its messages no longer, and their rows begin again elsewhere. What may be cured by time
is waited for here, with the message in hand: how often SQS delivers a message then counts lost workers, and nothing
else, and its dead-letter queue holds rows that workers do not survive. Those fail, with the reason, when they are
found there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from bundlectl.model.batch import BatchHeader, BatchResult
from bundlectl.model.errors import BackendUnavailable
from bundlectl.router.batch.book import BatchMissing, NewRow, Settings
from bundlectl.router.batch.queue import AT_ONCE, Message
from bundlectl.router.batch.row import Answering, Row, ask
from bundlectl.router.batch.store import Named, StoreBook, read_message
from bundlectl.router.batch.workers import Room, backoff

T = TypeVar("T")

POLL: Final = 5
"""Seconds that SQS waits for a message before it says that there is none."""
THREADS: Final = 16
HELD: Final = 3600.0
"""Seconds after which a row that waits is named to the queue anew; SQS lets nobody hold a message for ever."""
STRANDED: Final = 120.0
"""Seconds after which a batch that is not all in the queue is taken to have lost its server."""
LOOK_AROUND: Final = 30.0
ELSEWHERE: Final = 5
"""Seconds after which a row that only another worker can answer is in the queue again."""
FRESH: Final = 5.0
"""Seconds for which it is believed that a batch was not cancelled."""


class QueueWorkers:
    """Works on what a queue names until told to end. One event loop."""

    def __init__(
        self,
        book: StoreBook,
        sources: Sequence[Answering],
        settings: Settings,
        *,
        clock: Callable[[], datetime],
        on_problem: Callable[[str], None],
        admits: Callable[[], bool] = lambda: True,
        poll: int = POLL,
        look_around: float = LOOK_AROUND,
        stranded: float = STRANDED,
    ) -> None:
        """Take what is worked on; see :class:`bundlectl.router.batch.workers.LocalWorkers`."""
        self._book = book
        self._queue = book.queue
        self._sources: Mapping[tuple[str, str], Answering] = {(one.app, one.environment): one for one in sources}
        self._settings = settings
        self._clock = clock
        self._problem = on_problem
        self._admits = admits
        self._poll = poll
        self._look_around_every = look_around
        self._stranded = stranded
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="batch-queue")
        self._room = Room()
        self._ending = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], Message] = {}
        self._headers: dict[str, BatchHeader] = {}
        self._not_cancelled: dict[str, float] = {}

    def tell(self) -> None:
        """Do nothing: the queue tells."""

    def end(self) -> None:
        """Begin nothing more; :meth:`run` returns once what is under way has ended or was given back."""
        self._ending.set()

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until told to end; with ``until_empty``, only until the queue is empty."""
        helpers = [asyncio.create_task(self._beat()), asyncio.create_task(self._look_around())]
        try:
            while not self._ending.is_set():
                begun = await self._begin()
                if until_empty and not begun and not self._tasks and await self._empty():
                    return
        finally:
            await self._drain()
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self._threads.shutdown(wait=True)

    # ------------------------------------------------------------ messages

    async def _begin(self) -> int:
        """Receive what there is room for, and begin it; wait where there is none."""
        free = self._settings.concurrency - len(self._tasks)
        if free > 0 and not await self._room.there_is():
            free = 0 if self._tasks else 1
        if free <= 0 or not self._admits():
            waits = {asyncio.create_task(self._ending.wait()), *self._tasks}
            await asyncio.wait(waits, timeout=self._settings.idle, return_when=asyncio.FIRST_COMPLETED)
            for task in waits - set(self._tasks):
                task.cancel()
            self._collect()
            return 0
        try:
            wait = self._poll if not self._tasks else 1
            receive = partial(self._queue.receive, min(free, AT_ONCE), wait=wait, visibility=self._settings.lease)
            messages = await self._call(receive)
        except BackendUnavailable as error:
            self._problem(f"{error.what} {error.why}")
            await asyncio.sleep(self._settings.idle)
            return 0
        for message in messages:
            self._tasks[asyncio.create_task(self._work(message))] = message
        self._collect()
        return len(messages)

    def _collect(self) -> None:
        for task in [task for task in self._tasks if task.done()]:
            message = self._tasks.pop(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                # Its message comes again when its time is up, and goes to the dead letters in the end.
                self._problem(f"{message.body}: {type(error).__name__}: {error}")

    async def _work(self, message: Message) -> None:
        named = read_message(message.body)
        if named is None:
            self._problem(f"The queue {self._queue.url} holds a message that names no row; its dead letters get it.")
            await self._call(partial(self._queue.keep, [message], 1.0))
            return
        try:
            header = await self._header(named.batch)
        except BatchMissing as error:
            self._problem(f"{error.what} The queue's dead letters get its message.")
            return
        source = self._sources.get((header.app, header.environment))
        if source is None:
            # Another worker's; it must not be counted against the row that this one cannot answer it.
            await self._renew(message, named, delay=ELSEWHERE)
            return
        new = await self._call(partial(self._book.row, header, named))
        if new is not None and not await self._call(partial(self._book.settled, header.id, new.line)):
            result, usd = await self._answer(message, named, header, new, source)
            if result is None:
                return
            await self._call(partial(self._book.finish, header.id, result, usd))
        await self._call(partial(self._queue.delete, message))

    async def _answer(
        self, message: Message, named: Named, header: BatchHeader, new: NewRow, source: Answering
    ) -> tuple[BatchResult | None, float | None]:
        """Ask a row until it has ended; ``None`` when its message was given back instead."""
        settings, loop = self._settings, asyncio.get_running_loop()
        attempts, waited, usd = named.attempts, 0, 0.0
        unpriced = False
        until = loop.time() + HELD
        while True:
            row = Row(header, new.line, new.id, new.request, attempts, attempts + 1 >= settings.attempts, self._clock)
            if await self._is_cancelled(header.id):
                return row.unanswered("cancelled"), 0.0
            if self._clock() >= header.expires:
                return row.unanswered("expired"), usd
            asked = await ask(row, source)
            unpriced = unpriced or asked.usd is None
            usd += asked.usd or 0.0
            if asked.result is not None:
                return asked.result, None if unpriced else usd
            if asked.kind == "again":
                attempts, waited = attempts + 1, 0
                pause = backoff(settings, attempts - 1)
            else:
                pause = max(asked.pause, backoff(settings, waited))
                waited += 1
            if await self._ended_within(pause) or loop.time() > until:
                await self._renew(message, replace(named, attempts=attempts))
                return None, None

    async def _renew(self, message: Message, named: Named, *, delay: int = 0) -> None:
        """Give a row back by naming it anew: SQS counts how often a message was received, and this was no loss."""
        await self._call(partial(self._queue.send, [named.body()], delay=delay))
        await self._call(partial(self._queue.delete, message))

    # ------------------------------------------------------------ beside them

    async def _drain(self) -> None:
        """Let what is under way end; give back what does not end in time."""
        self._ending.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.grace)
        left = [(task, message) for task, message in self._tasks.items() if not task.done()]
        for task, _ in left:
            task.cancel()
        await asyncio.gather(*(task for task, _ in left), return_exceptions=True)
        self._collect()
        for _, message in left:
            named = read_message(message.body)
            try:
                if named is not None:
                    await self._renew(message, named)
            except BackendUnavailable as error:
                self._problem(f"{error.what} {error.why} The row begins again when its message's time is up.")

    async def _beat(self) -> None:
        """Keep the messages in hand from others, three times in the time that this lasts."""
        while True:
            await asyncio.sleep(self._settings.lease / 3)
            held = [message for task, message in self._tasks.items() if not task.done()]
            try:
                if held:
                    await self._call(partial(self._queue.keep, held, self._settings.lease))
            except BackendUnavailable as error:
                self._problem(f"{error.what} {error.why}")

    async def _look_around(self) -> None:
        """See to batches whose server was lost before all rows were named, and to rows that workers did not survive."""
        while True:
            try:
                await self._call(partial(self._book.sweep, self._stranded))
                await self._bury()
            except BackendUnavailable as error:
                self._problem(f"{error.what} {error.why}")
            await asyncio.sleep(self._look_around_every)

    async def _bury(self) -> None:
        dead = await self._call(lambda: self._queue.dead)
        if dead is None:
            return
        for message in await self._call(partial(dead.receive, AT_ONCE, wait=0, visibility=self._settings.lease)):
            named = read_message(message.body)
            if named is None:
                continue  # for people to look at; the state counts it
            try:
                header = await self._header(named.batch)
            except BatchMissing:
                continue
            new = await self._call(partial(self._book.row, header, named))
            if new is not None:
                row = Row(header, new.line, new.id, new.request, named.attempts, last=True, clock=self._clock)
                await self._call(partial(self._book.finish, header.id, row.unanswered("worker_lost"), 0.0))
            await self._call(partial(dead.delete, message))

    async def _header(self, batch: str) -> BatchHeader:
        held = self._headers.get(batch)
        if held is None:
            held = await self._call(partial(self._book.header, batch))
            if len(self._headers) >= 1000:
                self._headers.clear()
            self._headers[batch] = held
        return held

    async def _is_cancelled(self, batch: str) -> bool:
        now = asyncio.get_running_loop().time()
        if self._not_cancelled.get(batch, 0.0) > now:
            return False
        found = await self._call(partial(self._book.cancelled, batch))
        if not found:
            if len(self._not_cancelled) >= 1000:
                self._not_cancelled.clear()
            self._not_cancelled[batch] = now + FRESH
        return found

    async def _empty(self) -> bool:
        await self._call(partial(self._book.sweep, self._stranded))
        state = await self._call(self._queue.state)
        return not state.visible and not state.in_flight

    async def _ended_within(self, seconds: float) -> bool:
        """Wait; True as soon as the worker is told to end."""
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return False
        return True

    async def _call(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
