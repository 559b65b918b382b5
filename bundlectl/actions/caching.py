"""The evaluation cache of a workspace: opened for a run, shown, cleared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

from bundlectl.actions.context import Context
from bundlectl.evaluation.cache import EvaluationCache, Held, clear, held
from bundlectl.evaluation.remembering import Ingredients, Memory
from bundlectl.evaluation.scorers.score import AnyScorer
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import UsageError
from bundlectl.model.suite import Suite
from bundlectl.model.types import seconds
from bundlectl.router.assemble import Compiled

WITHOUT = frozenset({"evaluation"})
"""Components that no answer comes from."""


@runtime_checkable
class Addressed(Protocol):
    """A provider whose address bindings do not say alone."""

    @property
    def address(self) -> str:
        """Where it is asked."""
        ...


def cache_folder(ctx: Context) -> Path:
    """Give where the cache lies."""
    return ctx.workspace / "cache" / "eval"


def open_cache(ctx: Context) -> EvaluationCache:
    """Open it for a run; what is wrong with it is said and the run goes on without it."""
    return EvaluationCache(cache_folder(ctx), warn=ctx.reporter.warn, clock=lambda: ctx.clock().timestamp())


def ingredients_of(
    ctx: Context,
    bundle: Bundle,
    bindings: Bindings,
    compiled: Compiled,
    *,
    actor: str,
    look: int,
    suite: str | None,
    beside: str | None,
) -> Ingredients:
    """Gather what answers of a bundle depend on; ``actor``, ``look`` and ``suite`` say whose look they are for."""
    return Ingredients(
        components={name: found for name, found in compiled.components.items() if name not in WITHOUT},
        bindings=bindings.form(),
        models={name: model.form() for name, model in bundle.components.models.items()},
        addresses=_addresses(compiled),
        prices=compiled.prices.name,
        actor=actor,
        look=look,
        suite=suite,
        beside=beside,
    )


def memory_of(
    cache: EvaluationCache,
    ingredients: Ingredients,
    bundle: Bundle,
    compiled: Compiled,
    suite: Suite,
    *,
    anew: bool,
) -> Callable[[Mapping[str, AnyScorer]], Memory]:
    """Give what makes a run's memory of a bundle's earlier answers, once its scorers are there.

    With ``anew`` it knows nothing, but the run's own answers are kept.
    """
    output = bundle.components.output.get(suite.task)

    def snapshot(task: str) -> str | None:
        index = compiled.tasks[task].index if task in compiled.tasks else None
        return index.current().snapshot if index is not None else None

    return lambda scorers: Memory(
        cache, ingredients, lines=suite.scorers, scorers=scorers, output=output, snapshot=snapshot, anew=anew
    )


def _addresses(compiled: Compiled) -> dict[str, str]:
    found = {}
    for name, route in compiled.routes.items():
        provider = route.provider
        if provider is not None and isinstance(provider, Addressed):
            found[name] = provider.address
    return found


def cache_show(ctx: Context) -> Held:
    """Say how much is kept.

    Raises:
        BackendUnavailable: it cannot be read.
    """
    return held(cache_folder(ctx))


def cache_clear(ctx: Context, *, older_than: str | None = None, max_size: int | None = None) -> Held:
    """Forget what is kept, and say what is left.

    Args:
        ctx: the context.
        older_than: a duration: only what was kept longer ago.
        max_size: bytes: only what was kept longest, until no more than this is left.

    Raises:
        UsageError: the duration is none.
        BackendUnavailable: the cache cannot be written.
    """
    before = None
    if older_than is not None:
        try:
            before = (ctx.clock() - timedelta(seconds=seconds(older_than))).timestamp()
        except (ValueError, OverflowError) as error:
            raise UsageError(f"--older-than: {error}.", fix="For instance: --older-than 30d") from error
    clear(cache_folder(ctx), before=before, down_to=max_size)
    return cache_show(ctx)
