"""The switch for a model outage at night: three servers under load leave the model out within one poll."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bundlectl.actions.bind import bind
from bundlectl.actions.build import build
from tests.acceptance.serving import Client, Serving, wait_for
from tests.support.fake_models import FakeModels, Say, fake_models_in_a_thread
from tests.support.workspace import APP, Workspace

POLL = 1.0
SLACK = 20.0
"""Seconds beyond the poll in which a machine with little time to spare verifies and prepares a release."""
REPLICAS = 3


@dataclass(frozen=True)
class Told:
    """An answer: when it was asked for, and by which release and route."""

    at: float
    status: int
    serial: int
    route: str
    degraded: bool


def with_a_model(work: Workspace, fake: FakeModels) -> None:
    """Release a bundle to dev that asks a model first, and quotes where it cannot."""
    work.edit("bundle.yaml", "models:\n", "models:\n  large: {provider: openai, model: big}\n")
    work.edit("bundle.yaml", "  select: ", "  complex: {model: large, timeout: 30s, fallback: [fast]}\n  select: ")
    work.edit("bundle.yaml", "    - {use: fast}", "    - {use: complex}")
    work.edit(
        "environments/dev.yaml", "# models:\n", f'models: {{large: {{base_url: "{fake.base_url}"}}}}\n# models:\n'
    )
    build(work.context(), work.folder)
    work.release("dev")


@contextmanager
def _load(clients: list[Client], told: list[Told]) -> Iterator[None]:
    """Ask every server again and again, each from a thread of its own."""
    ends = threading.Event()

    def ask(client: Client) -> None:
        while not ends.is_set():
            at = time.monotonic()
            reply = client.ask()
            found = reply.json
            told.append(Told(at, reply.status, found["release"]["serial"], found.get("route", ""), "degraded" in found))
            time.sleep(0.02)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ends.set()
        for thread in threads:
            thread.join(30)


def test_every_server_leaves_a_disabled_model_out_within_one_poll(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path)
    with ExitStack() as stack:
        fake = stack.enter_context(fake_models_in_a_thread())
        fake.default = Say('{"answer": "Within 30 days [1].", "citations": [1]}')
        with_a_model(work, fake)
        servers = [Serving(work, f"{APP}:dev", "--port", "0", "--poll", str(POLL)) for _ in range(REPLICAS)]
        for server in servers:
            stack.callback(_kill, server)
        clients = [Client(server.port()) for server in servers]
        told: list[Told] = []
        with _load(clients, told):
            wait_for(lambda: len(told) >= 10 * REPLICAS, 30)
            bind(work.context(), f"{APP}:dev", reason="the provider is out", disable=["large"])
            switched = time.monotonic()
            wait_for(lambda: all(client.serial() == 2 for client in clients), POLL + SLACK)
            took = time.monotonic() - switched
            after = len(told)
            wait_for(lambda: len(told) >= after + 10 * REPLICAS, 30)
        calls = len(fake.requests)
        assert [server.stop() for server in servers] == [0] * REPLICAS
    assert took <= POLL + SLACK
    assert {one.status for one in told} == {200}, "no request failed"
    assert {(one.serial, one.route, one.degraded) for one in told} == {(1, "complex", False), (2, "fast", True)}
    assert max(one.at for one in told if one.serial == 1) <= switched + POLL + SLACK
    receipts = [
        json.loads(line)
        for file in (work.home / "receipts").rglob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    assert len(receipts) == len(told)
    by_serial: dict[int, set[tuple[tuple[str, str], ...]]] = {1: set(), 2: set()}
    for receipt in receipts:
        attempts = tuple((one["model"], one["outcome"]) for one in receipt["attempts"])
        by_serial[receipt["release"]["serial"]].add(attempts)
    assert by_serial == {1: {(("large", "ok"),)}, 2: {(("large", "disabled"), ("quotes", "ok"))}}
    assert calls == sum(one.serial == 1 for one in told), "a release without the model does not call it"


def _kill(server: Serving) -> None:
    if server.process.poll() is None:
        server.process.kill()
        server.wait()
