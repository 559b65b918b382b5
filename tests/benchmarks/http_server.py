"""One server process of the HTTP measure: our Server, or the bare pass-through; run alike, as ``serve`` runs.

    python -m tests.benchmarks.http_server ours|traced|swapping|bare|bare_stream URL_OF_MODELS

``traced`` makes spans with OpenTelemetry's SDK, exported to nowhere; ``swapping`` assembles another release every
second, whose model answers with the release's serial.

It prints its port once it listens, and ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn

from bundlectl.actions.listening import bind, configured, run
from bundlectl.inference.client import HttpClient
from bundlectl.model.bindings import Bindings
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.router.assemble import Compiled, World, assemble
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.benchmarks.answer_in_process import HELD, whole_replies
from tests.support.answering import bundle_of

PARTS = ("uvloop", "Connection")


async def bare(url: str, stack: AsyncExitStack) -> Any:
    """Pass the body on and the reply back: what any proxy in Python must do, and nothing else."""
    return await _passing(url, stack, _whole)


async def bare_stream(url: str, stack: AsyncExitStack) -> Any:
    """Pass the body on, and back whatever comes, as it comes."""
    return await _passing(url, stack, _pieces)


async def _whole(response: aiohttp.ClientResponse, send: Any) -> None:
    body = await response.read()
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": response.status}
    await send({**start, "headers": [(b"content-type", b"application/json"), length]})
    await send({"type": "http.response.body", "body": body})


async def _pieces(response: aiohttp.ClientResponse, send: Any) -> None:
    start = {"type": "http.response.start", "status": response.status}
    await send({**start, "headers": [(b"content-type", b"text/event-stream")]})
    async for piece in response.content.iter_any():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _passing(url: str, stack: AsyncExitStack, reply: Callable[[Any, Any], Awaitable[None]]) -> Any:
    session = await stack.enter_async_context(
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=2048), cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=2**16
        )
    )
    target = f"{url}/chat/completions"
    headers = {"content-type": "application/json"}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        parts = []
        while True:
            message = await receive()
            parts.append(message["body"])
            if not message["more_body"]:
                break
        async with session.post(target, data=b"".join(parts), headers=headers) as response:
            await reply(response, send)

    return app


async def ours(url: str, stack: AsyncExitStack) -> Any:
    """The whole path without retrieval, with receipts on disk; telemetry is off, as no SDK is set up."""
    world = await _world(stack)
    compiled = await _compiled(url, world, HELD.serial)
    return _served(lambda: compiled, stack)


async def traced(url: str, stack: AsyncExitStack) -> Any:
    """The same with a span for each request and stage."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    return await ours(url, stack)


async def swapping(url: str, stack: AsyncExitStack) -> Any:
    """The same with another release every second; the model that each binds answers with the release's serial."""
    world = await _world(stack)
    held = [await _compiled(_named(url, 1), world, 1)]

    async def swap() -> None:
        for serial in itertools.count(2):
            await asyncio.sleep(1)
            held[0] = await _compiled(_named(url, serial), world, serial)

    task = asyncio.create_task(swap())
    stack.callback(task.cancel)
    return _served(lambda: held[0], stack)


def _named(url: str, serial: int) -> str:
    return f"{url.removesuffix('/v1')}/named/{serial}/v1"


async def _world(stack: AsyncExitStack) -> World:
    return World(http=await stack.enter_async_context(HttpClient()), open_index=no_index)


async def _compiled(url: str, world: World, serial: int) -> Compiled:
    address = {"base_url": url}
    bindings = Bindings.model_validate({"models": {"small": address, "own": address}})
    return await assemble(bundle_of(whole_replies()), bindings, HELD.model_copy(update={"serial": serial}), world)


def _served(current: Callable[[], Compiled], stack: AsyncExitStack) -> Server:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    log = stack.enter_context(ReceiptLog(folder, on_loss=lambda said: print(said, file=sys.stderr)))
    return Server([Served("support", "prod", current, Router(current, log))])


async def no_index(*_: object) -> Any:
    """Give what is never searched here."""
    return None


APPS = {"ours": ours, "traced": traced, "swapping": swapping, "bare": bare, "bare_stream": bare_stream}


async def main(which: str, url: str) -> None:
    async with AsyncExitStack() as stack:
        app = await APPS[which](url, stack)
        config = configured(app)
        config.load()
        assert (type(asyncio.get_running_loop()).__module__, config.http_protocol_class.__name__) == PARTS
        server = uvicorn.Server(config)
        listening = bind("127.0.0.1", 0)
        task = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.01)
        print(listening.getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.should_exit = True
        await task


if __name__ == "__main__":
    run(main(*sys.argv[1:]))
