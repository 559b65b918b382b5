"""serve: follow one or more environments and answer over HTTP until told to stop."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import uvicorn

from bundlectl.actions.batching import BatchPlace, open_batches
from bundlectl.actions.context import Context
from bundlectl.actions.frozen import Asgi, Frozen
from bundlectl.actions.listening import Graceful, address_of, bind, configured, run
from bundlectl.actions.locating import locate_to_serve
from bundlectl.actions.opening import read_pin
from bundlectl.actions.routing import input_key, receipts_folder
from bundlectl.actions.sharing import open_redis
from bundlectl.actions.tracing import begin_telemetry
from bundlectl.inference.client import HttpClient
from bundlectl.inference.embeddings import Embedder, open_embedder
from bundlectl.inference.presidio import PresidioProcesses
from bundlectl.model.components import Embedding
from bundlectl.model.errors import UsageError
from bundlectl.model.reference import EnvironmentReference, parse_environment
from bundlectl.model.types import format_time
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Event, Resolver
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.router.access_log import AccessLog
from bundlectl.router.assemble import Compiled, World, assemble
from bundlectl.router.cache import AnswerCache, MemoryCache
from bundlectl.router.indexes import Indexes
from bundlectl.router.key_sets import KeySets
from bundlectl.router.limits import Counts
from bundlectl.router.limits_memory import MemoryCounts
from bundlectl.router.loopback import check_bind
from bundlectl.router.metrics import Metrics
from bundlectl.router.propagation import Traced, http_spans, propagator
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from bundlectl.router.telemetry import TracedEmbedder, configured_tracer
from bundlectl.router.turns import AT_ONCE, WAITING, Turns
from bundlectl.storage.store import open_store

if TYPE_CHECKING:
    from bundlectl.router.redis_link import RedisLink


@dataclass(frozen=True)
class Crowd:
    """How many requests are answered at once, and how many more may wait."""

    at_once: int = AT_ONCE
    waiting: int = WAITING


@dataclass(frozen=True)
class Door:
    """Where the server listens, whom it lets in at once, and where a line for each response goes.

    ``frozen``: the process is, between requests.
    """

    host: str
    port: int
    crowd: Crowd
    access_log: Path | None
    frozen: bool


def serve(
    ctx: Context,
    environments: Sequence[str],
    *,
    host: str,
    port: int,
    poll: float,
    crowd: Crowd | None = None,
    access_log: Path | None = None,
    batches: BatchPlace | None = None,
    redis: str | None = None,
    flush_receipts: bool = False,
) -> None:
    """Serve environments until SIGINT or SIGTERM.

    What was verified last is kept on disk: with the registry away, a restart answers from it and goes on
    following once the registry is back.

    Args:
        ctx: the context.
        environments: ``APP:ENV``, one or more.
        host: where to listen; other than loopback only where identities are configured.
        port: where to listen; 0 for any free one.
        poll: seconds between looks at the registry.
        crowd: how many requests are answered at once, and how many may wait.
        access_log: the file that a line for each response is added to; ``-`` for stdout.
        batches: where batches are kept, and how many of their rows are worked on here at once.
        redis: where limits and kept answers are shared with other servers; by default what ``BUNDLECTL_REDIS``
            names, else nowhere.
        flush_receipts: bring receipts to the disk before an answer ends, and look at the registry before a request
            that comes after polls were missed: for a process that is frozen between requests.

    Raises:
        UsageError: the host is not loopback and no identities are configured.
        BackendUnavailable: the registry is away and nothing was kept; or the port is taken.
        VerificationFailed: what is live does not verify and nothing was kept.
    """
    door = Door(host, port, crowd or Crowd(), access_log, flush_receipts)
    run(_serve(ctx, followed(environments), door, poll, batches or BatchPlace(), redis))


def followed(environments: Sequence[str]) -> list[EnvironmentReference]:
    """Read the environments that are to be followed.

    Raises:
        UsageError: one is none, names one release, or is there twice.
    """
    refs = [parse_environment(environment) for environment in environments]
    for ref in refs:
        if ref.serial is not None:
            raise UsageError(f"{ref} names one release.", fix="Name an environment to follow: APP:ENV")
        if refs.count(ref) > 1:
            raise UsageError(f"{ref} is named twice.", fix="Name each environment once.")
    return refs


async def _serve(
    ctx: Context,
    refs: Sequence[EnvironmentReference],
    door: Door,
    poll: float,
    batches: BatchPlace,
    redis: str | None,
) -> None:
    async with AsyncExitStack() as stack:
        listening = bind(door.host, door.port)
        stack.callback(listening.close)
        write = _access_log(ctx, door.access_log, stack) if door.access_log is not None else None
        end_telemetry = begin_telemetry(ctx)
        if end_telemetry is not None:
            stack.push_async_callback(asyncio.to_thread, end_telemetry)
        metrics = Metrics()
        begun = Begun()
        served = await follow(ctx, refs, poll, stack, metrics=metrics, redis=redis, begun=begun)
        note = check_bind(door.host, [one.current() for one in served])
        if note is not None:
            ctx.reporter.warn(note)
        turns = Turns(door.crowd.at_once, door.crowd.waiting)
        # While anybody waits for a turn, no row of a batch begins.
        working = await open_batches(ctx, batches, served, stack, admits=lambda: not turns.queued)
        app: Asgi = Server(served, turns=turns, metrics=metrics, batches=working.api)
        if configured_tracer() is not None:
            app = Traced(app, propagator(ctx.environ))
        if door.frozen:
            app = Frozen(app, begun.logs, begun.resolvers, poll, ctx.clock, ctx.reporter.warn)
        config = configured(app if write is None else AccessLog(app, write))
        await _listen(ctx, Graceful(config, on_exit=working.end), listening, served)


def _access_log(ctx: Context, file: Path, stack: AsyncExitStack) -> Callable[[bytes], None]:
    """Open the access log, and give what takes a line. One that cannot be written is told once, and fails no request.

    Raises:
        UsageError: it cannot be opened.
    """
    if str(file) == "-":
        out: BinaryIO = sys.stdout.buffer
    else:
        try:
            out = stack.enter_context(file.open("ab", buffering=0))
        except OSError as error:
            why = error.strerror or str(error)
            fix = "Name a file that this process may write, or - for stdout."
            raise UsageError(f"The access log {file} cannot be written.", why=why, fix=fix) from error
    failing = False

    def write(line: bytes) -> None:
        nonlocal failing
        try:
            out.write(line)
            out.flush()
            failing = False
        except OSError as error:
            if not failing:
                ctx.reporter.warn(f"the access log {file} cannot be written: {error.strerror or error}")
            failing = True

    return write


@dataclass(frozen=True)
class Begun:
    """What runs for the environments that are followed."""

    logs: list[ReceiptLog] = field(default_factory=list)
    resolvers: list[Resolver[Compiled]] = field(default_factory=list)


@dataclass(frozen=True)
class _Following:
    """What all environments of a process share."""

    ctx: Context
    registry: Registry
    pin: str
    http: HttpClient
    presidio: PresidioProcesses
    key_sets: KeySets
    link: RedisLink | None
    poll: float
    metrics: Metrics
    begun: Begun


async def follow(
    ctx: Context,
    refs: Sequence[EnvironmentReference],
    poll: float,
    stack: AsyncExitStack,
    *,
    metrics: Metrics | None = None,
    redis: str | None = None,
    begun: Begun | None = None,
) -> list[Served]:
    """Start following environments, and give what answers for them until the stack is left.

    Their receipts are counted in ``metrics``; ``begun`` is told what was begun for them.
    """
    link = await asyncio.to_thread(open_redis, ctx, redis, ctx.reporter.warn)
    if link is not None:
        stack.push_async_callback(link.close)
        await link.start()
    # Not ctx.registry: a folder that is away now may come back, and until then the last good serves.
    locate_to_serve(ctx, [(ref.app, ref.environment) for ref in refs])
    registry = Registry(open_store(ctx.locate().url), on_warning=ctx.reporter.warn)
    pin = read_pin(ctx)
    tracer = configured_tracer()
    http = HttpClient(observe=http_spans(tracer, propagator(ctx.environ)) if tracer is not None else None)
    stack.push_async_callback(http.close)
    presidio = await stack.enter_async_context(PresidioProcesses())
    key_sets = KeySets(http, ctx.reporter.warn)
    stack.push_async_callback(key_sets.close)
    following = _Following(
        ctx, registry, pin, http, presidio, key_sets, link, poll, metrics or Metrics(), begun or Begun()
    )
    return [await _follow(following, ref, stack) for ref in refs]


async def _follow(following: _Following, ref: EnvironmentReference, stack: AsyncExitStack) -> Served:
    """Start following one environment; its router answers by whatever its resolver holds."""
    ctx, registry, metrics = following.ctx, following.registry, following.metrics
    log = ReceiptLog(receipts_folder(ctx, ref.app), on_loss=ctx.reporter.warn)
    stack.callback(log.close)
    metrics.logs.append(log)
    following.begun.logs.append(log)
    cache = ctx.workspace / "cache"
    resolver: Resolver[Compiled]
    indexes = Indexes(
        registry,
        ctx.registry_folder,
        lambda: resolver.keyring,
        cache=cache,
        on_warning=ctx.reporter.warn,
    )
    world = World(
        open_index=indexes.open,
        make_embedder=_embedder,
        http=following.http,
        environ=ctx.environ,
        input_key=input_key(ctx),
        key_sets=following.key_sets,
        keeps_answers=True,
        presidio=following.presidio,
    )

    async def prepare(verified: VerifiedBundle) -> Compiled:
        return await assemble(verified.bundle, verified.bindings, verified.ref, world)

    resolver = Resolver(
        registry,
        ref.app,
        ref.environment,
        following.pin,
        prepare,
        state_dir=cache / "releases",
        poll=following.poll,
        clock=ctx.clock,
        on_event=lambda event: _told(ctx, str(ref), event),
        witness=lambda: ctx.locate().witness(ref.app, ref.environment),
    )
    await resolver.start()
    stack.push_async_callback(resolver.stop)
    following.begun.resolvers.append(resolver)

    def warn(what: str) -> None:
        ctx.reporter.warn(f"{format_time(ctx.clock())} {ref}: {what}")

    router = Router(
        resolver.current,
        metrics.of(log),
        ctx.clock,
        ctx.new_id,
        counts=_counts(following.link, ref),
        cache=_cache(following.link, ref, warn),
        on_event=warn,
    )
    return Served(ref.app, ref.environment, resolver.current, router, lambda: resolver.status, resolver)


def _embedder(settings: Embedding) -> Embedder:
    made, tracer = open_embedder(settings), configured_tracer()
    return made if tracer is None else TracedEmbedder(made, settings, tracer)


def _counts(link: RedisLink | None, ref: EnvironmentReference) -> Counts:
    if link is None:
        return MemoryCounts()
    from bundlectl.router.limits_redis import RedisCounts

    return RedisCounts(link, ref.app, ref.environment)


def _cache(link: RedisLink | None, ref: EnvironmentReference, warn: Callable[[str], None]) -> AnswerCache:
    if link is None:
        return MemoryCache()
    from bundlectl.router.cache_redis import RedisCache

    return RedisCache(link, ref.app, ref.environment, warn)


def _told(ctx: Context, name: str, event: Event) -> None:
    """Say what happened to an environment, with the time, in one line whatever it quotes."""
    line = f"{format_time(event.time)} {name}: {event.kind}: {' '.join(event.message.split())}"
    if event.kind in ("serving", "reachable", "resumed"):
        ctx.reporter.say(line)
    else:
        ctx.reporter.warn(line)


async def _listen(ctx: Context, server: uvicorn.Server, listening: socket.socket, served: Sequence[Served]) -> None:
    task = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:
        for one in served:
            ref = one.current().ref
            ctx.reporter.say(f"{ref.app}:{ref.environment} release {ref.serial} {ref.bundle}")
        ctx.reporter.say(f"listening on {address_of(listening)}")
    await task
