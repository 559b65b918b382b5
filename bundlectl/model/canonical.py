"""Canonical JSON (RFC 8785), strict parsing, and digests.

Digests are written ``sha256:<64 lower-case hex>`` everywhere. Stored bytes are verified as they are and
never serialised again to be verified; canonical form is what *we* write.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import rfc8785

from bundlectl.model.errors import VerificationFailed

MAX_DEPTH = 64


def canonical(value: Any) -> bytes:
    """Serialise a JSON value by RFC 8785.

    Raises:
        ValueError: the value holds something JSON has no form for (NaN, an integer beyond 2**53, bytes).
    """
    return rfc8785.dumps(value)


def digest(data: bytes) -> str:
    """Give ``sha256:<hex>`` of the bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def hex_of(digest_: str) -> str:
    """Give the 64 hex digits of a ``sha256:`` digest."""
    return digest_.removeprefix("sha256:")


def parse_json(data: bytes, *, what: str) -> Any:
    """Parse JSON strictly: UTF-8, no duplicate keys, no NaN or Infinity, bounded depth.

    Args:
        data: the stored bytes.
        what: what the bytes are, for the error message.

    Raises:
        VerificationFailed: the bytes are not such JSON.
    """
    try:
        value = _STRICT.decode(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise VerificationFailed(f"{what} is not valid JSON.", why=str(error)) from error
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value, what)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key!r}")
            seen.add(key)
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _check_depth(value: Any, what: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise VerificationFailed(f"{what} is nested deeper than {MAX_DEPTH} levels.")
