"""Callers that are slow to ask or slow to read, on raw sockets: they are ended, and keep nobody else from an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator

import pytest

from bundlectl.actions.connections import Connection
from bundlectl.actions.listening import configured
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.router.test_router_server import body
from tests.support.answering import Setting, setting
from tests.support.fake_models import Drip, FakeModels, Say, fake_models

GRACE = 20.0
"""Seconds that a busy machine may be late."""


class Hasty(Connection):
    head_seconds = 0.4
    stalled_seconds = 0.4


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@contextlib.asynccontextmanager
async def listening(s: Setting, idle: int = 60, by: type[Connection] = Hasty) -> AsyncIterator[int]:
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # else the system takes megabytes for a caller
    listener.bind(("127.0.0.1", 0))
    config = configured(Server([Served("support", "prod", lambda: s.compiled, s.router)]))
    assert config.http is Connection and config.timeout_keep_alive > 60
    config.http, config.timeout_keep_alive, config.timeout_graceful_shutdown = by, idle, 1
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server._serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


def request(*headers: str, **changes: str) -> bytes:
    data = json.dumps(body(**changes)).encode()
    more = "".join(f"{header}\r\n" for header in headers)
    return f"POST /v1/requests HTTP/1.1\r\nhost: 127.0.0.1\r\n{more}content-length: {len(data)}\r\n\r\n".encode() + data


async def answered(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), GRACE)
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await asyncio.wait_for(reader.readexactly(length), GRACE)
    return head


async def test_what_comes_whole_and_what_comes_in_pieces_is_answered_alike(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, listening(s) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        plain, last = request(), request("connection: close")
        writer.write(plain + plain + last[:-5])  # the second before the first is answered, the third in pieces
        heads = [await answered(reader), await answered(reader)]
        writer.write(last[-5:])
        heads.append(await answered(reader))
        assert await asyncio.wait_for(reader.read(), GRACE) == b""
        fields = [{line.split(b":")[0] for line in head.splitlines()[1:-1]} for head in heads]
        assert all(head.startswith(b"HTTP/1.1 200 OK\r\n") for head in heads)
        assert fields[0] == fields[1] == fields[2] - {b"connection"} >= {b"date", b"content-type", b"content-length"}
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"POST /v1/requests HTTP/1.1\r\nhost: 127"])
async def test_a_head_that_does_not_come_is_not_waited_for(fake: FakeModels, sent: bytes) -> None:
    async with setting(fake.base_url) as s, listening(s) as port:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await asyncio.wait_for(reader.read(), GRACE) == b""
        assert time.monotonic() - began >= Hasty.head_seconds
        writer.close()


async def test_a_head_that_drips_has_no_more_time_than_another(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, listening(s) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        ended = asyncio.ensure_future(reader.read())
        for byte in request():
            if ended.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)
        assert await asyncio.wait_for(ended, GRACE) == b"" and s.receipts.kept == []
        writer.close()


@pytest.mark.parametrize("sent", [b"GET /", b"GET /healthz HTTP/1.1\r\nx-long: ", b"GET /healthz HTTP/1.1\r\n"])
@pytest.mark.parametrize("behind", [b"", b"GET /healthz HTTP/1.1\r\n\r\n"])
async def test_a_head_without_end_is_not_held(fake: FakeModels, sent: bytes, behind: bytes) -> None:
    """Whoever sends it and wherever it goes to: a stranger could fill the memory, and a long URL costs its square."""

    class Calm(Connection):
        head_seconds = GRACE * 2

    line = b"x-many: 0123456789abcdef\r\n" * 128 if sent.endswith(b"\n") else b"a" * 4096
    async with setting(fake.base_url) as s, listening(s, by=Calm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if behind:
            writer.write(behind)
            await answered(reader)
        writer.write(sent)
        ended = asyncio.ensure_future(reader.read())
        took = 0
        with contextlib.suppress(ConnectionError):
            while not ended.done() and took < 1_000_000:
                writer.write(line)
                took += len(line)
                await writer.drain()
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionResetError):  # what was sent after the reply may take the reply with it
            reply = await asyncio.wait_for(ended, GRACE)
            assert reply == b"" or reply.startswith(b"HTTP/1.1 431")
        assert took < 1_000_000
        writer.close()


async def test_nor_is_one_behind_a_request_that_is_not_answered_yet(fake: FakeModels) -> None:
    class Strict(Connection):
        behind_bytes = 100_000

    fake.delay = GRACE
    async with setting(fake.base_url, values=_wide()) as s, listening(s, by=Strict) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(task="chat", policy_profile="plain", data_scope=[]))  # type: ignore[arg-type]
        ended = asyncio.ensure_future(reader.read())
        took = 0
        with contextlib.suppress(ConnectionError):
            while not ended.done() and took < 4_000_000:
                writer.write(b"x" * 4096)
                took += 4096
                await writer.drain()
                await asyncio.sleep(0)
        assert took < 4_000_000
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(ended, GRACE) == b""
        writer.close()


async def test_nor_is_the_next_one_on_a_connection_that_was_answered(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, listening(s) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for more in (request(), request()):
            writer.write(more)
            assert (await answered(reader)).startswith(b"HTTP/1.1 200")
        writer.write(b"\r\n")
        assert await asyncio.wait_for(reader.read(), GRACE) == b""
        writer.close()


async def test_a_request_may_take_longer_than_its_head(fake: FakeModels) -> None:
    class Calmer(Connection):
        head_seconds = 1.2

    fake.delay = 1.6
    async with setting(fake.base_url, values=_wide()) as s, listening(s, by=Calmer) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = request(task="chat", policy_profile="plain", data_scope=[])  # type: ignore[arg-type]
        writer.write(sent[:30])
        await asyncio.sleep(0.05)
        writer.write(sent[30:])
        assert (await answered(reader)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_an_idle_connection_is_ended(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, listening(s, idle=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request())
        await answered(reader)
        assert await asyncio.wait_for(reader.read(), GRACE) == b""
        writer.close()


async def test_two_hundred_half_open_connections_keep_nobody_from_an_answer(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, listening(s) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
        for _, writer in slow:
            writer.write(b"POST /v1/requests HTTP/1.1\r\nx-slow: ")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(5):
            writer.write(request())
            assert (await answered(reader)).startswith(b"HTTP/1.1 200")
        writer.close()
        ends = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in slow)), GRACE)
        assert set(ends) == {b""}
        for _, writer in slow:
            writer.close()


async def test_who_stops_reading_a_stream_holds_no_model_call(fake: FakeModels) -> None:
    fake.default = Drip("words and more words " * 40_000, every=0.001, piece=5_000)
    async with setting(fake.base_url, values=_wide()) as s, listening(s) as port:
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.to_thread(caller.connect, ("127.0.0.1", port))
            caller.sendall(request("accept: text/event-stream"))
            async with asyncio.timeout(GRACE):
                while not s.receipts.kept:
                    await asyncio.sleep(0.02)
        assert s.receipts.last.error == {"error": "cancelled", "stage": "invoke"}
        assert [one.outcome for one in s.receipts.last.attempts] == ["given_up"]


async def test_who_never_reads_a_finished_answer_is_let_go(fake: FakeModels) -> None:
    fake.default = Say("words and more words " * 45_000)
    async with setting(fake.base_url, values=_wide()) as s, listening(s) as port:
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await asyncio.to_thread(caller.connect, ("127.0.0.1", port))
            caller.sendall(request("connection: close"))
            async with asyncio.timeout(GRACE):
                while not s.receipts.kept:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(Hasty.stalled_seconds * 2)
            caller.settimeout(GRACE)
            got = await asyncio.to_thread(_all, caller)
        assert 0 < got < 800_000, "the rest was dropped"


def _all(caller: socket.socket) -> int:
    got = 0
    with contextlib.suppress(ConnectionError):
        while part := caller.recv(65536):
            got += len(part)
    return got


def _wide() -> dict[str, object]:
    from bundlectl.model.components import Guard, Profile, Route, Routes, Rule
    from tests.support.answering import parts

    values = parts()
    values["guardrails"]["plain"] = Profile(output=Guard(max_chars=1_000_000))
    values["routes"] = Routes(routes={"fast": Route(model="small", timeout="60s")}, select=[Rule(use="fast")])
    return values
