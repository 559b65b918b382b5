"""The HTTP client over sockets: what it writes, what it believes, and which connections it uses again."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.inference.client import HttpClient, address_of, head_of
from bundlectl.inference.connection import HELD, MAX_HEAD, Connection, Response
from bundlectl.inference.deadlines import Deadline
from bundlectl.inference.pool import Pool, _tls
from bundlectl.inference.provider import ProviderError
from tests.support.certificates import self_signed

WHAT = "model m"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """A server of raw bytes. ``connections``: how many came; ``ended``: how many of them the client ended."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.ended = 0
        self.requests: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request whole."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        body = await reader.readexactly(int(length.partition(b":")[2]))
        self.requests.append(head + body)
        return head + body


Script = Callable[[Peer, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """Run a script for each connection until it returns or the client goes."""
    peer = Peer()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.connections += 1
        try:
            await script(peer, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            peer.ended += 1
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        server.close()


def saying(*replies: bytes) -> Script:
    """Answer each request of a connection with the next of these, the last one for ever."""

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in itertools.chain(replies, itertools.repeat(replies[-1])):
            await peer.request(reader)
            writer.write(reply)

    return script


async def body_of(response: Response) -> bytes:
    try:
        return b"".join([part async for part in response.parts()])
    finally:
        response.release()


async def ask(http: HttpClient, peer: Peer) -> bytes:
    return await body_of(await http.post(peer.url, b"", b"{}", WHAT))


async def test_what_is_written() -> None:
    async with served(saying(OK)) as peer, HttpClient() as http:
        head = head_of({"Content-Type": "application/json", "Authorization": "Bearer k"})
        response = await http.post(f"{peer.url}/chat?a=%2F1", head, b'{"a":1}', WHAT)
        assert (response.status, response.content_length, await body_of(response)) == (200, 2, b"ok")
        lines = peer.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert lines[0] == b"POST /v1/chat?a=%2F1 HTTP/1.1"
        assert {b"Host: 127.0.0.1:%d" % peer.port, b"Content-Length: 7", b"Authorization: Bearer k"} < set(lines)
        assert b"Accept-Encoding: identity" in lines and peer.requests[0].endswith(b'\r\n\r\n{"a":1}')


async def test_a_connection_is_used_again_where_its_response_was_read_to_its_end() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\nX-Trailer: t\r\n\r\n"
    async with served(saying(OK, chunked)) as peer, HttpClient() as http:
        assert [await ask(http, peer) for _ in range(4)] == [b"ok"] * 4
        assert peer.connections == 1


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers", b"ok"),
        (OK + b"stray bytes", b"ok"),
    ],
    ids=["close", "http 1.0", "a second response", "stray bytes"],
)
async def test_nothing_but_the_one_response_is_taken(reply: bytes, body: bytes) -> None:
    async with served(saying(reply)) as peer, HttpClient() as http:
        assert [await ask(http, peer) for _ in range(3)] == [body] * 3
        assert peer.connections == 3


async def test_what_comes_while_nobody_asks_ends_the_connection() -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
        await peer.request(reader)
        writer.write(b"HTTP/1.1 500 Confused\r\nContent-Length: 0\r\n\r\n")

    async with served(script) as peer, HttpClient() as http:
        assert await ask(http, peer) == b"ok"
        await asyncio.sleep(0.1)
        assert await ask(http, peer) == b"ok" and peer.connections == 2


async def test_a_body_without_a_length_ends_with_the_connection_and_interim_responses_are_none() -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 200 OK\r\nX: 1\r\nX: 2\r\n\r\nto the ")
        await asyncio.sleep(0.01)
        writer.write(b"end")

    async with served(script) as peer, HttpClient() as http:
        response = await http.post(peer.url, b"", b"", WHAT)
        assert (response.status, response.headers, await body_of(response)) == (200, {"x": "1, 2"}, b"to the end")
        assert await ask(http, peer) == b"to the end" and peer.connections == 2


@pytest.mark.parametrize(
    ("reply", "kind", "why"),
    [
        (b"", "unavailable", "closed before a reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "unavailable", "closed before a reply"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "unavailable", "Http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "unavailable", "Http"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "unavailable", "Http"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (2 * MAX_HEAD), "unavailable", "a head of more than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", "broken_stream", "cut"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", "broken_stream", "cut"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n", "broken_stream", "Http"),
    ],
)
async def test_what_is_no_response_or_a_part_of_one_is_an_error(reply: bytes, kind: str, why: str) -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        writer.write(reply)

    async with served(script) as peer, HttpClient() as http:
        with pytest.raises(ProviderError) as caught:
            await ask(http, peer)
        assert caught.value.kind == kind and why in caught.value.why and WHAT in caught.value.what


async def test_whoever_gives_up_leaves_no_connection_behind() -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"fine" in await peer.request(reader):
            writer.write(OK)
        elif peer.connections == 2:
            writer.write(OK[:-1])
        await reader.readexactly(1)

    async with served(script) as peer, HttpClient(connections=1) as http:
        for _ in range(2):  # before the head, and within the body
            with pytest.raises(TimeoutError), Deadline(asyncio.get_running_loop().time() + 0.1):
                await ask(http, peer)
        with Deadline(asyncio.get_running_loop().time() + 10):
            assert await body_of(await http.post(peer.url, b"", b"fine", WHAT)) == b"ok"
        assert peer.ended == 2


async def test_no_more_connections_than_allowed_and_everybody_has_a_turn() -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await peer.request(reader):
            await asyncio.sleep(0.001)
            writer.write(OK)

    async with served(script) as peer, HttpClient(connections=3) as http:
        tasks = [asyncio.create_task(ask(http, peer)) for _ in range(60)]
        await asyncio.sleep(0.005)
        for task in tasks[10:50:3]:
            task.cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert all(one == b"ok" for n, one in enumerate(done) if n not in range(10, 50, 3))
        assert {type(one) for one in done} <= {bytes, asyncio.CancelledError}
        assert peer.connections <= 3 + peer.ended


async def test_a_connection_kept_for_one_server_makes_room_for_another() -> None:
    async with served(saying(OK)) as one, served(saying(OK)) as other, HttpClient(connections=1) as http:
        with Deadline(asyncio.get_running_loop().time() + 10):
            assert [await ask(http, peer) for peer in (one, other, one)] == [b"ok"] * 3
        assert (one.connections, other.connections) == (2, 1)


async def test_a_body_that_nobody_reads_is_not_taken_and_goes_on_when_it_is_read() -> None:
    size, taken = 40 * HELD, 0

    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await peer.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while taken < size:
            writer.write(b"x" * 2**16)
            await writer.drain()
            taken += 2**16

    async with served(script) as peer, HttpClient() as http:
        response = await http.post(peer.url, b"", b"", WHAT)
        await asyncio.sleep(0.2)
        assert taken < size, "the rest waits at the server"
        assert len(await body_of(response)) == size


async def test_a_client_that_is_closed_ends_what_is_under_way() -> None:
    async def script(peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await peer.request(reader)
        await reader.readexactly(1)

    async with served(script) as peer:
        http = HttpClient()
        task = asyncio.create_task(ask(http, peer))
        while not peer.requests:
            await asyncio.sleep(0.01)
        await http.close()
        with pytest.raises(ProviderError, match="cannot be reached"):
            await task


async def test_tls_with_a_root_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
    _tls.cache_clear()
    try:
        async with served(saying(OK), context) as peer, HttpClient() as http:
            url = peer.url.replace("http:", "https:")
            for _ in range(2):
                assert await body_of(await http.post(url, b"", b"{}", WHAT)) == b"ok"
            assert peer.connections == 1
            with pytest.raises(ProviderError, match="cannot be reached") as caught:
                await http.post(url.replace("127.0.0.1", "localhost"), b"", b"{}", WHAT)
            assert caught.value.why == "its certificate is not trusted", "it is for the address, not for this name"
    finally:
        _tls.cache_clear()


def test_addresses() -> None:
    plain = address_of("http://[::1]:8000")
    assert (plain.host, plain.port, plain.tls, plain.target, plain.authority) == (
        "::1",
        8000,
        False,
        b"/",
        b"[::1]:8000",
    )
    tls = address_of("https://Models.Example.com:443/v1/x%20y?z=1#part")
    assert (tls.host, tls.target, tls.authority) == ("models.example.com", b"/v1/x%20y?z=1", b"models.example.com")
    for url in (
        "ftp://a/b",
        "/v1",
        "http://",
        "http://u:p@a/",
        "http://a/b c",
        "http://a:99999/",
        "http://ä/",
        "http://a/\n",
    ):
        with pytest.raises(ValueError):
            address_of(url)


def test_no_header_ends_its_line() -> None:
    assert head_of({"X-Name": "a\tü"}) == b"X-Name: a\t\xfc\r\n"
    for name, value in (
        ("X", "a\r\nY: b"),
        ("X", "a\n"),
        ("X\r\nY", "a"),
        ("X Y", "a"),
        ("", "a"),
        ("X", "a\0"),
        ("X", "€"),
    ):
        with pytest.raises(ValueError):
            head_of({name: value})


class Written:
    """A transport that keeps what is done to it."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None: ...

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


PIECES = st.lists(st.binary(max_size=40), max_size=6)


@given(PIECES, st.booleans(), st.lists(st.integers(0, 600), max_size=12))
@settings(max_examples=200)
def test_the_pieces_in_which_a_response_comes_do_not_matter(body: list[bytes], chunked: bool, cuts: list[int]) -> None:
    if chunked:
        rest = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body if piece) + b"0\r\n\r\n"
        data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + rest
    else:
        whole = b"".join(body)
        data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(whole), whole)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})

    async def read() -> tuple[bytes, bool]:
        connection, transport = Connection(Pool(1)), Written()
        connection.connection_made(cast(Any, transport))
        task = asyncio.ensure_future(connection.ask(b"", WHAT))
        for first, last in itertools.pairwise(places):
            await asyncio.sleep(0)
            connection.data_received(data[first:last])
        response = await task
        return b"".join([part async for part in response.parts()]), connection.usable

    assert asyncio.run(read()) == (b"".join(body), True)
