"""Where several servers of an environment share limits and caches: a Redis, named by reference."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from bundlectl.inference.credentials import resolve_credential
from bundlectl.model.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from bundlectl.actions.context import Context
    from bundlectl.router.redis_link import RedisLink

VARIABLE: Final = "BUNDLECTL_REDIS"
_ADDRESS: Final = re.compile(r"(redis|rediss)://[^/\s]+(/[0-9]*)?(\?\S*)?|unix:///\S+")
_REFERENCE: Final = re.compile(r"(env|file|aws-sm|ssm):.+")


def open_redis(ctx: Context, named: str | None, on_event: Callable[[str], None]) -> RedisLink | None:
    """Open what ``--redis`` or ``BUNDLECTL_REDIS`` names; ``None`` when neither does. It may wait for AWS.

    Nothing is connected yet, and errors never show the address, which may hold a password.

    Raises:
        UsageError: it is no address, or a password stands on the command line.
        NotFound: the reference names nothing.
        BackendUnavailable: AWS cannot be reached for it.
        MissingExtra: the extra ``redis`` is not installed.
    """
    reference = named or ctx.environ.get(VARIABLE, "").strip()
    if not reference:
        return None
    url = resolve_credential(reference, ctx.environ) if _REFERENCE.fullmatch(reference) else reference
    if not _ADDRESS.fullmatch(url):
        raise UsageError(
            "What --redis or BUNDLECTL_REDIS names is no address of a Redis.",
            fix="Name redis://HOST:PORT/0, rediss:// for TLS, unix:///PATH, or where such an address is: env:NAME, "
            "file:/PATH, aws-sm:NAME, ssm:/NAME.",
        )
    if url == named and "@" in url:
        raise UsageError(
            "A password may not stand on the command line.",
            why="Everybody on this machine can read it there.",
            fix=f"Put the address into {VARIABLE}, or name where it is: --redis env:NAME, file:/PATH, aws-sm:NAME.",
        )
    try:
        from bundlectl.router.redis_link import RedisLink
    except ModuleNotFoundError as error:
        raise MissingExtra("Limits and caches shared through Redis", "redis") from error
    return RedisLink(url, on_event)
