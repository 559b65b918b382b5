"""Batches through real processes that are killed: no row is lost, none has two results."""

from __future__ import annotations

import http.client
import json
import secrets
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bundlectl.actions.bind import bind
from bundlectl.model.batch import BatchCounts
from bundlectl.router.batch.journal import Journal
from tests.acceptance.serving import REQUEST, Client, serving, wait_for
from tests.support.aws import stand_in
from tests.support.workspace import APP, Workspace, environment, spawn

LEASE = {"BUNDLECTL_BATCH_LEASE": "2"}


def rows(count: int) -> bytes:
    lines = [{"id": f"q{n}", **REQUEST} for n in range(1, count + 1)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def check(found: list[Any], count: int) -> None:
    assert [row["id"] for row in found] == [f"q{n}" for n in range(1, count + 1)]
    assert {row["state"] for row in found} == {"answered"}
    assert len({row["answer"]["receipt"] for row in found}) == count
    assert all("30 days" in row["answer"]["output"]["answer"] for row in found)


def counted(work: Workspace, batch: str) -> BatchCounts:
    """Look into the journal, without the time that a command takes to start."""
    journal = Journal(work.home / "batches" / "journal.sqlite3", lambda: datetime.now(UTC))
    try:
        return journal.status(batch).counts
    finally:
        journal.close()


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@pytest.mark.timeout(300)
def test_servers_and_workers_that_are_killed(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    count, headers = 300, {"idempotency-key": "nightly"}
    body = rows(count)

    def status(client: Client) -> Any:
        return client.get(f"/v1/batches/{batch}").json

    with serving(work, "prod", env=LEASE) as (server, client):
        accepted = client.send("POST", "/v1/batches", body, headers)
        assert accepted.status == 201, accepted
        batch = accepted.json["id"]
        assert client.send("POST", "/v1/batches", body, headers).json["id"] == batch
        # Killed in the middle of another body too, of which nothing is accepted.
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        connection.putrequest("POST", "/v1/batches")
        connection.putheader("content-length", str(len(body)))
        connection.endheaders(body[: len(body) // 2])
        wait_for(lambda: status(client)["counts"]["answered"] >= 20, 60, lambda: server.said)
        kill(server.process)
        connection.close()

    # A worker beside the journal goes on, until it is killed as well.
    worker = spawn(work.folder, "worker", f"{APP}:prod", stderr=subprocess.DEVNULL, env=environment(**LEASE))
    wait_for(lambda: counted(work, batch).answered >= 40, 60)
    kill(worker)
    before = counted(work, batch)
    assert 40 <= before.answered < count
    assert before.answered + before.running + before.waiting == count

    # Another release answers from here on; rows say which answered them.
    file = work.folder / "bound.yaml"
    file.write_text("apiVersion: bundlectl/v1\nkind: Bindings\nlimits: {tenants: {default: {usd_per_day: 5.0}}}\n")
    bind(work.context(), f"{APP}:prod", reason="another release", file=file, confirmed="prod")
    with serving(work, "prod", env=LEASE) as (server, client):
        assert client.send("POST", "/v1/batches", body, headers).json["id"] == batch
        target = before.answered + 10
        wait_for(lambda: counted(work, batch).answered >= target, 90, lambda: json.dumps(status(client)))
        # Told to stop, it ends or gives back what is under way, and leaves the rest.
        assert server.stop() == 0
        assert "Traceback" not in server.said
    left = counted(work, batch)
    # What the killed worker held is let go once its lease has run out, which may not be yet.
    assert left.running <= before.running
    assert left.waiting > 0
    work.run("worker", f"{APP}:prod", "--until-empty", "--concurrency", "8", timeout=100)
    found = [json.loads(line) for line in work.warm("batch", "results", batch).out.splitlines()]
    check(found, count)
    assert {row["answer"]["release"]["serial"] for row in found} == {1, 2}
    shown = work.warm("batch", "status", batch, "--watch").out
    assert "completed" in shown
    assert f"{count} answered" in shown
    assert len(work.quick("batch", "list")["batches"]) == 1
    told = work.warm("batch", "submit", f"{APP}:prod", "none.jsonl", code=2).err
    assert "cannot be read" in told
    assert "need the queue and a store" in work.warm("batch", "list", "--batch-queue", "sqs:x", code=2).err


@pytest.mark.timeout(300)
def test_workers_of_a_queue_that_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aws = stand_in("moto")
    work = Workspace.at(tmp_path, live=True)
    name, bucket, count = f"rows-{secrets.token_hex(4)}", aws.bucket("batches"), 48
    url = aws.client("sqs").create_queue(QueueName=name)["QueueUrl"]
    env = {
        **aws.environ,
        **LEASE,
        "BUNDLECTL_BATCH_QUEUE": f"sqs:{url}",
        "BUNDLECTL_BATCH_STORE": f"s3://{bucket}/batches",
    }
    (work.folder / "rows.jsonl").write_bytes(rows(count))
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    batch = work.here("batch", "submit", f"{APP}:prod", "rows.jsonl")["id"]

    def done() -> int:
        listed = aws.client("s3").list_objects_v2(Bucket=bucket, Prefix=f"batches/batches/{batch}/tally/")
        return int(listed["KeyCount"])

    def start(at_once: int) -> subprocess.Popen[str]:
        argv = ("worker", f"{APP}:prod", "--until-empty", "--concurrency", str(at_once))
        return spawn(work.folder, *argv, stderr=subprocess.PIPE, env=environment(**env))

    first = start(1)  # slow enough to be killed before it is done
    wait_until(lambda: done() >= 1, first)
    kill(first)
    assert done() < count
    last = start(4)
    said = last.communicate(timeout=100)[1]
    assert last.returncode == 0, said
    assert "Traceback" not in said
    ran = work.warm("batch", "results", batch, env=env)
    check([json.loads(line) for line in ran.out.splitlines()], count)
    told = work.here("batch", "status", batch)
    assert (told["state"], told["queue"]["visible"], told["queue"]["in_flight"]) == ("completed", 0, 0)


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    wait_for(lambda: done() or process.poll() is not None, 60)
    assert process.poll() is None
