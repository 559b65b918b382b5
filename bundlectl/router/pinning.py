"""Pinning a request to a bundle: the header ``x-bundle`` names head's bundle or its rollback target, and no other.

Who may is said at the caller's identity in the live bindings (``may_pin``); everybody else is refused before it is
looked at what was named. The answer, and its receipt, say what the request was pinned to.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from bundlectl.model.contract import Pinned
from bundlectl.model.errors import BackendUnavailable, BundlectlError
from bundlectl.router.http_error import HttpError, http_error
from bundlectl.router.served import Caller

HEADER: Final = b"x-bundle"
_NAMED: Final = re.compile(rb"sha256:[0-9a-f]{8,64}")
_LATER: Final = 5


async def pinned_caller(one: Caller, named: bytes, again: Callable[[], Awaitable[Caller]]) -> tuple[Caller, Pinned]:
    """Give the caller with the compiled form of the bundle that a request names.

    Args:
        one: who calls, by the release that is live.
        named: what the header says.
        again: gives who calls once more, where another release came while the rollback target was prepared.

    Raises:
        HttpError: the caller may not, the bundle is neither, or the rollback target cannot answer.
    """
    while True:
        found = await _pinned(one, named)
        if one.served.loaded() is one.compiled:
            return found
        one = await again()


async def _pinned(one: Caller, named: bytes) -> tuple[Caller, Pinned]:
    if not one.identity.may_pin:
        raise http_error(
            403,
            "pin_not_allowed",
            "This caller may not choose the bundle that answers.",
            why=f"The bindings of {one.served.name} do not say may_pin at its key or subject.",
            fix="Leave the header x-bundle out; or have the right bound: may_pin: true, with bundlectl bind.",
        )
    if not _NAMED.fullmatch(named):
        raise http_error(
            400,
            "bad_pin",
            "The header x-bundle names no bundle.",
            fix="Send the digest: sha256: and 8 to 64 hex digits. GET /v1/releases shows what can be named.",
        )
    name, ref, target = named.decode(), one.compiled.ref, one.served.rollback_target
    if ref.bundle.startswith(name):
        return one, Pinned(to="head", epoch=ref.epoch, serial=ref.serial)
    if target is None or not target.startswith(name):
        held = f"Live is {ref.bundle}; " + (f"the rollback target is {target}." if target else "it has no target.")
        raise http_error(
            406,
            "bundle_not_served",
            f"The bundle {name} is not served in {one.served.name}.",
            why=held,
            fix="Name one of those, or leave the header x-bundle out. bundlectl ask asks any other bundle.",
        )
    try:
        compiled = await one.served.prepared_target()
    except BackendUnavailable as error:
        raise _unready(503, "pin_unavailable", error, retry_after=_LATER) from error
    except BundlectlError as error:
        raise _unready(409, "pin_refused", error) from error
    return replace(one, compiled=compiled), Pinned(to="rollback_target", epoch=ref.epoch, serial=ref.serial)


def _unready(status: int, code: str, error: BundlectlError, **more: int) -> HttpError:
    body = {
        "error": code,
        "message": "The rollback target cannot answer; the live bundle goes on.",
        "why": f"{error.what} {error.why}".strip(),
        "fix": error.fix or "Leave the header x-bundle out; the live bundle answers.",
    }
    return HttpError(status, body | more)
