"""One server process of the HTTP measure: our Server, or the bare pass-through; run alike, as ``serve`` runs.

    python -m tests.benchmarks.http_server ours|bare URL_OF_MODELS

It prints its port once it listens, and ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvicorn

from bundlectl.actions.listening import bind, configured, run
from bundlectl.inference.http import open_session
from bundlectl.model.bindings import Bindings
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.router.assemble import World, assemble
from bundlectl.router.router import Router
from bundlectl.router.server import Served, Server
from tests.benchmarks.answer_in_process import HELD, whole_replies
from tests.support.answering import bundle_of

PARTS = ("uvloop", "HttpToolsProtocol")


async def bare(url: str, stack: AsyncExitStack) -> Any:
    """Pass the body on and the reply back: what any proxy in Python must do, and nothing else."""
    session = await stack.enter_async_context(open_session())
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
            body = await response.read()
        length = (b"content-length", str(len(body)).encode())
        start = {"type": "http.response.start", "status": response.status}
        await send({**start, "headers": [(b"content-type", b"application/json"), length]})
        await send({"type": "http.response.body", "body": body})

    return app


async def ours(url: str, stack: AsyncExitStack) -> Any:
    """The whole path without retrieval, with receipts on disk; telemetry is off, as no SDK is set up."""
    session = await stack.enter_async_context(open_session())
    address = {"base_url": url}
    bindings = Bindings.model_validate({"models": {"small": address, "own": address}})
    bundle = bundle_of(whole_replies())
    compiled = await assemble(bundle, bindings, HELD, World(session=session, open_index=_no_index))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    log = stack.enter_context(ReceiptLog(folder, on_loss=lambda said: print(said, file=sys.stderr)))
    return Server([Served("support", "prod", lambda: compiled, Router(lambda: compiled, log))])


async def _no_index(*_: object) -> Any:
    """Give what is never searched here."""
    return None


async def main(which: str, url: str) -> None:
    async with AsyncExitStack() as stack:
        app = await {"ours": ours, "bare": bare}[which](url, stack)
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
