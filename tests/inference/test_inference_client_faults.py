"""The HTTP client against servers that misbehave and callers that leave: nothing leaks, hangs or mixes requests."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bundlectl.inference import pool
from bundlectl.inference.client import HttpClient
from bundlectl.inference.connection import MAX_HEAD
from bundlectl.inference.provider import ProviderError
from tests.support.certificates import self_signed

WHAT = "model m"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\nhalf"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(talk: Talk, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(whole, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its body."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        writer.write(await reader.readexactly(length))


async def ask(http: HttpClient, url: str, body: bytes = b"{}") -> bytes:
    response = await http.post(url, b"", body, WHAT)
    try:
        return b"".join([part async for part in response.parts()])
    finally:
        response.release()


def in_use(http: HttpClient) -> tuple[int, int]:
    """Connections that count against the limit: open ones, and ones that are being opened."""
    return len(http._pool._open), http._pool._opening


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Give a server's configuration, which the client trusts."""
    context = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=tmp_path / "server.pem")
    monkeypatch.setattr(pool, "_tls", lambda: trusting)
    return context


@contextmanager
def ending_at_once() -> Iterator[str]:
    """Run a server, outside of any loop, that ends each connection as it comes."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                listening.accept()[0].close()
            except OSError:
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_ends_before_its_first_request_is_an_error_at_once(loop: Any) -> None:
    async def run(url: str) -> tuple[set[str], tuple[int, int]]:
        async with HttpClient(connections=20) as http, asyncio.timeout(20):
            calls = await asyncio.gather(*(ask(http, url) for _ in range(100)), return_exceptions=True)
            await asyncio.sleep(0.02)
            return {one.why if isinstance(one, ProviderError) else repr(one) for one in calls}, in_use(http)

    with ending_at_once() as url, asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(run(url)) == ({"the connection was closed before a reply"}, (0, 0))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("secure", [False, True])
def test_a_call_may_be_given_up_in_any_turn_of_the_loop(loop: Any, secure: bool, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        async with served(echo, tls if secure else None) as url, HttpClient(connections=1) as http:
            before = descriptors()
            for turns in range(20):
                call = asyncio.create_task(ask(http, url))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                given_up = await asyncio.gather(call, return_exceptions=True)
                assert isinstance(given_up[0], asyncio.CancelledError | bytes), (turns, given_up)
                for connection in tuple(http._pool._open):
                    connection.abort()
                await asyncio.sleep(0.005)
                assert in_use(http) == (0, 0), turns
            async with asyncio.timeout(10):
                while descriptors() > before:
                    await asyncio.sleep(0.005)
                assert await ask(http, url) == b"{}"

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


async def test_an_end_of_our_own_is_not_the_end_of_a_body() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ENDLESS)
        await reader.read()

    async with served(talk) as url, HttpClient() as http:
        response = await http.post(url, b"", b"", WHAT)
        assert await response.read_some() == b"half"
        await http.close()
        with pytest.raises(ProviderError, match="cut"):
            await response.read_some()
        response.release()


async def test_what_follows_a_body_has_an_end() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Trailer: ")
        while not writer.is_closing():
            writer.write(b"x" * MAX_HEAD)
            await writer.drain()

    async with served(talk) as url, HttpClient() as http, asyncio.timeout(10):
        with pytest.raises(ProviderError, match="not HTTP"):
            await ask(http, url)


async def test_a_request_that_was_answered_before_it_was_sent_is_the_last_of_its_connection() -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()

    async with served(talk) as url, HttpClient() as http, asyncio.timeout(10):
        assert [await ask(http, url, b"x" * 2**25) for _ in range(2)] == [b"ok"] * 2
        await asyncio.sleep(0.02)
        assert connections == 2 and in_use(http) == (0, 0)


async def test_who_waits_for_a_connection_is_served_in_turn_and_before_who_comes_later() -> None:
    served_in: list[str] = []

    async def one(http: HttpClient, url: str, name: str, times: int = 1) -> None:
        for _ in range(times):
            assert await ask(http, url, name.encode()) == name.encode()
            served_in.append(name)

    async with served(echo) as url, served(echo) as other, HttpClient(connections=1) as http, asyncio.timeout(20):
        greedy = asyncio.create_task(one(http, url, "greedy", 20))
        await asyncio.sleep(0)
        gone = asyncio.create_task(one(http, url, "gone"))
        waiting = [
            asyncio.create_task(one(http, where, name)) for where, name in ((url, "a"), (other, "b"), (url, "c"))
        ]
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(greedy, *waiting)
        assert [name for name in served_in if name != "greedy"] == ["a", "b", "c"]
        assert served_in.index("c") < 8 and len(served_in) == 23
        assert in_use(http) == (1, 0) and not http._pool._waiting


async def test_who_leaves_with_a_turn_in_hand_passes_it_on() -> None:
    async with served(echo) as url, HttpClient(connections=1) as http, asyncio.timeout(20):
        first = await http.post(url, b"", b"", WHAT)
        leaving, next_one = (asyncio.create_task(ask(http, url)) for _ in range(2))
        await asyncio.sleep(0)
        first.release()
        leaving.cancel()
        assert await next_one == b"{}"
        second = await http.post(url, b"", b"{}", WHAT)
        leaving, next_one = (asyncio.create_task(ask(http, url)) for _ in range(2))
        await asyncio.sleep(0)
        second._connection.abort()  # type: ignore[union-attr]
        while len(http._pool._waiting) == 2:
            await asyncio.sleep(0)
        leaving.cancel()
        assert await next_one == b"{}"
        assert in_use(http) == (1, 0)


async def test_a_name_is_looked_up_once_for_all_and_a_failure_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    lookups = 0
    fails = True

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        nonlocal lookups
        lookups += 1
        await asyncio.sleep(0.02)
        if fails:
            raise socket.gaierror("nobody knows it")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async with served(echo) as url, HttpClient() as http:
        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        named = url.replace("127.0.0.1", "models.example")
        calls = [asyncio.create_task(ask(http, named)) for _ in range(20)]
        await asyncio.sleep(0)
        calls[0].cancel()  # who asked first leaves; the others still get the answer
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert {one.why for one in done if isinstance(one, ProviderError)} == {"its name does not resolve"}
        assert lookups == 1
        fails = False
        assert await asyncio.gather(*(ask(http, named) for _ in range(20))) == [b"{}"] * 20
        assert lookups == 2 and in_use(http)[1] == 0


async def test_a_name_that_cannot_be_one_is_an_error_of_the_model() -> None:
    async with HttpClient() as http:
        for host in ("a..b", "a" * 70 + ".example"):
            with pytest.raises(ProviderError) as caught:
                await ask(http, f"http://{host}/")
            assert (caught.value.kind, caught.value.why) == ("unavailable", "its name does not resolve")
        assert in_use(http) == (0, 0)
