"""How many calls a verb makes to AWS, and how many of them one after the other, at 10 and at 100,000 releases.

The registry is `ssm:/bundlectl/<name>`, so Parameter Store's locator and witness are counted too. boto3 runs whole;
in place of the network a hook (``before-send``) answers each request from memory, 20 ms late. The depth is the
longest run of calls of which none began before the one before it had ended. prod asks for provenance, an evaluation,
an approval and a soak in staging. "first" is a machine that has never seen the registry; "known" keeps its keyring.
At 100,000 releases the names of all former releases and as many bundles are there, and the last ten releases whole: a
list of what a verb must not list would be a hundred calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import boto3
from botocore.awsrequest import AWSResponse

from bundlectl.actions.context import Context
from bundlectl.actions.locating import registry_locate
from bundlectl.actions.promote import promote
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import status
from bundlectl.model.keyring import Soak
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Resolver
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import AlreadyThere, KeyMissing, SwapLost, open_store
from bundlectl.trust.signers import Signer
from tests.benchmarks.measure import Effort, Result
from tests.support.world import World, default_gates, signer

LATE = 0.02
BUCKET = "registry"
NAME = "ssm:/bundlectl/team"
FEW, MANY = 10, 100_000
HOPED = {
    "promote": (14, 8),
    "rollback": (8, 6),
    "cold resolve": (5, 4),
    "unchanged poll": (1, 1),
}
"""Calls and depth that issue 3 asks of each."""


@dataclass
class Cloud:
    """S3 and Parameter Store in memory, behind botocore's own hook; every request is counted and late."""

    store: MemoryStore
    parameters: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, float, float]] = field(default_factory=list)
    late: float = LATE
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> tuple[int, int, str]:
        """Give calls, depth and what was called since the last time."""
        calls, self.calls = self.calls, []
        depth, free = 0, 0.0
        for _, began, ended in sorted(calls, key=lambda call: call[2]):
            if began >= free:
                depth, free = depth + 1, ended
        names = [name for name, _, _ in calls]
        return len(calls), depth, ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names)))

    def answer(self, request: Any, **_: Any) -> AWSResponse:
        """Answer one request of botocore; the name of the operation is in the request's context."""
        began = time.perf_counter()
        time.sleep(self.late)
        parts = urlsplit(request.url)
        if "X-Amz-Target" in request.headers:
            name = str(_text(request.headers["X-Amz-Target"])).rpartition(".")[2]
            status_, headers, body = self._parameter(name, json.loads(request.body))
        else:
            key = unquote(parts.path).removeprefix(f"/{BUCKET}").removeprefix("/")
            name = "List" if request.method == "GET" and "list-type" in parts.query else request.method.capitalize()
            status_, headers, body = self._object(request, name, key, parse_qs(parts.query))
        with self._lock:
            self.calls.append((name, began, time.perf_counter()))
        return AWSResponse(request.url, status_, headers, _Raw(body))

    def _parameter(self, name: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        if name == "PutParameter":
            self.parameters[asked["Name"]] = asked["Value"]
            return 200, {}, b'{"Version": 1}'
        found = [{"Name": one, "Value": self.parameters[one]} for one in asked["Names"] if one in self.parameters]
        return 200, {}, json.dumps({"Parameters": found}).encode()

    def _object(
        self, request: Any, name: str, key: str, query: dict[str, list[str]]
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {name.lower(): _text(value) for name, value in request.headers.items()}
        try:
            if name == "List":
                after = query.get("continuation-token", query.get("start-after", [""]))[0]
                return 200, {}, self._page(query.get("prefix", [""])[0], after)
            if name == "Put":
                data = request.body if isinstance(request.body, bytes) else request.body.read()
                if headers.get("if-none-match") == "*":
                    tag = self.store.create(key, data)
                else:
                    tag = self.store.swap(key, data, headers["if-match"].strip('"'))
                return 200, {"ETag": f'"{tag}"'}, b""
            stored = self.store.get(key)
            if headers.get("if-none-match", "").strip('"') == stored.tag:
                return 304, {}, b""
            size = {"ETag": f'"{stored.tag}"', "Content-Length": str(len(stored.data))}
            return 200, size, b"" if name == "Head" else stored.data
        except KeyMissing:
            return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"
        except (AlreadyThere, SwapLost):
            return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"

    def _page(self, prefix: str, after: str) -> bytes:
        folder = prefix.rpartition("/")[0]
        keys = (key for key in self.store.list(f"{folder}/" if folder else "", after) if key.startswith(prefix))
        page = list(islice(keys, 1001))
        more = f"<NextContinuationToken>{escape(page[999])}</NextContinuationToken>" if len(page) > 1000 else ""
        listed = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in page[:1000])
        return f"<R><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{listed}</R>".encode()


class _Raw:
    """The body of a response, as botocore reads it."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def read(self, amt: int | None = None, **_: Any) -> bytes:
        taken = self._left if amt is None else self._left[:amt]
        self._left = self._left[len(taken) :]
        return taken

    def stream(self, *_: Any, **__: Any) -> Iterator[bytes]:
        yield self.read()

    def close(self) -> None:
        """Nothing to close."""


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


@dataclass
class Keyed(Context):
    """A context that signs with the world's keys."""

    def signer(self, role: str) -> Signer:
        return signer(role)


def world_with(releases: int) -> World:
    """Make a registry whose prod is at that serial: the last ten releases are real, the rest only their names."""
    evaluated = default_gates()["prod"].model_copy(update={"expires_after": "90d"})
    gates = {
        **default_gates(),
        "prod": evaluated.model_copy(update={"soak": Soak(environment="staging", at_least="1m")}),
    }
    store = MemoryStore()
    world = World(store, gates=gates)
    first = releases - 9
    for n in range(10):
        world.promote("prod", world.bundle(f"v{n}"), **({"serial": first} if n == 0 else {}))
    for serial in range(1, first):
        store.create(f"apps/support/environments/prod/history/1-{serial:016d}.json", b"")
        store.create(f"apps/support/packs/{hashlib.sha256(str(serial).encode()).hexdigest()}", b"")
    return world


@contextmanager
def clouded(world: World) -> Iterator[Cloud]:
    """Lead boto3 to the world's store for a while, and publish its locator."""
    assert isinstance(world.store, MemoryStore)
    cloud = Cloud(world.store, late=0)
    make = boto3.session.Session.client
    kept: dict[str, Any] = {}

    def client(self: Any, service: str, **settings: Any) -> Any:
        # One of each: what it takes to make one is no call.
        if service not in kept:
            kept[service] = make(self, service, **settings)  # type: ignore[call-overload]
            kept[service].meta.events.register(f"before-send.{service}", cloud.answer)
        return kept[service]

    aws = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "eu-central-1"}
    aws |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_CONFIG_FILE": os.devnull}
    here = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, aws),
        patch.object(boto3.session.Session, "client", client),
    ):
        os.chdir(folder)
        try:
            pinned = {"BUNDLECTL_PIN": world.pin}
            registry_locate(Keyed(f"s3://{BUCKET}", world.now, lambda: "id", environ=pinned), NAME)
            cloud.calls.clear()
            cloud.late = LATE
            yield cloud
        finally:
            os.chdir(here)


