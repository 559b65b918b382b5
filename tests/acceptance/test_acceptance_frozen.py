"""`serve --flush-receipts`: a process that is frozen between requests leaves nothing undone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bundlectl.actions.bind import bind
from bundlectl.actions.frozen import LOOK_SECONDS, Frozen
from bundlectl.resolver.resolver import Status
from tests.acceptance.serving import Serving, serving
from tests.support.workspace import APP, Workspace

POLL = 1.0


def _on_disk(work: Workspace) -> str:
    return "".join(file.read_text(encoding="utf-8") for file in (work.home / "receipts").rglob("*.jsonl"))


def test_receipts_are_on_disk_and_a_thaw_sees_the_newest_release(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    with serving(work, "prod", "--poll", str(POLL), env={"BUNDLECTL_FLUSH": "1"}) as (server, client):
        for accept in ("application/json", "text/event-stream") * 3:
            said = client.ask({"accept": accept}).text
            receipt = said.rsplit('"receipt":"', 1)[1].split('"')[0]
            assert f'"id":"{receipt}"' in _on_disk(work)
        _freeze(work, server)
        began = time.monotonic()
        answer = client.ask().json
        late = time.monotonic() - began > LOOK_SECONDS
        assert late or answer["release"]["serial"] == 2, "the first request after a thaw is answered by what is live"
        assert answer["receipt"] in _on_disk(work)
        assert server.stop() == 0, server.said


def _freeze(work: Workspace, server: Serving) -> None:
    """Stop the process as Lambda does, and release something while it does not see it."""
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        file = work.folder / "more.yaml"
        file.write_text(
            "apiVersion: bundlectl/v1\nkind: Bindings\nlimits: {tenants: {default: {requests_per_minute: 500}}}\n"
        )
        bind(work.context(), f"{APP}:prod", reason="while it sleeps", file=file, confirmed="prod")
        time.sleep(POLL * 2.5)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


@dataclass
class Bench:
    """A clock, a log and a resolver that tell what was done."""

    now: datetime = datetime(2026, 11, 23, tzinfo=UTC)
    done: list[str] = field(default_factory=list)
    status: Status = field(default_factory=Status)
    takes: float = 0.0

    def flush(self) -> None:
        self.done.append("flush")

    async def poll_now(self) -> None:
        self.done.append("look")
        await asyncio.sleep(self.takes)
        self.status = Status(last_poll=self.now)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async def send(self, message: Any) -> None:
        self.done.append(message.get("body", b"head").decode())

    async def ask(self, frozen: Frozen, method: str = "POST") -> list[str]:
        self.done.clear()
        await frozen({"type": "http", "method": method}, None, self.send)  # type: ignore[arg-type]
        return list(self.done)

    def frozen(self) -> Frozen:
        return Frozen(self.answer, [self], [self], 5.0, lambda: self.now, self.done.append)


async def test_the_order_of_things() -> None:
    bench = Bench()
    frozen = bench.frozen()
    assert await bench.ask(frozen) == ["look", "head", "one", "flush", "two"]
    assert await bench.ask(frozen) == ["head", "one", "flush", "two"], "polls are not due"
    bench.now += timedelta(seconds=60)
    assert await bench.ask(frozen, "GET") == ["head", "one", "two"]
    assert (await bench.ask(frozen))[0] == "look"


async def test_an_outage_of_the_registry_is_met_once_and_not_by_every_request(monkeypatch: Any) -> None:
    monkeypatch.setattr("bundlectl.actions.frozen.LOOK_SECONDS", 0.05)
    bench = Bench(takes=30.0)
    frozen = bench.frozen()
    found = [await bench.ask(frozen) for _ in range(2)]
    assert [one.count("look") for one in found] == [1, 0] and all(one[-1] == "two" for one in found)
    assert frozen._look is not None
    frozen._look.cancel()
    await asyncio.wait({frozen._look})
    assert "look" not in await bench.ask(frozen), "and not again before a poll is due"
