"""A verified bundle and its bindings, compiled: everything that depends on them alone is done here, once.

Templates, patterns, policies and schemas are compiled, the bundle's access cases are decided again, providers
and indexes are opened. If any of it fails nothing is made, and what serves now goes on serving.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from bundlectl.inference.credentials import resolve_credential
from bundlectl.inference.fitting import provider_misfits
from bundlectl.inference.inspection import Inspector
from bundlectl.inference.prices import PriceBook, open_price_book
from bundlectl.inference.provider import Provider
from bundlectl.model.bindings import Bindings, Identities, ModelBinding
from bundlectl.model.bundle import Bundle, Components
from bundlectl.model.components import Embedding, Guard, Model, Profile, Retrieval, Route
from bundlectl.model.contract import ReleaseRef
from bundlectl.model.errors import BackendUnavailable, UsageError, VerificationFailed
from bundlectl.model.types import seconds
from bundlectl.retrieval.permission import Filter
from bundlectl.router.cache import CompiledCaching, compile_caching
from bundlectl.router.health import Breaker
from bundlectl.router.identity import KnownIdentities
from bundlectl.router.limits import CompiledLimits
from bundlectl.router.routing import CompiledRoute, RouteTable
from bundlectl.stages.access import AccessPolicy
from bundlectl.stages.guards import CompiledGuard
from bundlectl.stages.output import CompiledOutput
from bundlectl.stages.prompt import CompiledPrompt

if TYPE_CHECKING:
    from bundlectl.inference.client import HttpClient
    from bundlectl.inference.embeddings import Embedder
    from bundlectl.inference.presidio import PresidioProcesses
    from bundlectl.retrieval.search import SearchResult
    from bundlectl.router.key_sets import KeySets


class Searcher(Protocol):
    """A searchable state of an index."""

    async def search(self, question: str, allowed: Filter, retrieval: Retrieval) -> SearchResult:
        """Give permitted hits in final order, reranked where the retrieval says so."""
        ...


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """One state of an index. ``checked`` is when its source was last checked; ``None``: unknown, never fresh."""

    searcher: Searcher
    snapshot: str
    following: bool = False
    checked: datetime | None = None

    def current(self) -> OpenIndex:
        """Give itself: this state never moves."""
        return self


class LiveIndex(Protocol):
    """What a bundle's retrieval searches. A pinned snapshot is one :class:`OpenIndex`; a followed one may move on."""

    def current(self) -> OpenIndex:
        """Give the state to search now; a plain read."""
        ...


@dataclass(frozen=True)
class World:
    """What assembling needs from outside of the bundle.

    ``open_index`` gets the app, the use's settings, the index's bound address and the bundle's embedder. ``http``
    is needed for models behind HTTP only. ``input_key`` keys the digests of inputs; by default it lasts as long
    as the process, so that digests of different processes cannot be compared.
    """

    open_index: Callable[[str, Retrieval, str | None, Embedder | None], Awaitable[LiveIndex]] | None = None
    make_embedder: Callable[[Embedding], Embedder] | None = None
    http: HttpClient | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    input_key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    make_provider: Callable[[str, Model, ModelBinding, World], Provider] | None = None
    presidio: PresidioProcesses | None = None
    keeps_answers: bool = False
    """Whether answers may be kept, where bindings say so; only then is the key for it fetched."""

    key_sets: KeySets | None = None
    """Token issuers' keys, which outlive releases, and are asked for before one serves; where there are callers."""


@dataclass(frozen=True, slots=True)
class CompiledProfile:
    """Both sides of a profile."""

    input: CompiledGuard
    output: CompiledGuard
    output_max_chars: int
    input_inspectors: tuple[Inspector, ...] = ()
    output_inspectors: tuple[Inspector, ...] = ()


