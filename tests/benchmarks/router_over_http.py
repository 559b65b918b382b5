"""The router over HTTP against a bare pass-through: requests a second, and the server's own time for each.

Three processes: a model server that answers at once, the server that is measured, and this one, which calls it
from 32 connections. The server has a processor of its own where the machine has two. The path is without
retrieval and with everything else: 50 tenants, access rules, guards on both sides, a receipt on disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.benchmarks.answer_in_process import ROOT
from tests.benchmarks.http_raw import call
from tests.benchmarks.measure import Effort, Result, paired
from tests.support.answering import contract

CONNECTIONS = 32
HEAD = b"POST /v1/requests HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    port: int
    pid: int

    def cpu(self) -> float:
        """Give the seconds of processor time that it has used, all threads together; in steps of 1/TICK."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK


@contextmanager
def started(module: str, *argv: str, processors: set[int]) -> Iterator[Process]:
    """Run a module that prints its port and ends with its standard input."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        os.sched_setaffinity(process.pid, processors)
        try:
            yield Process(int(process.stdout.readline()), process.pid)
        finally:
            process.stdin.close()


def requests() -> list[bytes]:
    """Give requests of 50 tenants, each with a question of its own."""
    made = []
    for n in range(500):
        question = f"How do I promote release {n} of the support app to production?"
        request = contract("chat", question, tenant_id=f"tenant-{n % 50}", policy_profile="guarded")
        body = json.dumps(request.model_dump(mode="json", exclude_none=True)).encode()
        made.append(HEAD % len(body) + body)
    return made


def router_over_http(effort: Effort) -> list[Result]:
    rounds, length = effort.of(10, 30), effort.of(1, 5)
    here = sorted(os.sched_getaffinity(0))
    server, rest = ({here[0]}, set(here[1:])) if len(here) > 1 else (set(here), set(here))
    sent = requests()

    def measured(process: Process, seconds: float) -> tuple[float, float]:
        """Give requests a second, and microseconds of the server's time for each."""
        before = process.cpu()
        done, took = uvloop.run(call(process.port, sent, seconds, CONNECTIONS))
        return done / took, (process.cpu() - before) / done * 1e6

    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, here)
        os.sched_setaffinity(0, rest)
        models = stack.enter_context(started("tests.benchmarks.http_raw", processors=rest))
        url = f"http://127.0.0.1:{models.port}/v1"
        ours, bare = (
            stack.enter_context(started("tests.benchmarks.http_server", which, url, processors=server))
            for which in ("ours", "bare")
        )
        for process in (ours, bare):
            measured(process, 0.5)
        pairs = []
        for turn in range(rounds):
            if turn % 2:
                against = measured(bare, length)
                pairs.append((measured(ours, length), against))
            else:
                pairs.append((measured(ours, length), measured(bare, length)))
    note = "no retrieval, telemetry off, against raw ASGI and one aiohttp session; hoped for: "
    return [
        paired("router over HTTP, requests", "1/s", note + ">= 0.5", [(a[0], b[0]) for a, b in pairs]),
        paired("router over HTTP, server CPU", "µs/request", note + "<= 2", [(a[1], b[1]) for a, b in pairs]),
    ]
