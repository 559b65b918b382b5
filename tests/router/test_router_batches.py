"""Batches: the journal's rules, the workers, and the endpoints on a real socket with a model server behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.actions.batching import BatchPlace, open_batches, settings_of
from bundlectl.actions.context import Context, Silent
from bundlectl.model.batch import BatchHeader, BatchOwner, BatchResult
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.router.batch import intake
from bundlectl.router.batch.book import KEEP, WINDOW, BadRows, BatchMissing, KeyTaken, NewRow, Settings, batch_id
from bundlectl.router.batch.http import BatchApi
from bundlectl.router.batch.intake import Intake, Submission
from bundlectl.router.batch.journal import Journal
from bundlectl.router.batch.workers import LocalWorkers, backoff
from bundlectl.router.identity import LOCAL, Identity
from bundlectl.router.served import Served
from bundlectl.router.server import Server
from tests.router.test_router_server import IDENTITIES, KEY, OTHER, serving
from tests.support.answering import Setting, contract, parts, setting
from tests.support.fake_models import Fail, FakeModels, Say, Stall, fake_models, throttle

START = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
SOURCE = ("support", "prod")
QUICK = Settings(concurrency=4, attempts=4, lease=30.0, first_pause=0.02, longest_pause=0.05, idle=0.05, grace=5.0)


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@contextlib.contextmanager
def journal_at(path: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Iterator[Journal]:
    journal = Journal(path, clock)
    try:
        yield journal
    finally:
        journal.close()


def accept(
    journal: Any, rows: int, clock: Clock, *, key: str | None = None, body: str = "sha256:" + "0" * 64
) -> BatchHeader:
    upload = journal.begin()
    journal.add(upload, [NewRow(n, f"r{n}", b"{}") for n in range(1, rows + 1)])
    header = BatchHeader(
        id=batch_id(*SOURCE, "a", key),
        app=SOURCE[0],
        environment=SOURCE[1],
        owner=BatchOwner(name="a", tenants=["acme"], roles=["*"]),
        created=clock.now,
        expires=clock.now + timedelta(seconds=WINDOW),
        rows=rows,
        body=body,
        upload=upload,
        claims=[("acme", "agent")],
    )
    held, new = journal.accept(header)
    if not new:
        journal.discard(upload)
    return held


def result(line: int, state: Any = "answered", text: str = "one") -> BatchResult:
    error = {"error": text, "message": "", "why": "", "fix": ""}
    return BatchResult(id=f"r{line}", line=line, state=state, status=200, attempts=1, finished=START, error=error)


# ---------------------------------------------------------------- the journal


def test_the_first_result_stays_and_leases_run_out(tmp_path: Path) -> None:
    clock = Clock()
    with journal_at(tmp_path / "j.sqlite3", clock) as journal:
        header = accept(journal, 3, clock)
        assert journal.status(header.id).state == "waiting"
        [one, two] = journal.claim("w1", 2, [SOURCE], QUICK)
        assert journal.status(header.id).counts.running == 2
        assert [row.line for row in journal.claim("w2", 5, [SOURCE], QUICK)] == [3]
        assert journal.claim("w2", 5, [SOURCE], QUICK) == [] == journal.claim("w2", 5, [("other", "prod")], QUICK)
        clock.pass_(20)
        journal.extend("w1", [one], QUICK.lease)
        clock.pass_(15)  # the leases of rows 2 and 3 have run out
        again = journal.claim("w3", 5, [SOURCE], QUICK)
        assert sorted(row.line for row in again) == [2, 3]
        assert journal.finish(again[0], result(again[0].line, text="first"), 0.25)
        late = two if again[0].line == 2 else again[1]
        assert journal.finish(late, result(late.line, text="late"), 0.5) is (late.line != again[0].line)
        journal.finish(one, result(1), 0.0)
        journal.finish(again[1], result(again[1].line), 0.0)
        done = journal.status(header.id)
        assert (done.state, done.counts.answered, done.usd) == ("completed", 3, 0.75)  # what was spent was spent
        lines = [json.loads(data) for _, data in journal.page(header.id, 0, 10)]
        assert [line["line"] for line in lines] == [1, 2, 3]
        assert [line["error"]["error"] for line in lines if line["line"] == again[0].line] == ["first"]
        assert [number for number, _ in journal.page(header.id, 1, 1)] == [2]


def test_a_row_that_no_worker_survives_fails(tmp_path: Path) -> None:
    clock = Clock()
    with journal_at(tmp_path / "j.sqlite3", clock) as journal:
        header = accept(journal, 1, clock)
        for _ in range(QUICK.starts):
            assert len(journal.claim("w", 1, [SOURCE], QUICK)) == 1
            clock.pass_(QUICK.lease + 1)
        assert journal.claim("w", 1, [SOURCE], QUICK) == []
        assert journal.status(header.id).state == "completed"
        [(_, data)] = journal.page(header.id, 0, 10)
        assert json.loads(data)["error"]["error"] == "worker_lost"


def test_giving_back_is_no_loss_and_pauses_grow(tmp_path: Path) -> None:
    clock = Clock()
    with journal_at(tmp_path / "j.sqlite3", clock) as journal:
        header = accept(journal, 1, clock)
        for attempt in range(QUICK.starts * 2):
            [row] = journal.claim("w", 1, [SOURCE], QUICK)
            assert row.attempts == attempt
            journal.put_back(row, "w", pause=5.0, asked=True, usd=None)
            assert journal.claim("w", 1, [SOURCE], QUICK) == []
            clock.pass_(5.1)
        waits = []
        for _ in range(4):
            journal.pause(header.id, 2.0, 10.0)
            paused = journal.status(header.id).paused_until
            assert paused is not None
            waits.append((paused - clock.now).total_seconds())
            assert journal.claim("w", 1, [SOURCE], QUICK) == []
            clock.pass_(waits[-1] + 1)
        assert [round(wait) for wait in waits] == [2, 4, 8, 10]
        assert journal.status(header.id).usd is None  # a price was not known


def test_cancel_expiry_and_sweeping(tmp_path: Path) -> None:
    clock = Clock()
    with journal_at(tmp_path / "j.sqlite3", clock) as journal:
        first = accept(journal, 2, clock)
        [row] = journal.claim("w", 1, [SOURCE], QUICK)
        second = accept(journal, 2, clock)
        journal.cancel(first.id)
        assert journal.status(first.id).state == "cancelling"
        journal.finish(row, result(row.line), 0.0)
        done = journal.status(first.id)
        assert (done.state, done.counts.answered, done.counts.cancelled) == ("cancelled", 1, 1)
        journal.cancel(first.id)
        clock.pass_(WINDOW + 1)
        assert journal.claim("w", 5, [SOURCE], QUICK) == []
        assert journal.status(second.id).counts.failed == 2
        assert {json.loads(data)["error"]["error"] for _, data in journal.page(second.id, 0, 9)} == {"batch_expired"}
        lost = journal.begin()
        journal.add(lost, [NewRow(1, "x", b"{}")])
        clock.pass_(KEEP + 3600)
        journal.sweep()
        with pytest.raises(BatchMissing):
            journal.status(first.id)
        assert sqlite3.connect(journal.path).execute("SELECT count(*) FROM rows").fetchone() == (0,)


def test_two_processes_share_the_file_and_batches_share_the_workers(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "j.sqlite3"
    with journal_at(path, clock) as journal, journal_at(path, clock) as other:
        large = accept(journal, 100, clock)
        clock.pass_(1)
        small = accept(other, 2, clock)
        claimed = other.claim("w", 4, [SOURCE], QUICK)
        assert {row.header.id for row in claimed} == {large.id, small.id}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [batch.id for batch in journal.recent(5)] == [small.id, large.id]
        # What was asked is not kept once there is a result.
        other.finish(claimed[0], result(claimed[0].line), 0.0)
        kept = sqlite3.connect(path).execute("SELECT count(*) FROM rows WHERE request IS NULL").fetchone()
        assert kept == (1,)


def test_files_that_are_no_journals(tmp_path: Path) -> None:
    later = tmp_path / "later.sqlite3"
    with contextlib.closing(sqlite3.connect(later)) as db:
        db.execute("PRAGMA user_version=9")
        db.commit()
    with pytest.raises(UsageError, match="form 9"):
        Journal(later, Clock())
    none = tmp_path / "none.sqlite3"
    none.write_bytes(b"this is no database, and long enough to be taken for one" * 20)
    with pytest.raises(BackendUnavailable, match="cannot be used"):
        Journal(none, Clock())
    (tmp_path / "folder").mkdir()
    with pytest.raises(BackendUnavailable):
        Journal(tmp_path / "folder", Clock())


async def test_a_server_whose_disk_cannot_be_written_takes_no_batches(tmp_path: Path) -> None:
    reporter = Silent()
    ctx = Context(str(tmp_path / "registry"), lambda: START, lambda: "id", reporter)
    (tmp_path / "batches").write_text("in the way")
    async with contextlib.AsyncExitStack() as stack:
        assert (await open_batches(ctx, BatchPlace(), [], stack)).api is None
    assert "batches are not taken here" in reporter.warnings[0]
    for lease in ("1", "x", "4000"):
        ctx.environ = {"BUNDLECTL_BATCH_LEASE": lease}
        with pytest.raises(UsageError, match="no lease"):
            settings_of(ctx, BatchPlace())


def test_keys(tmp_path: Path) -> None:
    clock = Clock()
    with journal_at(tmp_path / "j.sqlite3", clock) as journal:
        first = accept(journal, 1, clock, key="k")
        assert accept(journal, 1, clock, key="k") == first
        with pytest.raises(KeyTaken):
            accept(journal, 1, clock, key="k", body="sha256:" + "1" * 64)
        assert batch_id("support", "prod", "a", "k") == first.id != batch_id("support", "prod", "b", "k")
        assert journal.open_rows([SOURCE]) == 1


# ---------------------------------------------------------------- what comes in


def line(n: int, **changes: Any) -> bytes:
    return json.dumps({"id": f"q{n}", **contract().form(), "latency_class": "batch", **changes}).encode() + b"\n"


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_lines_are_the_same_however_they_are_cut(data: Any) -> None:
    body = b"".join(line(n) + (b"\n" if n % 3 == 0 else b"") for n in range(1, 8)).rstrip(b"\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    found = []
    intake = Intake(Submission(_COMPILED[0], BatchOwner(name="a", tenants=[], roles=[]), LOCAL))
    for piece in pieces:
        found += intake.feed(piece)
    found += intake.end()
    assert [row.id for row in found] == [f"q{n}" for n in range(1, 8)]
    assert [row.line for row in found] == [1, 2, 3, 5, 6, 7, 9]
    assert intake.digest == "sha256:" + __import__("hashlib").sha256(body).hexdigest()


_COMPILED: list[Any] = []


@pytest.fixture(autouse=True)
async def _compiled() -> AsyncIterator[None]:
    async with setting() as s:
        _COMPILED[:] = [s.compiled]
        yield


def problems(body: bytes, identity: Identity = LOCAL) -> BadRows:
    intake = Intake(Submission(_COMPILED[0], BatchOwner(name="a", tenants=[], roles=[]), identity))
    with pytest.raises(BadRows) as caught:
        for at in range(0, len(body), 65536):
            intake.feed(body[at : at + 65536])
        intake.end()
    return caught.value


def test_wrong_lines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"".join(
        [
            line(1),
            b"{oops\n",
            line(1),
            line(4, task="nope"),
            line(5, latency_class="interactive"),
            line(6, input={"question": "x", "more": 1}),
            b"[]\n",
            b'{"id": "q8", "id": "q9"}\n',
            line(9, id="a b"),
        ]
    )
    found = problems(body)
    assert [(one["line"], one["field"]) for one in found.problems][:6] == [
        (2, "(line)"),
        (3, "id"),
        (4, "task"),
        (5, "latency_class"),
        (6, "input.more"),
        (7, "(line)"),
    ]
    assert {one["line"] for one in found.problems} == {2, 3, 4, 5, 6, 7, 8, 9}
    assert not found.denied
    assert problems(b"\n \n").problems[0]["message"] == "there is no row"
    denied = problems(line(1) + line(2, tenant_id="zenith"), Identity("a", frozenset({"acme"}), frozenset({"*"})))
    assert denied.denied and [one["line"] for one in denied.problems] == [2]
    many = problems(b"{\n" * 1000)
    assert len(many.problems) == many.why.count("\n") + 1 == intake.SHOWN and "where reading stopped" in many.what
    assert found.what == "Line 2 and 7 others of the batch cannot be taken; nothing was accepted."
    assert problems(line(1, input={"question": "x" * intake.MAX_LINE})).problems[0]["field"] == "(line)"
    long = problems(b"x" * (intake.MAX_LINE * 2) + b"y" * intake.MAX_LINE + b"\n" + line(2) + b"{\n")
    assert [one["line"] for one in long.problems] == [1, 3], "what is left of a line that is too long is no other line"
    monkeypatch.setattr(intake, "MAX_ROWS", 2)
    with pytest.raises(intake.BatchTooLarge, match="more than 2 rows"):
        problems(line(1) + line(2) + line(3))
    monkeypatch.setattr(intake, "MAX_BYTES", 100)
    with pytest.raises(intake.BatchTooLarge, match="100 bytes"):
        problems(line(1))


# ---------------------------------------------------------------- over HTTP, with workers


@dataclass
class Site:
    client: aiohttp.ClientSession
    workers: LocalWorkers
    journal: Journal
    problems: list[str] = field(default_factory=list)

    async def submit(self, body: bytes, **headers: str) -> tuple[int, Any]:
        async with self.client.post("/v1/batches", data=body, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.client.get(f"/v1/batches/{path}", headers=headers) as response:
            text = await response.text()
            if response.content_type == "application/jsonl":
                return response.status, [json.loads(row) for row in text.splitlines()]
            return response.status, json.loads(text)

    async def ended(self, batch: str, **headers: str) -> Any:
        async with asyncio.timeout(60):
            while True:
                _, found = await self.get(batch, **headers)
                if found["state"] in ("completed", "cancelled"):
                    return found
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def site(path: Path, s: Setting, how: Settings = QUICK, *, work: bool = True) -> AsyncIterator[Site]:
    served = Served(s.compiled.ref.app, s.compiled.ref.environment, lambda: s.compiled, s.router)
    clock = lambda: datetime.now(UTC)  # noqa: E731
    with journal_at(path / "j.sqlite3", clock) as journal:
        problems: list[str] = []
        workers = LocalWorkers(journal, [served], how, clock=clock, on_problem=problems.append)
        api = BatchApi(journal, clock=clock, on_accepted=workers.tell)
        async with serving(s, app=Server([served], batches=api)) as client:
            task = asyncio.create_task(workers.run()) if work else None
            try:
                yield Site(client, workers, journal, problems)
            finally:
                workers.end()
                if task is not None:
                    await task


def by_question(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"]).rpartition("Question: ")[2]


async def test_a_batch_from_hand_in_to_results(fake: FakeModels, tmp_path: Path) -> None:
    fake.reply = lambda body: Say(f"Use promote [1], {by_question(body)}.")
    async with setting(fake.base_url) as s, site(tmp_path, s) as at:
        body = b"".join(
            [
                line(1, input={"question": "one"}),
                line(2, user_role="visitor"),
                b"\n",
                line(3, input={"question": "three"}),
            ]
        )
        status, batch = await at.submit(body)
        assert (status, batch["rows"], batch["identity"]) == (201, 3, "local")
        done = await at.ended(batch["id"])
        assert done["counts"] == {
            "waiting": 0, "running": 0, "answered": 2, "refused": 1, "failed": 0, "cancelled": 0
        }  # fmt: skip
        status, rows = await at.get(f"{batch['id']}/results")
        assert status == 200
        assert [(row["id"], row["line"], row["state"], row["status"]) for row in rows] == [
            ("q1", 1, "answered", 200),
            ("q2", 2, "refused", 403),
            ("q3", 4, "answered", 200),
        ]
        assert [rows[0]["answer"]["output"], rows[2]["answer"]["output"]] == [
            "Use promote [1], one.",
            "Use promote [1], three.",
        ]
        assert {row["answer"]["release"]["serial"] for row in rows} == {7}
        kept = {receipt.id: receipt for receipt in s.receipts.kept}
        assert {row["answer"]["receipt"] for row in rows} == set(kept)
        assert {receipt.latency_class for receipt in kept.values()} == {"batch"}
        assert done["usd"] == pytest.approx(sum(receipt.cost.usd or 0 for receipt in kept.values()))
        assert at.problems == []


async def test_a_throttle_storm_slows_down_and_loses_nothing(fake: FakeModels, tmp_path: Path) -> None:
    values = parts()
    routes = values["routes"].routes
    values["routes"] = values["routes"].model_copy(
        update={"routes": {**routes, "fast": routes["fast"].model_copy(update={"retries": 0, "fallback": ["last"]})}}
    )
    # Never five in a row: those would open the breaker, and ten seconds pass.
    fake.then(*[throttle()] * 3, fake.default, *[throttle()] * 3, fake.default, Fail(503), Fail(500))
    how = Settings(**{**vars_of(QUICK), "attempts": 12})
    async with setting(fake.base_url, values=values) as s, site(tmp_path, s, how) as at:
        _, batch = await at.submit(b"".join(line(n) for n in range(1, 11)))
        done = await at.ended(batch["id"])
        assert done["counts"]["answered"] == 10
        _, rows = await at.get(f"{batch['id']}/results")
        # Each was asked again until the model answered: none is a fallback's.
        assert {row["answer"]["model"] for row in rows} == {"small"}
        assert sum(row["attempts"] for row in rows) == 10 + 8
        assert len(fake.requests) == 18


def vars_of(how: Settings) -> dict[str, Any]:
    return {name: getattr(how, name) for name in Settings.__slots__}


async def test_a_row_fails_after_its_attempts_or_takes_the_fallback(fake: FakeModels, tmp_path: Path) -> None:
    fake.default = Fail(503)
    async with setting(fake.base_url) as s, site(tmp_path, s) as at:
        _, batch = await at.submit(line(1) + line(2, policy_profile="plain", task="chat", data_scope=[]))
        done = await at.ended(batch["id"])
        _, rows = await at.get(f"{batch['id']}/results")
        assert [row["attempts"] for row in rows] == [QUICK.attempts] * 2
        assert rows[0]["answer"]["degraded"]["reason"] and rows[0]["state"] == "answered"
        assert done["counts"]["answered"] + done["counts"]["refused"] == 2


async def test_what_a_model_declines_or_the_release_lacks_is_not_asked_again(fake: FakeModels, tmp_path: Path) -> None:
    fake.default = Fail(400, "invalid_request_error")
    async with setting(fake.base_url) as s, site(tmp_path, s) as at:
        _, batch = await at.submit(line(1, policy_profile="restricted", task="chat", data_scope=[]))
        await at.ended(batch["id"])
        _, [row] = await at.get(f"{batch['id']}/results")
        assert (row["state"], row["status"], row["attempts"]) == ("failed", 503, 1)
        assert row["error"]["error"] == "nothing_answered" and row["error"]["receipt"] == s.receipts.last.id


async def test_limits_slow_a_batch_down(fake: FakeModels, tmp_path: Path) -> None:
    bound = {"limits": {"tenants": {"default": {"requests_per_minute": 300}}}}
    async with setting(fake.base_url, bindings=bound) as s, site(tmp_path, s) as at:
        s.router._clock = lambda: datetime.now(UTC)
        with pytest.raises(AssertionError):
            for _ in range(2000):
                assert (await s.router.handle(contract(), LOCAL)).status == 200
        _, batch = await at.submit(b"".join(line(n) for n in range(1, 9)))
        done = await at.ended(batch["id"])
        assert done["counts"]["answered"] == 8
        _, rows = await at.get(f"{batch['id']}/results")
        assert {row["attempts"] for row in rows} == {1}, "a limit of one's own is no attempt"


async def test_a_limit_that_a_row_never_fits_refuses_it(fake: FakeModels, tmp_path: Path) -> None:
    bound = {"limits": {"tenants": {"default": {"usd_per_day": 0.0000001}}}}
    async with setting(fake.base_url, bindings=bound) as s, site(tmp_path, s) as at:
        _, batch = await at.submit(line(1))
        await at.ended(batch["id"])
        _, [row] = await at.get(f"{batch['id']}/results")
        assert (row["state"], row["status"], row["answer"]["refused"]["code"]) == ("refused", 429, "limited")
    assert fake.requests == []


async def test_identities(fake: FakeModels, tmp_path: Path) -> None:
    mine, theirs = {"x-api-key": KEY}, {"authorization": f"Bearer {OTHER}"}
    async with setting(fake.base_url, bindings=IDENTITIES) as s, site(tmp_path, s) as at:
        assert (await at.submit(line(1)))[0] == 401
        status, told = await at.submit(line(1) + line(2, tenant_id="zenith"), **mine)
        assert (status, told["error"], told["lines"][0]["line"]) == (403, "bad_rows", 2)
        assert at.journal.recent(5) == []
        _, batch = await at.submit(line(1), **mine)
        assert (await at.get(batch["id"], **theirs))[0] == 404
        assert (await at.get(f"{batch['id']}/results", **theirs))[0] == 404
        assert (await at.get(batch["id"]))[0] == 401
        for bad in ("batch-1", "batch-" + "0" * 32, "..%2f"):
            assert (await at.get(bad, **mine))[0] == 404
        async with at.client.post(f"/v1/batches/{batch['id']}/cancel", headers=theirs) as response:
            assert response.status == 404
        await at.ended(batch["id"], **mine)
        assert s.receipts.last.identity == "a"


async def test_a_caller_that_is_taken_out_runs_no_row(fake: FakeModels, tmp_path: Path) -> None:
    async with setting(fake.base_url, bindings=IDENTITIES) as s:
        async with site(tmp_path, s, work=False) as at:
            _, batch = await at.submit(line(1), **{"x-api-key": KEY})
        left = {"identities": {"api_keys": IDENTITIES["identities"]["api_keys"][1:]}}
        async with setting(fake.base_url, bindings=left) as after, site(tmp_path, after) as at:
            async with asyncio.timeout(30):
                while not (found := at.journal.status(batch["id"])).ended:
                    await asyncio.sleep(0.02)
            assert found.counts.refused == 1
            assert "not known any more" in at.journal.page(batch["id"], 0, 1)[0][1].decode()
    assert fake.requests == []


async def test_idempotency_bad_requests_and_unfinished_results(fake: FakeModels, tmp_path: Path) -> None:
    async with setting(fake.base_url) as s, site(tmp_path, s, work=False) as at:
        key = {"idempotency-key": "nightly"}
        status, first = await at.submit(line(1), **key)
        assert status == 201
        again, second = await at.submit(line(1), **key)
        assert (again, second["id"]) == (200, first["id"])
        status, told = await at.submit(line(2), **key)
        assert (status, told["error"]) == (409, "idempotency_conflict")
        assert len(at.journal.recent(9)) == 1
        assert (await at.submit(line(1), **{"idempotency-key": "a b"}))[0] == 400
        status, told = await at.submit(line(1), **{"x-bundle": s.compiled.ref.bundle})
        assert (status, told["error"]) == (400, "batch_not_pinned")
        assert (await at.submit(b""))[1]["lines"] == [{"line": 1, "field": "(body)", "message": "there is no row"}]
        status, told = await at.submit(line(1), **{"x-app": "other"})
        assert (status, told["lines"][0]["field"]) == (422, "x-app")
        status, told = await at.get(f"{first['id']}/results")
        assert (status, told["error"]) == (409, "not_finished")
        assert await at.get(f"{first['id']}/results?partial=true") == (200, [])
        async with at.client.post(f"/v1/batches/{first['id']}/cancel") as response:
            assert (await response.json())["state"] == "cancelled"
        status, rows = await at.get(f"{first['id']}/results")
        assert (status, rows[0]["state"], rows[0]["error"]["error"]) == (200, "cancelled", "cancelled")
        async with at.client.delete(f"/v1/batches/{first['id']}") as response:
            assert response.status == 405
        async with at.client.get("/openapi.json") as response:
            document = await response.json()
        assert set(document["paths"]) >= {"/v1/requests", "/v1/batches", "/v1/batches/{batch}/results"}
        assert "Batch" in document["components"]["schemas"]


async def test_a_worker_told_to_end_gives_rows_back(fake: FakeModels, tmp_path: Path) -> None:
    fake.default = Stall()
    how = Settings(**{**vars_of(QUICK), "grace": 0.1})
    values = parts()
    routes = values["routes"].routes
    values["routes"] = values["routes"].model_copy(
        update={"routes": {**routes, "fast": routes["fast"].model_copy(update={"timeout": "60s", "first_token": None})}}
    )
    async with setting(fake.base_url, values=values) as s:
        async with site(tmp_path, s, how) as at:
            _, batch = await at.submit(line(1) + line(2))
            async with asyncio.timeout(30):
                while len(fake.requests) < 2:
                    await asyncio.sleep(0.02)
            assert at.journal.status(batch["id"]).counts.running == 2
        with journal_at(tmp_path / "j.sqlite3") as journal:
            assert journal.status(batch["id"]).counts.waiting == 2
            assert {row.attempts for row in journal.claim("w", 2, [SOURCE], QUICK)} == {0}


async def test_requests_go_first(fake: FakeModels, tmp_path: Path) -> None:
    admitted: list[bool] = []
    async with setting(fake.base_url) as s, site(tmp_path, s, work=False) as at:
        at.workers._admits = lambda: bool(admitted)
        _, batch = await at.submit(line(1))
        task = asyncio.create_task(at.workers.run(until_empty=True))
        await asyncio.sleep(0.3)
        assert at.journal.status(batch["id"]).counts.waiting == 1
        admitted.append(True)
        await asyncio.wait_for(task, 30)
        assert at.journal.status(batch["id"]).counts.answered == 1


def test_pauses_between_attempts() -> None:
    how = Settings()
    for attempts in range(20):
        bound = min(how.longest_pause, how.first_pause * 2**attempts)
        assert all(bound / 2 <= backoff(how, attempts) <= bound for _ in range(20))


async def test_memory_is_flat(tmp_path: Path) -> None:
    """Handing in and collecting: neither the body nor the results are ever held whole."""
    import tracemalloc

    rows = int(os.environ.get("BUNDLECTL_BATCH_ROWS", "1000"))

    async def pieces() -> AsyncIterator[bytes]:
        for n in range(rows):
            yield line(n, input={"question": "x" * 1000})

    with journal_at(tmp_path / "j.sqlite3") as journal:
        submission = Submission(_COMPILED[0], BatchOwner(name="a", tenants=["*"], roles=["*"]), LOCAL)
        tracemalloc.start()
        header, _ = await intake.take_in(journal, submission, pieces(), datetime.now(UTC))
        taken = tracemalloc.get_traced_memory()[1]
        claimed = 0
        while found := journal.claim("w", 500, [SOURCE], QUICK):
            claimed += len(found)
            for row in found:
                journal.finish(row, result(row.line, text="y" * 1000).model_copy(update={"id": row.id}), 0.0)
        tracemalloc.reset_peak()
        after = count = 0
        while page := journal.page(header.id, after, 200):
            count += len(page)
            after = page[-1][0]
        read = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert count == claimed == rows
    assert taken < 8_000_000 + rows * 250, taken
    assert read < 8_000_000 + rows * 250, read