@dataclass(frozen=True, slots=True)
class CompiledTask:
    """A task with all that it names. ``question_input`` is the input that is searched for."""

    name: str
    scopes: tuple[str, ...]
    profiles: Mapping[str, CompiledProfile]
    inputs: tuple[str, ...]
    question_input: str
    prompt: CompiledPrompt
    output: CompiledOutput
    format: str
    schema: Mapping[str, object] | None
    repair: int
    retrieval_use: str | None
    retrieval: Retrieval | None
    index: LiveIndex | None
    stale_after: float | None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A bundle with one environment's bindings, ready to answer. Shared by concurrent requests."""

    app: str
    ref: ReleaseRef
    components: Mapping[str, str]
    tasks: Mapping[str, CompiledTask]
    routes: Mapping[str, CompiledRoute]
    select: RouteTable
    access: AccessPolicy
    identities: KnownIdentities
    limits: CompiledLimits
    caching: CompiledCaching | None
    breakers: Mapping[str, Breaker]
    disabled: frozenset[str]
    prices: PriceBook
    input_key: bytes

    def unhealthy(self, model: str) -> bool:
        """Say whether a model is not asked now: its circuit is open, or the bindings disable it."""
        return model in self.disabled or self.breakers[model].resting(time.monotonic())


async def assemble(bundle: Bundle, bindings: Bindings, ref: ReleaseRef, world: World) -> Compiled:
    """Compile a bundle for an environment.

    Raises:
        VerificationFailed: the bundle refers to something it lacks, or an access case is decided otherwise than it
            expects.
        SourceError: a template, pattern, policy or schema does not compile.
        UsageError: a model has no address in this environment, or its parameters or bindings do not fit.
        NotFound: a credential, an index or the price book that was asked for is missing.
        BackendUnavailable: an index cannot be opened.
    """
    # Compiling takes tens of milliseconds, and this runs on the loop that is answering requests.
    made = await asyncio.to_thread(_compile, bundle, bindings, ref, world)
    if world.key_sets is not None:
        await made.identities.warm()
    parts = bundle.components
    for profile in made.profiles.values():
        for inspector in (*profile.input_inspectors, *profile.output_inspectors):
            await inspector.ready()
    indexes = await _open_indexes(parts, bindings, world)
    return Compiled(
        app=parts.application.app,
        ref=ref,
        components=bundle.component_digests(),
        tasks={name: _task(name, parts, made, indexes) for name in parts.application.tasks},
        routes=made.routes,
        select=RouteTable(parts.routes.select),
        access=made.access,
        identities=made.identities,
        caching=made.caching,
        limits=CompiledLimits(bindings.limits, made.routes, made.prices),
        breakers={name: Breaker() for name in parts.models},
        disabled=frozenset(bindings.disabled_models),
        prices=made.prices,
        input_key=world.input_key,
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """What is compiled of a bundle before its indexes are opened. ``outputs`` by task."""

    access: AccessPolicy
    profiles: Mapping[str, CompiledProfile]
    prompts: Mapping[str, CompiledPrompt]
    outputs: Mapping[str, CompiledOutput]
    routes: Mapping[str, CompiledRoute]
    identities: KnownIdentities
    caching: CompiledCaching | None
    prices: PriceBook


def _compile(bundle: Bundle, bindings: Bindings, ref: ReleaseRef, world: World) -> _Made:
    parts = bundle.components
    _check_bindings(parts, bindings)
    _check_names(parts)
    access = AccessPolicy.compile(parts.access, bundle.blobs)
    _check_cases(access)
    return _Made(
        access=access,
        profiles={name: _profile(name, profile, bindings, world) for name, profile in parts.guardrails.items()},
        prompts={name: CompiledPrompt.compile(name, prompt) for name, prompt in parts.prompts.items()},
        outputs={name: CompiledOutput.compile(output) for name, output in parts.output.items()},
        routes={name: _route(name, route, parts, bindings, world) for name, route in parts.routes.routes.items()},
        identities=_identities(bindings.identities, world),
        caching=compile_caching(bindings.cache, ref, world) if world.keeps_answers else None,
        prices=open_price_book(world.environ),
    )


def _identities(bound: Identities, world: World) -> KnownIdentities:
    if not bound.oidc:
        return KnownIdentities(bound.api_keys)
    from bundlectl.router.key_sets import KeySets
    from bundlectl.router.tokens import Tokens

    return KnownIdentities(bound.api_keys, Tokens(bound.oidc, world.key_sets or KeySets(world.http)))


def _check_bindings(parts: Components, bindings: Bindings) -> None:
    indexes = {retrieval.index for retrieval in parts.retrieval.values()}
    for what, bound, known in (
        ("model", [*bindings.models, *bindings.disabled_models], set(parts.models)),
        ("index", list(bindings.indexes), indexes),
        ("task", bindings.limits.named_tasks(), set(parts.application.tasks)),
        ("route", bindings.limits.named_routes(), set(parts.routes.routes)),
    ):
        unknown = sorted(set(bound) - known)
        if unknown:
            raise UsageError(
                f"The bindings name {what} {', '.join(unknown)}, which the bundle does not have.",
                why=f"It has {', '.join(sorted(known)) or 'none'}.",
                fix="Correct the environment's file; a renamed model or index needs its binding renamed too.",
            )


def _check_cases(access: AccessPolicy) -> None:
    failed = access.run_cases()
    if failed:
        raise VerificationFailed(
            f"{len(failed)} of the bundle's access cases are decided otherwise than they expect.",
            why="; ".join(case.why for case in failed),
            fix="Correct the policies or the cases and build again.",
        )


def _check_names(parts: Components) -> None:
    """Check that everything that is referred to by name is there."""
    tasks = parts.application.tasks.values()
    routes = parts.routes.routes
    uses = [task.retrieval for task in tasks if task.retrieval]
    for what, named, held in (
        ("prompt", [task.prompt for task in tasks], parts.prompts),
        ("profile", [profile for task in tasks for profile in task.profiles], parts.guardrails),
        ("output", list(parts.application.tasks), parts.output),
        ("retrieval", uses, parts.retrieval),
        ("model", [route.model for route in routes.values()], parts.models),
        ("route", [name for route in routes.values() for name in route.fallback], routes),
        ("route", [rule.use for rule in parts.routes.select], routes),
        ("model", [rule.when.unhealthy for rule in parts.routes.select if rule.when], parts.models),
    ):
        for name in named:
            if name is not None and name not in held:
                raise VerificationFailed(f"The bundle refers to the {what} {name}, which it does not have.")


def _profile(name: str, profile: Profile, bindings: Bindings, world: World) -> CompiledProfile:
    return CompiledProfile(
        CompiledGuard.compile(profile.input),
        CompiledGuard.compile(profile.output),
        profile.output.max_chars,
        _inspectors(name, profile.input, bindings, world),
        _inspectors(name, profile.output, bindings, world),
    )


def _inspectors(profile: str, guard: Guard, bindings: Bindings, world: World) -> tuple[Inspector, ...]:
    """Open what looks at text elsewhere: first what sees it on this machine, then what sends it to a service."""
    inspectors: list[Inspector] = []
    if guard.presidio is not None:
        if world.presidio is None:
            raise UsageError(f"Profile {profile} needs Presidio, and no processes for it were opened here.")
        inspectors.append(world.presidio.inspector(guard.presidio))
    if guard.bedrock is not None:
        from bundlectl.inference.apply_guardrail import open_inspector

        name = guard.bedrock.guard
        bound = bindings.guards.get(name)
        if bound is None or world.http is None:
            raise UsageError(
                f"Profile {profile} applies the guardrail {name}, which is not bound in this environment.",
                fix=f'Bind it in the environment\'s file: guards: {{{name}: {{id: abc123, version: "3"}}}}',
            )
        inspectors.append(open_inspector(bound, seconds(guard.bedrock.timeout), world.http, world.environ))
    return tuple(inspectors)


def _task(name: str, parts: Components, made: _Made, indexes: Mapping[str, LiveIndex]) -> CompiledTask:
    task = parts.application.tasks[name]
    inputs = tuple(parts.prompts[task.prompt].inputs)
    output = parts.output[name]
    retrieval = parts.retrieval[task.retrieval] if task.retrieval else None
    return CompiledTask(
        name=name,
        scopes=tuple(task.scopes),
        profiles={profile: made.profiles[profile] for profile in task.profiles},
        inputs=inputs,
        question_input="question" if "question" in inputs or not inputs else inputs[0],
        prompt=made.prompts[task.prompt],
        output=made.outputs[name],
        format=output.format,
        schema=output.schema_,
        repair=output.repair,
        retrieval_use=task.retrieval,
        retrieval=retrieval,
        index=indexes[task.retrieval] if task.retrieval else None,
        stale_after=seconds(retrieval.stale_after) if retrieval and retrieval.stale_after else None,
    )


def _route(name: str, route: Route, parts: Components, bindings: Bindings, world: World) -> CompiledRoute:
    model = parts.models[route.model]
    disabled = route.model in bindings.disabled_models
    binding = bindings.models.get(route.model) or ModelBinding()
    if disabled:
        provider = None
    elif world.make_provider is not None:
        provider = world.make_provider(route.model, model, binding, world)
    else:
        in_jobs = route.mode == "async"
        provider = make_provider(route.model, model, binding, world, bindings.guards, in_jobs=in_jobs)
    return CompiledRoute(
        name=name,
        model_name=route.model,
        model=model,
        provider=provider,
        timeout=seconds(route.timeout),
        first_token=seconds(route.first_token) if route.first_token else None,
        between_tokens=seconds(route.between_tokens) if route.between_tokens else None,
        retries=route.retries,
        fallback=tuple(route.fallback),
        asynchronous=route.mode == "async",
    )


def make_provider(
    name: str,
    model: Model,
    binding: ModelBinding,
    world: World,
    guards: Mapping[str, Mapping[str, Any]],
    *,
    in_jobs: bool = False,
) -> Provider:
    """Open the provider of one model at its bound address; it may wait for AWS, so not on the event loop.

    Raises:
        UsageError: it has no address here, or what is bound or set for it does not fit its provider.
        NotFound: its credential is missing.
        BackendUnavailable: who gives its credential cannot be reached.
    """
    if model.provider == "extractive":
        from bundlectl.inference.extractive import ExtractiveProvider

        return ExtractiveProvider()
    problems = provider_misfits(name, model, binding, guards)
    if problems:
        raise UsageError(
            f"Model {name} cannot be reached as it is bound in this environment.",
            why="; ".join(problems),
            fix=f"Correct models.{name} in the environment's file, e.g. its base_url: https://vllm.internal/v1; "
            f"or list {name} in disabled_models.",
        )
    if world.http is None:
        raise UsageError(f"Model {name} is reached over HTTP, and no HTTP client was opened for it.")
    credential = resolve_credential(binding.credential, world.environ) if binding.credential else None
    if model.provider == "openai":
        from bundlectl.inference.openai import OpenAIProvider

        return OpenAIProvider(world.http, binding.base_url or "", credential)
    if model.provider == "bedrock":
        from bundlectl.inference.bedrock import open_bedrock

        return open_bedrock(name, model, binding, guards, world.http, world.environ, credential, in_jobs=in_jobs)
    from bundlectl.inference.sagemaker import open_sagemaker

    return open_sagemaker(name, binding, world.http, world.environ)


async def _open_indexes(parts: Components, bindings: Bindings, world: World) -> dict[str, LiveIndex]:
    used = sorted({task.retrieval for task in parts.application.tasks.values() if task.retrieval})
    if not used:
        return {}
    if world.open_index is None:
        raise BackendUnavailable("The bundle searches documents, and no index can be opened here.")
    embedder = world.make_embedder(parts.embedding) if parts.embedding and world.make_embedder else None
    opened: dict[str, LiveIndex] = {}
    for use in used:
        retrieval = parts.retrieval[use]
        location = bindings.indexes.get(retrieval.index)
        opened[use] = await world.open_index(parts.application.app, retrieval, location, embedder)
    return opened
