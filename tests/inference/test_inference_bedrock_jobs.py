"""Bedrock's batch jobs: boto3 speaks to a fake of the two operations, and to moto's S3."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bundlectl.inference.bedrock import open_bedrock
from bundlectl.inference.bedrock_jobs import BedrockJobs, Pace
from bundlectl.inference.client import HttpClient
from bundlectl.inference.fitting import provider_misfits
from bundlectl.inference.provider import ModelCall, ProviderError
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.components import Model, Route, Rule, When
from bundlectl.model.errors import UsageError
from bundlectl.router.batch.book import Settings
from bundlectl.router.batch.http import owner_of
from bundlectl.router.batch.intake import Submission, take_in
from bundlectl.router.batch.journal import Journal
from bundlectl.router.batch.workers import LocalWorkers
from bundlectl.router.identity import LOCAL
from bundlectl.router.served import Served
from tests.support.answering import contract, parts, setting
from tests.support.aws import stand_in
from tests.support.fake_bedrock import FakeBedrock, fake_bedrock
from tests.support.fake_bedrock_jobs import FakeJobs, fake_jobs, said

MODEL = "amazon.nova-lite-v1:0"
ROLE = "arn:aws:iam::123456789012:role/batch"
QUICK = Pace(quiet=0.15, longest=5.0, least=3, most=100, first_look=0.05, last_look=0.1)


@dataclasses.dataclass
class Place:
    jobs: FakeJobs
    online: FakeBedrock
    s3: Any
    bucket: str

    @contextlib.asynccontextmanager
    async def provider(self, pace: Pace = QUICK) -> AsyncIterator[BedrockJobs]:
        async with HttpClient() as http:
            bound = ModelBinding(region="us-east-1", batch_s3=f"s3://{self.bucket}/night", batch_role=ROLE)
            model = Model(provider="bedrock", model=MODEL)
            made = open_bedrock("small", model, bound, {}, http, {}, None, in_jobs=True)
            assert isinstance(made, BedrockJobs)
            made._pace = pace
            yield made

    def keys(self, folder: str) -> list[str]:
        listed = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=f"night/{folder}/").get("Contents", [])
        return [one["Key"] for one in listed]


@pytest.fixture
async def place(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    aws = stand_in("moto")
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    s3 = aws.client("s3")
    async with fake_bedrock() as online, fake_jobs(s3) as jobs:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", online.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK", jobs.url)
        online.secrets = {"test": "test"}
        yield Place(jobs, online, s3, aws.bucket("jobs"))
    s3.close()


def call(question: str, **changes: Any) -> ModelCall:
    values: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": question}],
        "question": question,
        "parameters": {"max_tokens": 50},
        "total": 30.0,
    }
    return ModelCall(**{**values, **changes})


def asked(record: dict[str, Any]) -> str:
    return str(record["modelInput"]["messages"][0]["content"][0]["text"])


async def test_calls_that_come_together_are_one_job(place: Place) -> None:
    place.jobs.reply = lambda record: said(f"On {asked(record)}.")
    async with place.provider() as provider:
        questions = [f"é{n}" for n in range(5)]
        replies = await asyncio.gather(*(provider.generate(call(q)) for q in [*questions, questions[0]]))
        deltas_of = [provider.stream(call(f"again {n}")) for n in range(3)]
        streamed = await asyncio.gather(*(_collect(stream) for stream in deltas_of))
    assert [reply.text for reply in replies] == [f"On é{n}." for n in (0, 1, 2, 3, 4, 0)]
    assert {(reply.usage.input_tokens, reply.priced_as) for reply in replies} == {(100, f"{MODEL}@batch")}
    assert [text for text, _ in streamed] == [f"On again {n}." for n in range(3)]
    assert len(place.jobs.created) == 2 and place.online.seen == []
    job = place.jobs.created[0]
    assert (job["modelId"], job["roleArn"], job["modelInvocationType"]) == (MODEL, ROLE, "Converse")
    key = job["clientRequestToken"]
    assert job["inputDataConfig"]["s3InputDataConfig"] == {
        "s3InputFormat": "JSONL",
        "s3Uri": f"s3://{place.bucket}/night/input/{key}.jsonl",
    }
    data = place.s3.get_object(Bucket=place.bucket, Key=f"night/input/{key}.jsonl")["Body"].read()
    records = [json.loads(line) for line in data.splitlines()]
    assert len({record["recordId"] for record in records}) == 6, "equal questions are records of their own"
    assert records[0]["modelInput"] == {
        "messages": [{"role": "user", "content": [{"text": "é0"}]}],
        "system": [{"text": "Answer."}],
        "inferenceConfig": {"maxTokens": 50},
    }


async def _collect(stream: Any) -> tuple[str, Any]:
    deltas = [delta async for delta in stream]
    return "".join(delta.text for delta in deltas), deltas[-1].reply


async def test_too_few_for_a_job_are_asked_on_demand(place: Place) -> None:
    async with place.provider() as provider:
        replies = await asyncio.gather(*(provider.generate(call(f"q{n}")) for n in range(2)))
    assert {reply.priced_as for reply in replies} == {MODEL}
    assert place.jobs.created == [] and len(place.online.seen) == 2


async def test_records_that_fail_and_jobs_that_do(place: Place) -> None:
    codes: dict[str, Any] = {"q0": 429, "q1": 500, "q2": 400, "q3": None, "q4": "ok", "q5": "odd"}

    def reply(record: dict[str, Any]) -> dict[str, Any] | None:
        code = codes[asked(record)]
        if code == "ok":
            return said("yes")
        if code == "odd":
            return {"modelOutput": {"output": {}, "stopReason": "end_turn"}}
        return None if code is None else {"error": {"errorCode": code, "errorMessage": "the prompt"}}

    place.jobs.reply = reply
    async with place.provider() as provider:
        done = await asyncio.gather(*(provider.generate(call(q)) for q in codes), return_exceptions=True)
        kinds = [one.kind if isinstance(one, ProviderError) else one.text for one in done]  # type: ignore[union-attr]
        assert kinds == ["throttled", "unavailable", "refused", "unavailable", "yes", "invalid"]
        assert not any("the prompt" in str(one) for one in done)
        place.jobs.status = "Failed"
        done = await asyncio.gather(*(provider.generate(call(f"f{n}")) for n in range(3)), return_exceptions=True)
        assert {(one.kind, one.why) for one in done} == {("unavailable", "job Failed")}  # type: ignore[union-attr]
        for refuse, kind in (
            ((403, "AccessDeniedException"), "refused"),
            ((400, "ServiceQuotaExceededException"), "throttled"),
        ):
            place.jobs.refuse = refuse
            calls = [provider.generate(call(f"{kind}{n}")) for n in range(3)]
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert {one.kind for one in done} == {kind}  # type: ignore[union-attr]
        place.jobs.refuse, place.jobs.status, place.jobs.held = None, "Completed", True
        done = await asyncio.gather(
            *(provider.generate(call(f"late{n}", total=1.0)) for n in range(3)), return_exceptions=True
        )
        assert {one.kind for one in done} == {"timeout"}  # type: ignore[union-attr]


@pytest.mark.parametrize("told", [True, False], ids=["created", "not told of it"])
async def test_a_process_that_is_restarted_finds_its_job(place: Place, told: bool) -> None:
    place.jobs.held = True
    async with place.provider() as first:
        waiting = [asyncio.create_task(first.generate(call(f"q{n}"))) for n in range(4)]
        async with asyncio.timeout(30):
            while len(place.keys("jobs")) < 1 or not any(job.arn for job in first._known.values()):
                await asyncio.sleep(0.05)
        for task in [*waiting, *first._following]:
            task.cancel()
        await asyncio.gather(*waiting, *first._following, return_exceptions=True)
    if not told:
        [key] = place.keys("jobs")
        value = json.loads(place.s3.get_object(Bucket=place.bucket, Key=key)["Body"].read())
        del value["arn"]
        place.s3.put_object(Bucket=place.bucket, Key=key, Body=json.dumps(value).encode())
    place.jobs.held = False
    async with place.provider() as second:
        replies = await asyncio.gather(*(second.generate(call(f"q{n}")) for n in range(4)))
        assert {reply.text for reply in replies} == {"Use promote [1]."}
        assert len(place.jobs.jobs) == 1, "what was paid for is not asked again"
        # A job that was read gives nothing more: who asks the same again wants another answer.
        await asyncio.gather(*(second.generate(call(f"q{n}")) for n in range(4)))
        assert len(place.jobs.jobs) == 2


def test_bindings_that_do_not_fit() -> None:
    model = Model(provider="bedrock", model=MODEL)
    for binding, told in (
        (ModelBinding(batch_s3="s3://bucket/x"), "both"),
        (ModelBinding(batch_role=ROLE), "both"),
        (ModelBinding(batch_s3="bucket", batch_role=ROLE), "no place in S3"),
    ):
        [problem] = provider_misfits("small", model, binding, {})
        assert told in problem
    assert provider_misfits("small", model, ModelBinding(batch_s3="s3://bucket/x", batch_role=ROLE), {}) == []


async def test_a_place_that_is_none_is_told(place: Place) -> None:
    async with HttpClient() as http:
        bound = ModelBinding(region="us-east-1", batch_s3="s3://UPPER/x", batch_role=ROLE)
        with pytest.raises(UsageError, match="batch_s3"):
            open_bedrock("small", Model(provider="bedrock", model=MODEL), bound, {}, http, {}, None, in_jobs=True)


async def test_a_batch_through_a_job(place: Place, tmp_path: Path) -> None:
    """Access, guards, retrieval and the prompt before it; output guard, receipts and results after it."""
    place.jobs.reply = lambda record: said("Write to jane.doe@example.com, see [1].")
    values = parts()
    values["models"] = {**values["models"], "night": Model(provider="bedrock", model=MODEL)}
    routes = values["routes"]
    values["routes"] = routes.model_copy(
        update={
            "routes": {**routes.routes, "night": Route(model="night", mode="async", timeout="1h", retries=0)},
            "select": [Rule(when=When(latency_class="batch"), use="night"), *routes.select],
        }
    )
    models = {"night": {"region": "us-east-1", "batch_s3": f"s3://{place.bucket}/night/", "batch_role": ROLE}}
    nowhere = {"base_url": "http://127.0.0.1:9/v1"}
    bindings = {"models": {"small": nowhere, "own": nowhere, **models}}
    async with setting(values=values, bindings=bindings) as s:
        provider = s.compiled.routes["night"].provider
        assert isinstance(provider, BedrockJobs)
        provider._pace = QUICK
        journal = Journal(tmp_path / "j.sqlite3", lambda: datetime.now(UTC))

        async def lines() -> AsyncIterator[bytes]:
            for n in range(4):
                row = contract(question=f"How do I roll back? {n}", policy_profile="guarded", latency_class="batch")
                yield json.dumps({"id": f"q{n}", **row.form()}).encode() + b"\n"
            denied = contract(user_role="visitor", latency_class="batch")
            yield json.dumps({"id": "denied", **denied.form()}).encode() + b"\n"

        submission = Submission(s.compiled, owner_of(LOCAL), LOCAL)
        header, _ = await take_in(journal, submission, lines(), datetime.now(UTC))
        served = Served("support", "prod", lambda: s.compiled, s.router)
        problems: list[str] = []
        workers = LocalWorkers(
            journal, [served], Settings(concurrency=10), clock=lambda: datetime.now(UTC), on_problem=problems.append
        )
        await asyncio.wait_for(workers.run(until_empty=True), 60)
        found = [json.loads(data) for _, data in journal.page(header.id, 0, 10)]
        journal.close()
        assert [row["state"] for row in found] == ["answered"] * 4 + ["refused"]
        assert {row["answer"]["output"] for row in found[:4]} == {"Write to [EMAIL], see [1]."}
        assert all(row["answer"]["citations"] for row in found[:4])
        assert len(place.jobs.created) == 1 and problems == []
        receipts = {receipt.id: receipt for receipt in s.receipts.kept}
        one = receipts[found[0]["answer"]["receipt"]]
        assert (one.route, one.attempts[0].outcome, one.usage.input_tokens) == ("night", "ok", 100)
        # The price of batches is the price book's business: what it does not name is not known.
        assert one.cost.usd is None
