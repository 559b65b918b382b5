"""registry locate: tell machines where a registry is, by a name in Parameter Store. And how serve finds it again."""

from __future__ import annotations

from collections.abc import Sequence

from bundlectl.actions.context import Context
from bundlectl.actions.keeping import keep, kept
from bundlectl.actions.opening import open_trust, registry_id
from bundlectl.model.errors import BackendUnavailable, UsageError
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
    file = f"locator.{name}.json"
    try:
        located = ctx.locate(*environments)
    except BackendUnavailable as error:
        text = kept(ctx, file)
        if name is None or text is None:
            raise
        locator = parse_locator(text, name)
        ctx.reporter.warn(f"{error.what} {error.why} The registry is sought where it was last: {locator.url}")
        ctx.use(recalled(name, locator))
        return
    if located.locator is not None:
        keep(ctx, file, to_text(located.locator))
