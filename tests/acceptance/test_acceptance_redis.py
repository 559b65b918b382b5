"""Two `bundlectl serve` with one Redis: limits and kept answers are shared, and its death stops nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

from bundlectl.actions.bind import bind
from tests.acceptance.serving import serving, wait_for
from tests.support.redis_server import redis_server
from tests.support.workspace import APP, Workspace

RATE = 4


def test_two_servers_share_what_redis_holds_and_outlive_it(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    bindings = {
        "apiVersion": "bundlectl/v1",
        "kind": "Bindings",
        "cache": {"ttl": "10m"},
        "limits": {"tenants": {"default": {"requests_per_minute": RATE}}},
    }
    file = tmp_path / "limited.yaml"
    file.write_text(json.dumps(bindings), encoding="utf-8")
    bind(work.context(), f"{APP}:prod", reason="limits", file=file, confirmed="prod")
    with redis_server() as redis:
        address = tmp_path / "redis-address"
        address.write_text(redis.url, encoding="utf-8")
        named = ("--redis", f"file:{address}")
        with serving(work, "prod", *named) as (one, a), serving(work, "prod", *named) as (two, b):
            began = time.monotonic()
            found = [client.ask() for _ in range(6) for client in (a, b)]
            refilled = (time.monotonic() - began) * RATE / 60
            passed = sum(reply.status == 200 for reply in found)
            assert RATE <= passed <= RATE + refilled + 1 < 2 * RATE, one.said
            assert {reply.status for reply in found} == {200, 429}
            assert 1 <= int(next(reply for reply in found if reply.status == 429).headers["retry-after"]) <= 15
            answers = [reply.json for reply in found if reply.status == 200]
            hits = [answer for answer in answers if answer.get("cache") == "hit"]
            assert hits and {answer["cached_from"] for answer in hits} <= {answer["receipt"] for answer in answers}
            other = a.ask(tenant_id="zenith")
            assert other.status == 200 and "cache" not in other.json, "nothing is shared between tenants"
            redis.kill()
            assert [a.ask().status for _ in range(RATE)] == [200] * RATE, "each process counts for itself"
            assert b.ask().status == 200
            wait_for(lambda: "Redis cannot be used" in one.said, 10)
            redis.start()
            wait_for(lambda: "Redis can be used again" in one.said, 20, lambda: one.said)
            assert a.ask().status == 200
            assert one.stop() == 0 and two.stop() == 0
            assert str(redis.port) not in one.said + two.said
