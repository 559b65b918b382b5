"""Canonical JSON (RFC 8785), strict parsing, and digests.

Digests are written ``sha256:<64 lower-case hex>`` everywhere. Stored bytes are verified as they are and
never serialised again to be verified; canonical form is what *we* write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import rfc8785

from bundlectl.model.errors import VerificationFailed

MAX_DEPTH = 64


def canonical(value: Any) -> bytes:
    """Serialise a JSON value by RFC 8785.

    Raises:
        ValueError: the value holds something JSON has no form for (NaN, an integer beyond 2**53, bytes).
    """
    try:
        plain = _plain(value)
    except _Special:
        return rfc8785.dumps(value)
    return _WRITER.encode(plain).encode()


_WRITER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_MOST = 2**53 - 1


class _Special(Exception):
    """The value holds something that the standard library writes otherwise than RFC 8785."""


def _plain(value: Any) -> Any:
    """Give an equal value that the standard library writes as RFC 8785 does, about ten times as fast.

    Keys are ASCII, so that their order is the same in UTF-16; whole numbers are integers; fractions have no exponent
    in either form: ECMAScript writes one under 1e-6 and from 1e21, Python under 1e-4 and from 1e16.
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is dict:
        made = {}
        for key, inner in value.items():
            if type(key) is not str or not key.isascii():
                raise _Special
            made[key] = inner if type(inner) is str else _plain(inner)
        return made
    if kind is list:
        return [inner if type(inner) is str else _plain(inner) for inner in value]
    if kind is int and -_MOST <= value <= _MOST:
        return value
    if kind is float:
        if value.is_integer() and -_MOST <= value <= _MOST:
            return int(value)
        if 1e-4 <= abs(value) < 1e15:
            return value
    raise _Special


def canonical_array(values: Iterable[Any]) -> Iterator[bytes]:
    """Serialise an array by RFC 8785 in pieces, one value at a time: joined, they are its canonical form.

    Raises:
        ValueError: as :func:`canonical`.
    """
    before = b"["
    for value in values:
        yield before + canonical(value)
        before = b","
    yield b"]" if before == b"," else b"[]"


def digest_of(pieces: Iterable[bytes]) -> str:
    """Give ``sha256:<hex>`` of the pieces, joined."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return "sha256:" + found.hexdigest()


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


def parse_document(data: bytes, *, what: str) -> Any:
    """Parse a stored document as :func:`parse_json` does; its texts are Unicode.

    JSON can spell half a surrogate pair, which has no UTF-8: whoever wrote such a document anew, or took its digest,
    would fail in the middle of judging it.

    Raises:
        VerificationFailed: the bytes are not such JSON.
    """
    value = parse_json(data, what=what)
    if b"\\ud" in data or b"\\uD" in data:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise VerificationFailed(f"{what} holds text that is not Unicode.", why=str(error)) from error
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
