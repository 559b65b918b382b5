"""Opening the judges that a suite's scorers ask: their addresses are bound when the suite is run, never in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.evaluation.calibration import judged_options
from bundlectl.evaluation.scorers.judge import Judge, endpoint_of
from bundlectl.inference.prices import open_price_book
from bundlectl.model.bindings import Bindings, ModelBinding
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.components import Model
from bundlectl.model.errors import MissingExtra, UsageError
from bundlectl.model.suite import Suite
from bundlectl.router.assemble import World, make_provider


def judge_bindings(file: Path | None, suite: Suite) -> dict[str, ModelBinding]:
    """Read where the judges of a suite are reached: the ``models`` of a file of bindings, by the judges' names.

    Raises:
        SourceError: the file is no file of bindings.
        UsageError: it binds none of the suite's judges.
    """
    if file is None:
        return {}
    from bundlectl.bundling.documents import load_document

    judges = suite.judges or {}
    bound = {name: bound for name, bound in load_document(file, Bindings).models.items() if name in judges}
    if judges and not bound:
        raise UsageError(
            f"{file} binds none of the judges of suite {suite.name}.",
            fix=f"Write models: {{{next(iter(judges))}: {{base_url: …, credential: env:NAME}}}}",
        )
    return bound


def asked(suite: Suite, bindings: Mapping[str, ModelBinding]) -> list[str]:
    """Name the judges that scorers ask and that have an address: one on AWS has its own, any other is bound."""
    return [
        name
        for name, judge in (suite.judges or {}).items()
        if name in {options.judge for options in judged_options(suite).values()}
        if judge.provider != "openai" or (name in bindings and bindings[name].base_url)
    ]


def judges_digest(suite: Suite, bindings: Mapping[str, ModelBinding]) -> str | None:
    """Give a digest of where a suite's judges are reached; None for a suite that has no judges."""
    if not suite.judges:
        return None
    return digest(
        canonical({name: endpoint_of(bindings.get(name) or ModelBinding()) for name in asked(suite, bindings)})
    )


@asynccontextmanager
async def open_judges(
    ctx: Context, suite: Suite, bindings: Mapping[str, ModelBinding]
) -> AsyncIterator[dict[str, Judge]]:
    """Open the judges that scorers ask; one without an address is left out, and what it would score is unmeasured.

    Raises:
        UsageError: what is bound to a judge, or set for it, does not fit its provider.
        NotFound: a credential is missing.
        MissingExtra: the extra ``router`` is not installed.
    """
    names = asked(suite, bindings)
    without = sorted({options.judge for options in judged_options(suite).values()} - set(names))
    if without:
        ctx.reporter.say(
            f"without --judge-bindings, nothing is measured by judges that need an address: {', '.join(without)}"
        )
    if not names:
        yield {}
        return
    try:
        from bundlectl.inference.client import HttpClient
    except ModuleNotFoundError as error:
        raise MissingExtra("Asking a judge", "router") from error
    prices = open_price_book(ctx.environ)
    http = HttpClient()
    try:
        world = World(http=http, environ=ctx.environ)
        judges = {}
        for name in names:
            settings = (suite.judges or {})[name]
            bound = bindings.get(name) or ModelBinding()
            model = Model(provider=settings.provider, model=settings.model, parameters=settings.parameters)
            provider = await asyncio.to_thread(make_provider, name, model, bound, world, {})
            judges[name] = Judge(name, settings, bound, provider, prices)
        yield judges
    finally:
        await http.close()
