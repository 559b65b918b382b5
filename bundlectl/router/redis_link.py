"""The connection to Redis that a server's limits and caches share, and what becomes of them while it is away.

A command is made once and waits at most :data:`COMMAND_SECONDS`. After a failure nobody waits for Redis until it
answers a probe again, one every :data:`PROBE_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

COMMAND_SECONDS: Final = 0.5
PROBE_SECONDS: Final = 1.0
CONNECTIONS: Final = 32
UNDER_WAY: Final = 10_000
"""Writes that nobody waits for; further ones are dropped while so many are under way."""

T = TypeVar("T")


class RedisAway(Exception):
    """Redis did not answer. The message says why, and holds no address and no key."""


class RedisLink:
    """One Redis. ``up`` is False from a failure until a probe is answered. Used on one event loop."""

    def __init__(self, url: str, on_event: Callable[[str], None]) -> None:
        """Take the address (``redis://``, ``rediss://``, ``unix://``); nothing is connected yet."""
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=CONNECTIONS,
            timeout=COMMAND_SECONDS,
            socket_timeout=COMMAND_SECONDS,
            socket_connect_timeout=COMMAND_SECONDS,
            retry=Retry(NoBackoff(), 0),  # what is taken twice would count twice
            health_check_interval=0,
        )
        self.client: redis.asyncio.Redis = redis.asyncio.Redis(connection_pool=pool)
        self.up = True
        self._on_event = on_event
        self._probing: asyncio.Task[None] | None = None
        self._under_way: set[asyncio.Task[None]] = set()

    async def call(self, command: Awaitable[T]) -> T:
        """Wait for a command.

        Raises:
            RedisAway: it failed; from now on it counts as away.
        """
        try:
            async with asyncio.timeout(2 * COMMAND_SECONDS):
                return await command
        except (RedisError, OSError, TimeoutError) as error:
            self._down(type(error).__name__)
            raise RedisAway(type(error).__name__) from error

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for; it may raise RedisAway, which is dropped after having been told."""
        if not self.up or len(self._under_way) >= UNDER_WAY:
            work.close()
            return
        task = asyncio.ensure_future(_dropping(work))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def start(self) -> None:
        """Look whether it is there; where it is not, go on looking."""
        try:
            await self.call(self._ping())
        except RedisAway:
            return

    async def settled(self) -> None:
        """Wait until everything that nobody waits for is done."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def close(self) -> None:
        """Finish what is under way and close the connections."""
        await self.settled()
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait({self._probing})
        await self.client.aclose()
        await self.client.connection_pool.disconnect()

    def _down(self, why: str) -> None:
        if self.up:
            self.up = False
            self._on_event(f"Redis cannot be used ({why}): limits go by on_redis_down until it is back")
        if self._probing is None or self._probing.done():
            self._probing = asyncio.ensure_future(self._probe())

    async def _ping(self) -> None:
        # Not PING: a Redis that is loading, read-only or full answers that one.
        await self.client.set("bundlectl:probe", "1", ex=60)

    async def _probe(self) -> None:
        while not self.up:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                async with asyncio.timeout(2 * COMMAND_SECONDS):
                    await self._ping()
            except (RedisError, OSError, TimeoutError):
                continue
            self.up = True
            self._on_event("Redis can be used again")


async def _dropping(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except RedisAway:
        return
