"""A model server and a caller so light that the server between them is what is measured.

python -m tests.benchmarks.http_raw [SECONDS]   the model server, which answers after so long; prints its port,
                                                ends with standard input
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import cast

from tests.support.fake_models import Say, _whole


def _end(buffer: bytes, head: int) -> int:
    """Give where the message ends whose head ends at ``head``; -1 when that cannot be told yet."""
    lower = buffer[: head + 2].lower()
    at = lower.find(b"content-length:")
    if at >= 0:
        return head + 4 + int(lower[at + 15 : lower.find(b"\r\n", at)])
    if b"transfer-encoding: chunked" in lower:
        last = buffer.find(b"\r\n0\r\n\r\n", head)
        return last + 7 if last >= 0 else -1
    return head + 4


class _Messages(asyncio.Protocol):
    """Cuts what comes into HTTP messages."""

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (at := self.buffer.find(b"\r\n\r\n")) >= 0:
            end = _end(self.buffer, at)
            if end < 0 or len(self.buffer) < end:
                return
            head, body, self.buffer = self.buffer[:at], self.buffer[at + 4 : end], self.buffer[end:]
            self.message(head, body)

    def message(self, head: bytes, body: bytes) -> None:
        raise NotImplementedError


TEXT = "Use promote with the environment and a reason."


def _reply(text: str) -> bytes:
    body = json.dumps(_whole(Say(text), {})).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _events(text: str) -> tuple[bytes, bytes]:
    """Give a streamed reply, a word an event, in two parts: with the first half of its text, and the rest."""
    deltas = [{"choices": [{"index": 0, "delta": {"content": word + " "}}]} for word in text.split()]
    data = [f"data: {json.dumps(delta)}\n\n" for delta in deltas]
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    half = len(data) // 2
    return (head + _chunk(data[:half])).encode(), (_chunk([*data[half:], "data: [DONE]\n\n"]) + _chunk([])).encode()


def _chunk(events: list[str]) -> str:
    data = "".join(events)
    return f"{len(data):x}\r\n{data}\r\n"


class Models(_Messages):
    """Answers every request after ``delay`` seconds, as the tests' model server does by default.

    Under ``/named/NAME/v1`` it answers with NAME. What asks for a stream gets one, of :data:`LONG`; its second half
    comes :data:`PAUSE` seconds after the first.
    """

    delay = 0.0
    LONG = " ".join([TEXT] * 20)
    REPLY = _reply(TEXT)
    PAUSE = 0.02
    FIRST, REST = _events(LONG)

    def message(self, head: bytes, body: bytes) -> None:
        reply = self.REPLY
        if head.startswith(b"POST /named/"):
            reply = _reply(head.split(b"/", 3)[2].decode())
        elif b'"stream":true' in body:
            reply = self.FIRST
            asyncio.get_running_loop().call_later(self.PAUSE, self.transport.write, self.REST)
        if self.delay:
            asyncio.get_running_loop().call_later(self.delay, self.transport.write, reply)
        else:
            self.transport.write(reply)


class Caller(_Messages):
    """One connection that sends the next request as soon as the answer is there, until it is told to stop."""

    def __init__(
        self,
        requests: Sequence[bytes],
        first: int,
        until: float,
        stopped: asyncio.Future[int],
        waited: list[float] | None,
        seen: Callable[[bytes], None] | None,
    ) -> None:
        super().__init__()
        self._requests = requests
        self._next = first
        self._until = until
        self._stopped = stopped
        self._waited = waited
        self._seen = seen
        self._sent = 0.0
        self.done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._send()

    def _send(self) -> None:
        self.transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1
        self._sent = time.perf_counter()

    def message(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200"):
            self._stopped.set_exception(RuntimeError(f"the server answered {head[:40]!r}"))
            return
        self.done += 1
        if self._waited is not None:
            self._waited.append(time.perf_counter() - self._sent)
        if self._seen is not None:
            self._seen(body)
        if time.perf_counter() < self._until:
            self._send()
        else:
            self._stopped.set_result(self.done)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._stopped.done():
            self._stopped.set_exception(RuntimeError("the server closed the connection"))


async def call(
    port: int,
    requests: Sequence[bytes],
    seconds: float,
    connections: int,
    waited: list[float] | None = None,
    seen: Callable[[bytes], None] | None = None,
) -> tuple[int, float]:
    """Call for some seconds from several connections at once; give how many answers came, in how many seconds.

    ``waited`` takes the seconds of each; ``seen`` is shown their bodies. Any status but 200 raises.
    """
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    waiting = []
    for n in range(connections):
        stopped: asyncio.Future[int] = loop.create_future()
        caller = Caller(requests, n * 7, began + seconds, stopped, waited, seen)
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

    Models.delay = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
    uvloop.run(_models())
