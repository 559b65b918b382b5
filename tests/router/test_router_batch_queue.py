"""Batches over SQS, with rows and results in S3: on moto's servers, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from bundlectl.model.batch import Batch
from bundlectl.model.errors import BackendUnavailable
from bundlectl.router.batch.book import NewRow, Settings
from bundlectl.router.batch.http import owner_of
from bundlectl.router.batch.intake import Submission, take_in
from bundlectl.router.batch.queue import open_queue
from bundlectl.router.batch.row import Row
from bundlectl.router.batch.sqs import QueueWorkers
from bundlectl.router.batch.store import StoreBook, read_message
from bundlectl.router.identity import LOCAL
from bundlectl.router.served import Served
from bundlectl.storage.store import open_store
from tests.router.test_router_batches import Clock, accept, line, result
from tests.support.answering import Setting, setting
from tests.support.aws import StandIn, stand_in
from tests.support.fake_models import FakeModels, Say, Stall, fake_models, throttle

HOW = Settings(concurrency=4, attempts=4, lease=30.0, first_pause=0.02, longest_pause=0.05, idle=0.05, grace=0.2)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    served = stand_in("moto")
    for name, value in served.environ.items():
        monkeypatch.setenv(name, value)
    return served


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@dataclass
class Place:
    aws: StandIn
    clock: Any = lambda: datetime.now(UTC)
    receives: int = 2
    bucket: str = ""
    url: str = ""
    dead: str = ""
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        sqs = self.aws.client("sqs")
        name = f"rows-{secrets.token_hex(4)}"
        self.dead = sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=self.dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(self.receives)})
        self.url = sqs.create_queue(QueueName=name, Attributes={"RedrivePolicy": policy})["QueueUrl"]
        self.bucket = self.aws.bucket("batches")

    @contextlib.contextmanager
    def book(self) -> Any:
        made = StoreBook(open_store(f"s3://{self.bucket}/b"), open_queue(f"sqs:{self.url}"), self.clock)
        try:
            yield made
        finally:
            made.close()

    def workers(self, book: StoreBook, s: Setting, how: Settings = HOW, **more: Any) -> QueueWorkers:
        served = Served(s.compiled.ref.app, s.compiled.ref.environment, lambda: s.compiled, s.router)
        settings = {"poll": 1, "look_around": 0.2, "stranded": 0.0, **more}
        return QueueWorkers(book, [served], how, clock=self.clock, on_problem=self.problems.append, **settings)


async def submit(book: StoreBook, s: Setting, *lines: bytes, key: str | None = None) -> str:
    async def pieces() -> AsyncIterator[bytes]:
        for each in lines:
            yield each

    header, _ = await take_in(book, Submission(s.compiled, owner_of(LOCAL), LOCAL, key), pieces(), datetime.now(UTC))
    return header.id


def rows_of(book: StoreBook, batch: str) -> list[Any]:
    return [json.loads(data) for _, data in book.page(batch, 0, 10_000)]


async def ended(book: StoreBook, batch: str) -> Batch:
    async with asyncio.timeout(60):
        while not (found := await asyncio.to_thread(book.status, batch)).ended:
            await asyncio.sleep(0.1)
    return found


async def test_a_batch_over_a_queue(aws: StandIn, fake: FakeModels) -> None:
    place = Place(aws)
    fake.reply = lambda body: Say(f"Use promote [1], {body['messages'][-1]['content'].rpartition(': ')[2]}.")
    fake.then(throttle())
    async with setting(fake.base_url) as s:
        with place.book() as book:
            lines = [line(n, input={"question": f"row {n}"}) for n in range(1, 24)]
            batch = await submit(book, s, *lines, line(24, user_role="visitor"), key="k")
            assert await submit(book, s, *lines, line(24, user_role="visitor"), key="k") == batch
            waiting = book.status(batch)
            assert (waiting.state, waiting.rows, waiting.queue.visible) == ("waiting", 24, 24)  # type: ignore[union-attr]
            assert [one.id for one in book.recent(5)] == [batch]
            await asyncio.wait_for(place.workers(book, s).run(until_empty=True), 60)
            done = book.status(batch)
            assert (done.state, done.counts.answered, done.counts.refused) == ("completed", 23, 1)
            # On a busy machine a fallback may have answered, which has no price.
            spent = [receipt.cost.usd for receipt in s.receipts.kept]
            assert done.usd == (None if None in spent else pytest.approx(sum(one or 0.0 for one in spent), abs=1e-4))
            found = rows_of(book, batch)
            assert [row["line"] for row in found] == list(range(1, 25))
            assert [row["answer"]["output"] for row in found[:23]] == [
                f"Use promote [1], row {n}." for n in range(1, 24)
            ]
            assert [row["line"] for row in (json.loads(d) for _, d in book.page(batch, 20, 3))] == [21, 22, 23]
            # What was asked is gone, what was answered stays.
            keys = [one["Key"] for one in aws.client("s3").list_objects_v2(Bucket=place.bucket)["Contents"]]
            assert not [key for key in keys if "/uploads/" in key or "/pending/" in key]
    assert place.problems == []


async def test_a_worker_that_is_lost_and_one_that_comes_back(aws: StandIn, fake: FakeModels) -> None:
    """The message's time runs out and another worker asks the row again; the first result that is stored stays."""
    place = Place(aws)
    async with setting(fake.base_url) as s:
        with place.book() as book:
            batch = await submit(book, s, line(1), line(2))
            lost = book.queue.receive(10, wait=1, visibility=1)  # a worker that dies at once
            assert len(lost) == 2
            await asyncio.wait_for(asyncio.create_task(_until_answered(place, book, s, batch)), 60)
            before = rows_of(book, batch)
            # The lost one was only slow: it stores its result too, and deletes a message that is not its own any more.
            header = book.header(batch)
            named = read_message(lost[0].body)
            assert named is not None
            new = book.row(header, named)
            late = result(1 if new is None else new.line, text="late")
            assert book.finish(batch, late.model_copy(update={"id": f"q{late.line}"}), 1.0) is False
            assert rows_of(book, batch) == before and {row["state"] for row in before} == {"answered"}
            assert book.status(batch).usd != 1.0


