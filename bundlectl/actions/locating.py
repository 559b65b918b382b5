"""registry locate: tell machines where a registry is, by a name in Parameter Store. And how serve finds it again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust, registry_id
from bundlectl.model.errors import BackendUnavailable, UsageError, VerificationFailed
from bundlectl.model.types import Strict
from bundlectl.registry.located import Environment, publish, recalled
from bundlectl.registry.witness import Locator, name_of, parse_locator, to_text


class LocatedRegistry(Strict):
    """What machines find under a name."""

    name: str
    url: str
    pin: str
    registry: str


def registry_locate(ctx: Context, uri: str) -> LocatedRegistry:
    """Write where the context's registry is, and its pin, to Parameter Store; over what is there.

    Args:
        ctx: the context; its registry must be in S3, and verify from this machine's pin.
        uri: ``ssm:/bundlectl/<name>``.

    Raises:
        UsageError: the URI is no such name, or the registry is on this machine or itself found by name.
        VerificationFailed: the registry does not verify.
    """
    if name_of(uri) is None:
        raise UsageError(f"{uri!r} is no name in Parameter Store.", fix="Use ssm:/bundlectl/NAME.")
    if not ctx.registry_url.startswith("s3://"):
        raise UsageError(
            f"Other machines cannot find {ctx.registry_url}.", fix="Name the registry by its address: --registry s3://…"
        )
    keyring = open_trust(ctx)
    locator = Locator(url=ctx.registry_url, pin=keyring.digest, registry=registry_id(keyring))
    publish(uri, locator)
    return LocatedRegistry(name=uri, url=locator.url, pin=locator.pin, registry=locator.registry)


def locate_to_serve(ctx: Context, environments: Sequence[Environment]) -> None:
    """Find the registry as :meth:`Context.locate` does; with Parameter Store away, as it was found here last.

    Serving needs nothing of Parameter Store but that: what is served is verified from the pin that was kept with it.

    Raises:
        BackendUnavailable: Parameter Store is away, and the registry was never found here.
    """
    name = name_of(ctx.registry_url)
    file = ctx.workspace / "cache" / f"locator.{name}.json"
    try:
        located = ctx.locate(*environments)
    except BackendUnavailable as error:
        kept = _read(file, name or "")
        if name is None or kept is None:
            raise
        ctx.reporter.warn(f"{error.what} {error.why} The registry is sought where it was last: {kept.url}")
        ctx.use(recalled(name, kept))
        return
    if located.locator is not None:
        _keep(ctx, file, to_text(located.locator))


def _read(file: Path, name: str) -> Locator | None:
    try:
        return parse_locator(file.read_text(encoding="utf-8"), name)
    except (OSError, VerificationFailed):
        return None


def _keep(ctx: Context, file: Path, text: str) -> None:
    """Write the file whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".locator-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(text)
            Path(temporary).replace(file)
        finally:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
    except OSError as error:
        ctx.reporter.warn(f"where the registry is cannot be kept in {file}: {error.strerror or error}")
