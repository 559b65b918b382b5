"""What ends an HTTP request with a status and an error body."""

from __future__ import annotations

from typing import Any, Final

CHALLENGE: Final = {"www-authenticate": "Bearer"}
"""The header of a 401: what would have been believed."""


class HttpError(Exception):
    """Ends an HTTP request. ``body`` holds ``error`` (a stable code), ``message``, ``why`` and ``fix``."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(body["message"])
        self.status = status
        self.body = body


def http_error(status: int, code: str, message: str, *, why: str = "", fix: str = "") -> HttpError:
    """Make one."""
    return HttpError(status, {"error": code, "message": message, "why": why, "fix": fix})