async def _until_answered(place: Place, book: StoreBook, s: Setting, batch: str) -> None:
    workers = place.workers(book, s)
    task = asyncio.create_task(workers.run())
    await ended(book, batch)
    workers.end()
    await task


async def test_poison_goes_to_the_dead_letters_and_is_told(aws: StandIn, fake: FakeModels) -> None:
    place = Place(aws)
    async with setting(fake.base_url) as s:
        with place.book() as book:
            batch = await submit(book, s, line(1), line(2))
            # One row kills every worker that begins it; another message is none of ours.
            for _ in range(place.receives):
                killed = 0
                while killed < 1:
                    for message in book.queue.receive(10, wait=1, visibility=1):
                        named = read_message(message.body)
                        if named is not None and named.place == 0:
                            killed += 1
                        else:
                            book.queue.keep([message], 0)
                await asyncio.sleep(1.2)
            aws.client("sqs").send_message(QueueUrl=place.url, MessageBody="nothing of ours")
            await _until_answered(place, book, s, batch)
            found = {row["line"]: row for row in rows_of(book, batch)}
            assert (found[1]["state"], found[1]["error"]["error"]) == ("failed", "worker_lost")
            assert found[2]["state"] in ("answered", "failed")
            workers = place.workers(book, s)
            task = asyncio.create_task(workers.run())
            async with asyncio.timeout(60):
                while (state := book.queue.state()).dead_letters != 1 or state.visible or state.in_flight:
                    await asyncio.sleep(0.2)
            workers.end()
            await task
            assert book.status(batch).queue.dead_letters == 1  # type: ignore[union-attr]
    assert any("names no row" in problem for problem in place.problems)


