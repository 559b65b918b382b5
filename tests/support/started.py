"""A fake server, started on a free port of 127.0.0.1 and stopped at the end."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable

from aiohttp import web


@contextlib.asynccontextmanager
async def started(
    app: web.Application, *, tls: ssl.SSLContext | None = None, ending: Callable[[], None] = lambda: None
) -> AsyncIterator[str]:
    """Run it and give its URL. ``ending`` is called before it stops, for handlers that hold a caller up."""
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        ending()
        await runner.cleanup()
