"""`bundlectl serve` as an operator meets it: outages, promotions under load, callers without a right, its end."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest

from bundlectl.actions.bind import bind
from bundlectl.actions.promote import promote
from tests.acceptance.serving import REQUEST, Client, Reply, Serving, serving, wait_for
from tests.support.workspace import APP, Workspace


def test_registry_away_and_back(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    second = work.next_version()
    away = work.registry.with_name("elsewhere")
    with serving(work) as (server, client):
        before = client.ask().json
        assert "30 days" in before["output"]["answer"]
        work.registry.rename(away)
        wait_for(lambda: bool(client.get("/v1/releases").json["releases"][0].get("last_error")), 10)
        assert "is not there" in client.get("/v1/releases").json["releases"][0]["last_error"]
        assert client.ask().json["output"] == before["output"], "an outage stops nothing"
        assert server.stop() == 0
        assert "Traceback" not in server.said
    assert not work.registry.exists(), "nothing is made in place of what is away"

    with serving(work) as (server, client):
        after = client.ask().json
        assert (after["output"], after["release"]) == (before["output"], before["release"])
        assert client.get("/readyz").status == 200
        assert not work.registry.exists()

        away.rename(work.registry)
        work.release("staging")
        work.release("prod")
        wait_for(lambda: client.serial() == 2, 20, lambda: server.said)
        followed = client.ask()
        assert (followed.status, followed.json["release"]["bundle"]) == (200, second)
        state = client.get("/v1/releases").json["releases"][0]
        assert not state.get("last_error")

        # An older head put back is refused by whoever has seen the newer one, after a restart too.
        kept = work.head("prod").read_bytes()
        shutil.copyfile(work.environment_folder("prod") / "history" / "1-0000000000000001.json", work.head("prod"))
        wait_for(lambda: bool(client.get("/v1/releases").json["releases"][0].get("last_error")), 10)
        assert client.serial() == 2
        assert client.ask().json["release"]["bundle"] == second
        assert server.stop() == 0
    _damage(next((work.home / "cache" / "tables").rglob("*.lance/data/*")))
    with serving(work) as (server, client):
        assert "copied again" in server.said
        assert client.serial() == 2, server.said
        assert client.ask().json["release"]["bundle"] == second
        work.head("prod").write_bytes(kept)
        wait_for(lambda: not client.get("/v1/releases").json["releases"][0].get("last_error"), 10)
        assert server.stop() == 0


def _damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_hot_swap_under_requests_and_a_drained_end(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    first = work.quick("status")["environments"][0]["bundle"]
    second = work.next_version()
    ended = threading.Event()
    replies: list[Reply] = []
    broken: list[str] = []

    def load(client: Client) -> None:
        while not ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
            try:
                connection.connect()
            except ConnectionRefusedError:
                return  # it listens no more, and took nothing of ours
            try:
                body = json.dumps(REQUEST).encode()
                connection.request("POST", "/v1/requests", body, {"content-type": "application/json"})
                response = connection.getresponse()
                replies.append(Reply(response.status, {}, response.read().decode()))
            except (http.client.HTTPException, OSError) as error:
                broken.append(repr(error))
            finally:
                connection.close()

    with serving(work, "dev") as (server, client):
        threads = [threading.Thread(target=load, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        context = work.context()
        until = time.monotonic() + 4
        serial = 1
        while time.monotonic() < until:
            bundle = (second, first)[(serial + 1) % 2]
            done = promote(context, f"{APP}@{bundle}", environment="dev", reason="again").released
            assert done is not None
            serial = done.serial
            time.sleep(0.3)
        wait_for(lambda: client.serial() == serial, 10, lambda: server.said)
        swapped = len(replies)
        assert not broken
        assert server.stop() == 0
        ended.set()
        for thread in threads:
            thread.join(20)
        assert "Traceback" not in server.said
    kept = [line for file in (work.home / "receipts").rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert {json.loads(line)["id"] for line in kept} >= {reply.json["receipt"] for reply in replies}
    assert serial >= 5
    assert swapped > 50
    assert {reply.status for reply in replies} == {200}
    served = {(reply.json["release"]["serial"], reply.json["release"]["bundle"]) for reply in replies}
    assert len({number for number, _ in served}) >= 3
    assert served <= {(number, (first, second)[(number + 1) % 2]) for number in range(1, serial + 1)}
    # Asked to end, it takes nothing new and finishes what it took: at most what was in its queue is reset.
    assert len(broken) <= 4, broken


KEY = "a-key-of-acme"


@pytest.fixture(scope="module")
def with_identities(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    work = Workspace.at(tmp_path_factory.mktemp("identities"), live=True)
    file = work.folder / "bound.yaml"
    hashed = hashlib.sha256(KEY.encode()).hexdigest()
    file.write_text(
        "apiVersion: bundlectl/v1\nkind: Bindings\nidentities:\n  api_keys:\n"
        f"    - {{id: acme, hash: 'sha256:{hashed}', tenants: [acme], roles: [customer]}}\n"
    )
    bind(work.context(), f"{APP}:prod", reason="callers", file=file, confirmed="prod")
    return work


def test_callers_and_bodies(with_identities: Workspace) -> None:
    known = {"authorization": f"Bearer {KEY}"}
    with serving(with_identities, "prod", "--host", "0.0.0.0") as (server, client):
        assert "no identities" not in server.said
        _check_callers(client, known)
        _check_bodies(client, known)
        _check_paths(client)
        _check_stream(client, known)
        assert server.stop() == 0
        assert "Traceback" not in server.said
        assert KEY not in server.said


def _check_callers(client: Client, known: dict[str, str]) -> None:
    assert client.ask().status == 401
    assert client.ask({"authorization": "Bearer another"}).status == 401
    assert client.ask({"authorization": f"Basic {KEY}"}).status == 401
    answered = client.ask(known)
    assert answered.status == 200
    assert "30 days" in answered.json["output"]["answer"]
    assert client.ask({"x-api-key": KEY}).status == 200
    for claim in ({"tenant_id": "globex"}, {"user_role": "agent"}, {"data_scope": ["internal_notes"]}):
        refused = client.ask(known, **claim)
        assert refused.status == 403, refused
        assert refused.json["refused"]["code"] == "access_denied"
        assert refused.json.get("output") is None


def _check_bodies(client: Client, known: dict[str, str]) -> None:
    for body in (b"{", b"", b"\xff\xfe", b'{"task": 1, "task": 2}', b"[" * 100_000):
        bad = client.send("POST", "/v1/requests", body, known)
        assert (bad.status, bad.json["error"]) == (400, "bad_json"), body[:20]
    large = client.send("POST", "/v1/requests", b" " * (1024 * 1024 + 1), known)
    assert (large.status, large.json["error"]) == (413, "too_large")
    for changes in ({"tenant_id": None}, {"input": "text"}, {"unknown": 1}, {"task": "no_such_task"}):
        unfit = client.ask(known, **changes)
        assert unfit.status == 422, (changes, unfit)
        assert unfit.json["fields"]
    assert client.ask({**known, "x-app": "another"}).status == 406


def _check_paths(client: Client) -> None:
    assert client.get("/v1/requests").status == 405
    assert client.get("/nowhere").status == 404
    assert client.get("/healthz").json == {"status": "alive"}
    assert client.get("/readyz").status == 200
    document = client.get("/openapi.json").json
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) >= {"/v1/requests", "/v1/releases", "/healthz", "/readyz"}
    [state] = client.get("/v1/releases").json["releases"]
    assert (state["app"], state["environment"], state["ready"]) == (APP, "prod", True)


def _check_stream(client: Client, known: dict[str, str]) -> None:
    streamed = client.ask({**known, "accept": "text/event-stream"})
    assert streamed.status == 200
    events = re.findall(r"^event: (\w+)\ndata: (.+)$", streamed.text, re.MULTILINE)
    assert events[0][0] == "start"
    assert events[-1][0] == "done"
    assert "30 days" in json.loads(events[-1][1])["output"]["answer"]
    denied = client.ask({**known, "accept": "text/event-stream"}, user_role="agent")
    assert denied.status == 403


def test_port_taken(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Serving(work, f"{APP}:prod", "--port", str(port))
        assert server.wait() == 6
    assert f"127.0.0.1:{port}" in server.said
    assert "--port" in server.said
    assert "Traceback" not in server.said


def test_open_host_without_identities(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    server = Serving(work, f"{APP}:prod", "--port", "0", "--host", "0.0.0.0")
    assert server.wait() == 2
    assert "identities" in server.said


def test_nothing_to_serve(tmp_path: Path) -> None:
    """A cold start on a release of another environment ends with 4; on nothing, with 2; on no registry, with 6."""
    work = Workspace.at(tmp_path, live=True)
    shutil.copyfile(work.head("staging"), work.head("prod"))
    ended = Serving(work, f"{APP}:prod", "--port", "0")
    shutil.copytree(work.folder, tmp_path / "empty", symlinks=True)
    empty = Workspace(tmp_path / "empty")
    empty.head("prod").unlink()
    nothing = Serving(empty, f"{APP}:prod", "--port", "0")
    assert ended.wait() == 4, ended.said
    assert nothing.wait() == 2, nothing.said
    shutil.rmtree(work.registry)
    gone = Serving(work, f"{APP}:prod", "--port", "0")
    assert gone.wait() == 6, gone.said
    assert not work.registry.exists()
