"""Asynchronous SageMaker endpoints, their buckets held by moto."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import boto3
import pytest

from bundlectl.inference.aws import AwsService
from bundlectl.inference.client import HttpClient
from bundlectl.inference.http import MAX_REPLY
from bundlectl.inference.provider import ModelCall, Provider, ProviderError
from bundlectl.inference.sagemaker import open_sagemaker
from bundlectl.inference.sagemaker_async import S3Place, SageMakerAsyncProvider
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.errors import UsageError
from tests.support.aws import REGION, stand_in
from tests.support.fake_bedrock import API_KEY, FakeBedrock, Seen, aws_failure, fake_bedrock

REPLY = {
    "choices": [{"message": {"role": "assistant", "content": "Run promote [1]."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 7},
}


class Endpoint:
    """What stands behind the fake: takes what was announced, and some time later puts a result or a failure."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self.s3 = s3
        self.bucket = bucket
        self.prefix = secrets.token_hex(4)
        self.result: bytes | None = json.dumps(REPLY).encode()
        self.failure: bytes | None = None
        self.seen: list[tuple[Seen, dict[str, Any]]] = []
        self.later: list[asyncio.Task[None]] = []

    def _input(self, uri: str) -> Any:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return json.loads(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    async def accept(self, seen: Seen) -> dict[str, str]:
        body = await asyncio.to_thread(self._input, seen.headers["X-Amzn-SageMaker-InputLocation"])
        self.seen.append((seen, body))
        number = len(self.seen)
        self.later.append(asyncio.create_task(self._finish(number)))
        return {
            "X-Amzn-SageMaker-OutputLocation": f"s3://{self.bucket}/{self.prefix}/out/{number}.out",
            "X-Amzn-SageMaker-FailureLocation": f"s3://{self.bucket}/{self.prefix}/failed/{number}.out",
        }

    async def _finish(self, number: int) -> None:
        await asyncio.sleep(0.1)
        for folder, data in (("out", self.result), ("failed", self.failure)):
            if data is not None:
                await asyncio.to_thread(
                    self.s3.put_object, Bucket=self.bucket, Key=f"{self.prefix}/{folder}/{number}.out", Body=data
                )


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeBedrock]:
    aws = stand_in("moto")
    for name, value in aws.environ.items():
        monkeypatch.setenv(name, value)
    async with fake_bedrock() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", server.url)
        server.secrets = {"test": "test"}
        yield server


@pytest.fixture(scope="module")
def held() -> Iterator[tuple[Any, str]]:
    aws = stand_in("moto")
    s3 = aws.client("s3")
    yield s3, aws.bucket("async")
    s3.close()


@pytest.fixture
async def endpoint(fake: FakeBedrock, held: tuple[Any, str]) -> AsyncIterator[Endpoint]:
    behind = Endpoint(*held)
    fake.accept = behind.accept
    yield behind
    await asyncio.gather(*behind.later)


@pytest.fixture
async def provider(endpoint: Endpoint, fake: FakeBedrock) -> AsyncIterator[Provider]:
    http = HttpClient()
    service = AwsService(http, fake.url, signing_name="sagemaker", region=REGION, credentials=None, api_key=API_KEY)
    yield SageMakerAsyncProvider(service, endpoint.s3, S3Place(endpoint.bucket, "in/"))
    await http.close()


def call(**changes: Any) -> ModelCall:
    values: dict[str, Any] = {
        "model": "own-llm",
        "messages": [{"role": "user", "content": "How do I promote? é"}],
        "question": "How do I promote?",
        "parameters": {"max_tokens": 50},
        "total": 10.0,
    }
    return ModelCall(**{**values, **changes})


async def test_a_reply_that_comes_later(provider: Provider, endpoint: Endpoint) -> None:
    reply = await provider.generate(call())
    assert (reply.text, reply.usage.input_tokens, reply.usage.output_tokens) == ("Run promote [1].", 100, 7)
    seen, body = endpoint.seen[0]
    assert body == {
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "How do I promote? é"}],
        "stream": False,
    }
    assert seen.headers["X-Amzn-SageMaker-InputLocation"].startswith(f"s3://{endpoint.bucket}/in/")
    deltas = [delta async for delta in provider.stream(call())]
    assert [delta.text for delta in deltas] == ["Run promote [1].", ""] and deltas[-1].reply == reply


