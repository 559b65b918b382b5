"""The HTTP server under load: how long callers wait, first tokens, tracing, memory, many at once, hot swaps.

Three processes, as in :mod:`tests.benchmarks.router_over_http`.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from tests.benchmarks.http_raw import call
from tests.benchmarks.measure import Effort, Result, paired
from tests.benchmarks.router_over_http import CONNECTIONS, Process, requests, started
from tests.support.answering import contract

PAGE = os.sysconf("SC_PAGE_SIZE")
AT_ONCE = 1000
SLOW = 2.0


@contextmanager
def servers(*apps: str, model_seconds: float = 0.0) -> Iterator[list[Process]]:
    """Run servers, one processor for all of them where there are two, before one model server."""
    here = sorted(os.sched_getaffinity(0))
    server, rest = ({here[0]}, set(here[1:])) if len(here) > 1 else (set(here), set(here))
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, here)
        os.sched_setaffinity(0, rest)
        models = stack.enter_context(started("tests.benchmarks.http_raw", str(model_seconds), processors=rest))
        url = f"http://127.0.0.1:{models.port}/v1"
        yield [
            stack.enter_context(started("tests.benchmarks.http_server", app, url, processors=server)) for app in apps
        ]


def megabytes(process: Process, *, most: bool = False) -> float:
    """Give the memory that a process holds, or the most it ever held."""
    if most:
        for line in Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE / 2**20


def router_under_load(effort: Effort) -> list[Result]:
    results = [*waiting_times(effort), first_token(effort), tracing(effort), memory(effort), many_at_once(effort)]
    return [*results, *swaps(effort)]


def waiting_times(effort: Effort) -> list[Result]:
    """Measure p50 and p99 from 16 and 64 connections that each send as soon as they are answered."""
    sent, results = requests(), []
    with servers("ours", "bare") as (ours, bare):
        for connections in (16, 64):
            found: dict[int, list[tuple[float, float]]] = {ours.port: [], bare.port: []}
            for turn in range(effort.of(5, 15) + 1):
                for process in (ours, bare) if turn % 2 else (bare, ours):
                    waited: list[float] = []
                    uvloop.run(call(process.port, sent, 1.0, connections, waited))
                    if turn:
                        cuts = statistics.quantiles(waited, n=100)
                        found[process.port].append((cuts[49] * 1e3, cuts[98] * 1e3))
            pairs = list(zip(found[ours.port], found[bare.port], strict=True))
            for at, name in enumerate(("p50", "p99")):
                results.append(
                    paired(
                        f"router over HTTP, {name} at {connections} connections",
                        "ms",
                        "full load, so it is the queue that is waited for; against the bare pass-through",
                        [(a[at], b[at]) for a, b in pairs],
                    )
                )
    return results


def first_token(effort: Effort) -> Result:
    """Measure from sending to the first text of a stream, one request at a time."""
    request = contract("chat", "How do I promote release 7?", policy_profile="guarded")
    body = json.dumps(request.model_dump(mode="json", exclude_none=True)).encode()
    head = b"POST /v1/requests HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\ncontent-length: %d\r\n\r\n"
    ours_sends = head % len(body) + body
    plain = b'{"stream":true,"messages":[]}'.ljust(len(body))
    bare_sends = head % len(plain) + plain
    count = effort.of(150, 2000)
    with servers("ours", "bare_stream") as (ours, bare):
        turns = []
        for turn in range(6):
            mine = uvloop.run(_first_texts(ours.port, ours_sends, b"event: delta", count))
            theirs = uvloop.run(_first_texts(bare.port, bare_sends, b"data: ", count))
            if turn:
                turns.append((mine, theirs))
    return paired(
        "router over HTTP, time to first token",
        "ms",
        "from sending to the first text, which the guard releases once it has seen a window of 464 characters; the "
        "model gives 480 at once, and the rest 20 ms later; against a bare pass-through of the stream",
        turns,
    )


async def _first_texts(port: int, request: bytes, mark: bytes, count: int) -> float:
    """Give the median milliseconds until ``mark`` comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    waited = []
    for _ in range(count):
        began = time.perf_counter()
        writer.write(request)
        data = b""
        while mark not in data:
            data += await _some(reader)
        waited.append(time.perf_counter() - began)
        while not data.endswith(b"0\r\n\r\n"):
            data += await _some(reader)
    writer.close()
    return statistics.median(waited) * 1e3


async def _some(reader: asyncio.StreamReader) -> bytes:
    part = await reader.read(65_536)
    if not part:
        raise RuntimeError("the server closed the connection")
    return part


def tracing(effort: Effort) -> Result:
    """Measure what spans cost."""
    sent, pairs = requests(), []
    with servers("traced", "ours") as (traced, plain):
        for turn in range(effort.of(5, 15) + 1):
            found = []
            for process in (traced, plain):
                before = process.cpu()
                done, _ = uvloop.run(call(process.port, sent, 1.0, CONNECTIONS))
                found.append((process.cpu() - before) / done * 1e6)
            if turn:
                pairs.append((found[0], found[1]))
    note = "spans of OpenTelemetry's SDK in batches, exported to nowhere; against telemetry off"
    return paired("router over HTTP, server CPU with telemetry", "µs/request", note, pairs)


def memory(effort: Effort) -> Result:
    """Measure memory while requests go by: first and last of ten readings, and the slope of the last eight."""
    count = effort.of(10_000, 200_000)
    sent, done, readings = requests(), 0, []
    with servers("ours") as [ours]:
        while done < count:
            more, _ = uvloop.run(call(ours.port, sent, 0.5, CONNECTIONS))
            done += more
            readings.append((done, megabytes(ours)))
    marks = [min(readings, key=lambda r: abs(r[0] - count * n / 10)) for n in range(1, 11)]
    slope = statistics.linear_regression([n / 1000 for n, _ in marks[2:]], [mb * 1024 for _, mb in marks[2:]]).slope
    note = f"after {done:,} requests, against after {marks[0][0]:,}; slope {slope:.2f} KiB per 1,000 requests"
    return Result("router over HTTP, memory", marks[-1][1], marks[0][1], marks[-1][1] / marks[0][1], "MiB", note)


def many_at_once(effort: Effort) -> Result:
    """Send 1,000 requests at once to a model that takes two seconds."""
    with servers("ours", model_seconds=SLOW) as [ours]:
        uvloop.run(call(ours.port, requests(), 0.0, 1))
        before = megabytes(ours)
        done, took = uvloop.run(call(ours.port, requests(), 0.0, AT_ONCE))
        most = megabytes(ours, most=True)
    note = f"{done:,} of {AT_ONCE:,} requests at once served, against the model's 2 s; "
    note += f"{before:.0f} MiB before, at most {most:.0f}"
    return Result("router over HTTP, 1,000 at once", took, SLOW, took / SLOW, "s", note)


def swaps(effort: Effort) -> list[Result]:
    """Swap the release every second under load; an answer and the release it names must be of one piece."""
    seconds = effort.of(5, 60)
    serials: set[int] = set()
    mixed = 0

    def seen(body: bytes) -> None:
        nonlocal mixed
        answer = json.loads(body)
        serials.add(answer["release"]["serial"])
        mixed += answer["output"] != str(answer["release"]["serial"])

    with servers("swapping") as [ours]:
        done, took = uvloop.run(call(ours.port, requests(), seconds, CONNECTIONS, seen=seen))  # a failed one raises
    note = f"{len(serials)} releases in {took:.0f} s under load, 0 of {done:,} requests failed"
    return [Result("hot swap every second, answers of two releases", mixed, done, mixed / done, "answers", note)]
