"""The access log: one JSON line for each HTTP response, without anything that was asked or answered."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RECEIPT = "bundlectl.receipt"
"""Where in a request's ASGI scope its receipt's id is left."""


class AccessLog:
    """ASGI around another application.

    A line holds ``time`` (UTC), ``client``, ``method``, ``path`` without its query, ``status`` (absent when the caller
    went away first), ``seconds`` until the last byte was handed over, ``bytes`` of the body, and ``receipt``.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        write: Callable[[bytes], object],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take the application, and what takes a line; a line that cannot be written is its business."""
        self._app = app
        self._write = write
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and write its line at its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, at = time.perf_counter(), self._clock()
        line: dict[str, Any] = {"bytes": 0}

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
            else:
                line["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            client = scope.get("client")
            whole = {
                "time": at.isoformat(timespec="milliseconds"),
                "client": client[0] if client else None,
                "method": scope["method"],
                "path": scope["path"],
                "status": line.get("status"),
                "seconds": round(time.perf_counter() - began, 6),
                "bytes": line["bytes"],
                "receipt": scope.get(RECEIPT),
            }
            self._write(to_json({key: value for key, value in whole.items() if value is not None}) + b"\n")