async def test_the_request_is_the_one_that_boto3_sends(endpoint: Endpoint, fake: FakeBedrock) -> None:
    http = HttpClient()
    binding = ModelBinding(async_input=f"s3://{endpoint.bucket}/in", endpoint="night-llm")
    opened: Any = await asyncio.to_thread(open_sagemaker, "night", binding, http, {})
    await opened.generate(call(total=120.0))
    opened._s3.close()
    await http.close()
    mine = fake.seen[0]
    client = boto3.session.Session().client("sagemaker-runtime")
    answer = await asyncio.to_thread(
        client.invoke_endpoint_async,
        EndpointName="night-llm",
        ContentType="application/json",
        InputLocation=mine.headers["X-Amzn-SageMaker-InputLocation"],
        RequestTTLSeconds=120,
        InvocationTimeoutSeconds=120,
    )
    client.close()
    assert answer["OutputLocation"].endswith("/out/2.out") and answer["FailureLocation"].endswith("/failed/2.out")
    reference = fake.seen[1]
    assert (mine.path, mine.body) == (reference.path, reference.body)
    ours, theirs = (
        {name.lower(): value for name, value in seen.headers.items() if name.lower().startswith("x-amzn-sagemaker")}
        for seen in (mine, reference)
    )
    assert ours == theirs


async def test_the_container_failed(provider: Provider, endpoint: Endpoint) -> None:
    endpoint.result, endpoint.failure = None, b"SECRET PROMPT ECHO"
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call())
    assert caught.value.kind == "unavailable" and "SECRET" not in str(caught.value)


@pytest.mark.parametrize("result", [b"<html>", b"{}", b"x" * (MAX_REPLY + 1)])
async def test_a_result_that_is_none(provider: Provider, endpoint: Endpoint, result: bytes) -> None:
    endpoint.result = result
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call())
    assert caught.value.kind == "invalid"


@pytest.mark.parametrize("limits", [{"total": 0.8}, {"first_token": 0.8}])
async def test_nothing_comes(provider: Provider, endpoint: Endpoint, limits: dict[str, float]) -> None:
    endpoint.result = None
    began = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call(**limits))
    assert caught.value.kind == "timeout"
    assert time.monotonic() - began < 2


async def test_the_endpoint_refuses(provider: Provider, fake: FakeBedrock) -> None:
    fake.then(aws_failure("ServiceUnavailable", 503), aws_failure("ValidationError", 400))
    for kind in ("unavailable", "refused"):
        with pytest.raises(ProviderError) as caught:
            await provider.generate(call())
        assert caught.value.kind == kind


async def test_no_place_is_announced(provider: Provider, fake: FakeBedrock) -> None:
    async def nowhere(_: Seen) -> dict[str, str]:
        return {"X-Amzn-SageMaker-OutputLocation": "https://elsewhere.example/out"}

    fake.accept = nowhere
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call())
    assert caught.value.kind == "invalid"


async def test_the_bucket_is_not_there(provider: SageMakerAsyncProvider, fake: FakeBedrock) -> None:
    provider._requests = S3Place("not-there-at-all", "in/")
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call())
    assert (caught.value.kind, caught.value.why) == ("refused", "S3: NoSuchBucket")
    assert not fake.seen


@pytest.mark.parametrize(
    "binding",
    [
        {"async_input": "bucket/prefix"},
        {"async_input": "s3://UPPER/prefix"},
        {"async_input": "s3://bucket/in", "inference_component": "lora"},
        {"async_input": "s3://bucket/in", "target_variant": "blue"},
    ],
)
async def test_what_does_not_fit_is_refused(fake: FakeBedrock, binding: dict[str, str]) -> None:
    http = HttpClient()
    with pytest.raises(UsageError):
        open_sagemaker("night", ModelBinding(**binding), http, {})
    await http.close()