async def test_heartbeats_keep_a_slow_row_and_an_end_gives_it_back(aws: StandIn, fake: FakeModels) -> None:
    place = Place(aws)
    fake.default = Stall()
    from tests.support.answering import parts

    values = parts()
    routes = values["routes"].routes
    slow = routes["fast"].model_copy(update={"timeout": "60s", "first_token": None})
    values["routes"] = values["routes"].model_copy(update={"routes": {**routes, "fast": slow}})
    async with setting(fake.base_url, values=values) as s:
        with place.book() as book:
            batch = await submit(book, s, line(1))
            workers = place.workers(book, s, Settings(lease=2.0, grace=0.1, idle=0.05))
            task = asyncio.create_task(workers.run())
            await asyncio.sleep(4.5)  # more than twice the time of a message
            assert len(fake.requests) == 1
            assert book.queue.receive(1, wait=0, visibility=1) == []
            workers.end()
            await asyncio.wait_for(task, 30)
            [message] = book.queue.receive(1, wait=1, visibility=1)
            assert message.receives == 1, "a planned end is no loss"
            assert not book.status(batch).ended


async def test_cancel_expiry_and_a_server_lost_on_the_way(aws: StandIn, fake: FakeModels) -> None:
    place = Place(aws)
    async with setting(fake.base_url) as s:
        with place.book() as book:
            cancelled = await submit(book, s, line(1), line(2))
            book.cancel(cancelled)
            assert book.status(cancelled).state == "cancelling"
            late = await submit(book, s, line(1))
            # A server that is killed between accepting and naming all rows: the sweep names them.
            sent = book.queue.send

            def away(*_: Any, **__: Any) -> None:
                raise BackendUnavailable("The queue is away.")

            book.queue.send = away  # type: ignore[method-assign]
            stranded = await submit(book, s, line(1), line(2), line(3))
            book.queue.send = sent  # type: ignore[method-assign]
            assert book.status(stranded).counts.waiting == 3
            workers = place.workers(book, s)
            await asyncio.wait_for(workers.run(until_empty=True), 60)
            assert (book.status(cancelled).state, book.status(cancelled).counts.cancelled) == ("cancelled", 2)
            assert book.status(late).counts.answered == 1
            assert book.status(stranded).counts.answered == 3
            # Rows that are named twice are answered once.
            again = await submit(book, s, line(1), line(2))
            book.enqueue(book.header(again))
            asked = len(fake.requests)
            one = dataclasses.replace(HOW, concurrency=1)
            await asyncio.wait_for(place.workers(book, s, one).run(until_empty=True), 60)
            assert len(fake.requests) == asked + 2
            expired = await submit(book, s, line(1))
            ends = book.header(expired).expires
            place.clock = lambda: ends
            await asyncio.wait_for(place.workers(book, s).run(until_empty=True), 60)
            assert rows_of(book, expired)[0]["error"]["error"] == "batch_expired"


def test_results_and_tallies_that_are_there_already(aws: StandIn) -> None:
    place = Place(aws)
    with place.book() as book:
        clock = Clock(datetime.now(UTC))
        header = accept(book, 2, clock)
        assert book.finish(header.id, result(1, text="first"), None)
        assert not book.finish(header.id, result(1, text="second"), 0.5)
        # Killed after the result and before its tally: whoever gets the message next makes it.
        s3 = aws.client("s3")
        [tally] = [o["Key"] for o in s3.list_objects_v2(Bucket=place.bucket)["Contents"] if "/tally/" in o["Key"]]
        s3.delete_object(Bucket=place.bucket, Key=tally)
        assert book.status(header.id).counts.waiting == 2
        assert book.settled(header.id, 1) and not book.settled(header.id, 2)
        assert book.status(header.id).counts.answered == 1
        assert book.status(header.id).usd is None
        assert read_message("{}") is None and read_message("[1]") is None and read_message('{"batch": 1}') is None
        upload = book.begin()
        book.add(upload, [NewRow(1, "x", b"{}")])
        book.discard(upload)
        with pytest.raises(BackendUnavailable):
            book.accept(header.model_copy(update={"upload": upload}))
        assert Row(header, 1, "r1", b"{}", 0, last=True).unanswered("expired").state == "failed"
