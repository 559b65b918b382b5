"""The short way to uvicorn, for requests that are there whole and answers that go out whole.

ASGI hands both over in messages: reading needs a deadline, and an answer's head and body are written in two system
calls, a tenth of a whole request. Where no other application stands between uvicorn and the server, they are taken
and written in one. Whatever is not so plain (a body that is still coming, a caller who reads slowly or whose
connection ends, another server) goes by ASGI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


def whole_body(receive: Any) -> bytes | None:
    """Give a request's body; ``None`` where it must be asked for with ``receive``."""
    cycle = getattr(receive, "__self__", None)
    if cycle.__class__ is not RequestResponseCycle or cycle.more_body or cycle.disconnected or cycle.flow.read_paused:
        return None
    cycle.message_event.clear()
    body, cycle.body = bytes(cycle.body), bytearray()
    return body


def send_whole(send: Any, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Write an answer whose headers name its length; False where it must be sent with ``send``."""
    cycle = getattr(send, "__self__", None)
    if (
        cycle.__class__ is not RequestResponseCycle
        or cycle.response_started
        or cycle.disconnected
        or cycle.flow.write_paused
        or not cycle.keep_alive
    ):
        return False
    parts = [STATUS_LINE[status]]
    for name, value in (*cycle.default_headers, *headers):
        parts += (name, b": ", value, b"\r\n")
    parts += (b"\r\n", body)
    cycle.transport.write(b"".join(parts))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True
