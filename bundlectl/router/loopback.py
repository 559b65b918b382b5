"""Is it this machine that calls? Without identities nobody else may."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from bundlectl.model.errors import UsageError
from bundlectl.router.assemble import Compiled


def check_bind(host: str, compiled: Sequence[Compiled]) -> str | None:
    """Check that a server may listen on ``host``; give what to tell the operator, ``None`` when nothing.

    Raises:
        UsageError: the host is reachable from elsewhere, and some environment has no identities configured.
    """
    open_ = [f"{one.ref.app}:{one.ref.environment}" for one in compiled if not one.identities]
    if not open_:
        return None
    names = ", ".join(open_)
    if not _is_loopback(host):
        raise UsageError(
            f"The server may not listen on {host}.",
            why=f"{names} has no identities configured, so anyone who reaches it may claim any tenant and role.",
            fix="Bind identities.api_keys in the environment's file, or listen on 127.0.0.1.",
        )
    return f"{names} has no identities configured: any claim is believed, so the server listens on {host} only."


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def arrived_locally(scope: Mapping[str, Any]) -> bool:
    """Say whether the request came in at a loopback address or a Unix socket."""
    server = scope.get("server")
    return server is not None and (server[1] is None or _is_loopback(server[0]))


def named_locally(host: bytes | None) -> bool:
    """Say whether the caller itself named this machine, by the header ``host``.

    A web page that rebinds its own name to this machine did not.
    """
    return host is None or _is_this_machine(host)


def sent_by_a_page_elsewhere(origin: bytes | None) -> bool:
    """Say whether a web page of another machine had a browser on this one send the request, by the header ``origin``.

    Its author cannot read the answer, and could still have it made, and paid for.
    """
    return origin is not None and not _is_this_machine(origin.partition(b"://")[2])


@lru_cache(maxsize=64)
def _is_this_machine(host: bytes) -> bool:
    name = host.decode("latin-1").strip()
    if name.startswith("["):
        name, closed, _ = name[1:].partition("]")
        return bool(closed) and _is_loopback(name)
    return _is_loopback(name.partition(":")[0])
