"""A model server and a caller so light that the server between them is what is measured.

python -m tests.benchmarks.http_raw             the model server; prints its port, ends with standard input
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import cast

from tests.support.fake_models import Say, _whole


def _length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(b"content-length:")
    return int(lower[at + 15 : lower.find(b"\r\n", at)]) if at >= 0 else 0


class _Messages(asyncio.Protocol):
    """Cuts what comes into HTTP messages with a content-length."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (at := self.buffer.find(b"\r\n\r\n")) >= 0:
            end = at + 4 + _length(self.buffer[: at + 2])
            if len(self.buffer) < end:
                return
            head, self.buffer = self.buffer[:at], self.buffer[end:]
            self.message(head)

    def message(self, head: bytes) -> None:
        raise NotImplementedError


class Models(_Messages):
    """Answers every request at once, as the tests' model server does by default."""

    BODY = json.dumps(_whole(Say("Use promote with the environment and a reason."), {})).encode()
    REPLY = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: " + str(len(BODY)).encode() + b"\r\n\r\n"
    ) + BODY

    def message(self, head: bytes) -> None:
        self.transport.write(self.REPLY)


class Caller(_Messages):
    """One connection that sends the next request as soon as the answer is there, until it is told to stop."""

    def __init__(self, requests: Sequence[bytes], first: int, until: float, stopped: asyncio.Future[int]) -> None:
        super().__init__()
        self._requests = requests
        self._next = first
        self._until = until
        self._stopped = stopped
        self.done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._send()

    def _send(self) -> None:
        self.transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def message(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200"):
            self._stopped.set_exception(RuntimeError(f"the server answered {head[:40]!r}"))
            return
        self.done += 1
        if time.perf_counter() < self._until:
            self._send()
        else:
            self._stopped.set_result(self.done)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopped.done():
            self._stopped.set_exception(RuntimeError("the server closed the connection"))


async def call(port: int, requests: Sequence[bytes], seconds: float, connections: int) -> tuple[int, float]:
    """Call for some seconds from several connections at once; give how many answers came, in how many seconds."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    waiting = []
    for n in range(connections):
        stopped: asyncio.Future[int] = loop.create_future()
        caller = Caller(requests, n * 7, began + seconds, stopped)
        await loop.create_connection(lambda caller=caller: caller, "127.0.0.1", port)  # type: ignore[misc]
        waiting.append(stopped)
    done = sum(await asyncio.gather(*waiting))
    return done, time.perf_counter() - began


async def _models() -> None:
    server = await asyncio.get_running_loop().create_server(Models, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_models())