def aws_calls(effort: Effort) -> list[Result]:
    # Time is taken of the second: what is imported late is there by then, and the stand-in lists in no time.
    counted = {releases: _counts(releases) for releases in (MANY, FEW)}
    results = []
    for name in counted[FEW]:
        hoped = HOPED.get(name.partition(",")[0])
        calls, depth, names = counted[MANY][name][:3]
        for part, what in enumerate(("calls", "depth")):
            ours, against = (calls, depth)[part], counted[FEW][name][part]
            note = f"with {MANY:,} releases, against {FEW}" + (f"; hoped for: <= {hoped[part]}" if hoped else "")
            results.append(Result(f"AWS {what}, {name}", ours, against, ours / against, what, f"{note}; {names}"))
        ours = counted[FEW][name][3]
        note = f"every call {LATE * 1000:.0f} ms late, against"
        for kind, waits, what in (
            ("calls", calls, f"all {calls} calls one after the other"),
            ("depth", depth, f"the {depth} of them that wait for each other"),
        ):
            against = waits * LATE
            results.append(
                Result(f"AWS wall time by {kind}, {name}", ours, against, ours / against, "s", f"{note} {what}")
            )
    return results


def _counts(releases: int) -> dict[str, tuple[int, int, str, float]]:
    world = world_with(releases)
    fresh, other, third = (world.bundle(text) for text in ("the next", "the one after", "the last"))
    world.promote("staging", fresh)
    world.tick(hours=1)
    found: dict[str, tuple[int, int, str, float]] = {}
    with clouded(world) as cloud:

        def context() -> Context:
            """A new command: it remembers nothing of the one before but what is on the disk."""
            return Keyed(NAME, world.now, lambda: "id")

        def count(name: str, work: Any) -> None:
            cloud.take()
            began = time.perf_counter()
            work()
            found[name] = (*cloud.take(), time.perf_counter() - began)

        def forget() -> None:
            for file in Path(".bundlectl/cache").glob("keyrings.*"):
                file.unlink()

        forget()
        count("promote, first", lambda: _promote(context(), fresh.digest))
        count("rollback, known", lambda: rollback(context(), "support:prod", reason="measured"))
        forget()
        count("rollback, first", lambda: rollback(context(), "support:prod", reason="measured"))
        count("status, known", lambda: status(context(), "support"))
        cloud.late = 0
        world.promote("staging", other)
        world.tick(hours=1)
        cloud.late = LATE
        count("promote, known", lambda: _promote(context(), other.digest))
        cloud.late = 0
        world.promote("staging", third)
        world.tick(hours=1)
        cloud.late = LATE
        count("promote, by environment", lambda: _promote(context(), "staging"))
        asyncio.run(_resolve(world, cloud, found))
    return found


def _promote(ctx: Context, what: str) -> None:
    reference = f"support@{what}" if what.startswith("sha256:") else f"support:{what}"
    promote(ctx, reference, environment="prod", reason="measured")


async def _resolve(world: World, cloud: Cloud, found: dict[str, tuple[int, int, str, float]]) -> None:
    async def prepare(verified: VerifiedBundle) -> VerifiedBundle:
        return verified

    cloud.take()
    began = time.perf_counter()
    ctx = Keyed(NAME, world.now, lambda: "id")
    located = ctx.locate(("support", "prod"))
    assert located.locator is not None
    resolver = Resolver(
        Registry(open_store(located.url)),
        "support",
        "prod",
        located.locator.pin,
        prepare,
        clock=world.now,
        poll=3600,
        witness=lambda: located.witness("support", "prod"),
    )
    await resolver.start()
    try:
        found["cold resolve"] = (*cloud.take(), time.perf_counter() - began)
        began = time.perf_counter()
        await resolver.poll_now()
        found["unchanged poll"] = (*cloud.take(), time.perf_counter() - began)
    finally:
        await resolver.stop()
