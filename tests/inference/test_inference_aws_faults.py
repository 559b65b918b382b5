"""Every way that Bedrock and SageMaker fail, over a real socket: what the router is told, and what had been given.

The table below is the statement; each row runs on both services, whole and streamed, unless only streams have it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from bundlectl.inference.aws import AwsService
from bundlectl.inference.bedrock import BedrockProvider
from bundlectl.inference.client import HttpClient
from bundlectl.inference.http import MAX_REPLY
from bundlectl.inference.provider import ErrorKind, ModelCall, Provider, ProviderError
from bundlectl.inference.sagemaker import SageMakerProvider
from tests.support.fake_bedrock import (
    API_KEY,
    Answer,
    BadFrame,
    FakeBedrock,
    Step,
    StreamError,
    Without,
    aws_failure,
    event,
    fake_bedrock,
)
from tests.support.fake_models import Cut, Raw, Stall

HALF = "Half an ans"


@dataclass(frozen=True)
class Row:
    """``after``: retry_after. ``given``: what a stream had released. ``on``: the services that can do it."""

    step: Step
    kind: ErrorKind
    after: float | None = None
    given: str = ""
    only_streams: bool = False
    on: str = "bedrock sagemaker"


TABLE: dict[str, Row] = {
    "throttled": Row(aws_failure("ThrottlingException", 429), "throttled"),
    "throttled, with a time": Row(aws_failure("ThrottlingException", 429, **{"Retry-After": "7"}), "throttled", 7),
    "quota": Row(aws_failure("ServiceQuotaExceededException", 400), "throttled"),
    "429 without a code": Row(aws_failure("", 429), "throttled"),
    "model not ready": Row(aws_failure("ModelNotReadyException", 429, **{"Retry-After": "3"}), "unavailable", 3),
    "model timeout": Row(aws_failure("ModelTimeoutException", 408), "timeout"),
    "service unavailable": Row(aws_failure("ServiceUnavailableException", 503), "unavailable"),
    "service unavailable, SageMaker's": Row(aws_failure("ServiceUnavailable", 503), "unavailable"),
    "internal": Row(aws_failure("InternalServerException", 500), "unavailable"),
    "internal, SageMaker's": Row(aws_failure("InternalFailure", 500), "unavailable"),
    "dependency": Row(aws_failure("InternalDependencyException", 530), "unavailable"),
    "model error": Row(aws_failure("ModelErrorException", 424), "unavailable"),
    "the container's 500": Row(aws_failure("ModelError", 424, Original="500"), "unavailable"),
    "the container's 429": Row(aws_failure("ModelError", 424, Original="429"), "throttled"),
    "the container's 400": Row(aws_failure("ModelError", 424, Original="400"), "refused"),
    "denied": Row(aws_failure("AccessDeniedException", 403, **{"Retry-After": "7"}), "refused"),
    "expired": Row(aws_failure("ExpiredTokenException", 403), "refused"),
    "not valid": Row(aws_failure("ValidationException", 400), "refused"),
    "not valid, SageMaker's": Row(aws_failure("ValidationError", 400), "refused"),
    "not found": Row(aws_failure("ResourceNotFoundException", 404), "refused"),
    "redirect": Row(aws_failure("", 307, Location="http://127.0.0.1:1/"), "refused"),
    "502 of something between": Row(aws_failure("", 502), "unavailable"),
    "guardrail": Row(Answer("Blocked.", stop="guardrail_intervened"), "refused", None, "Blocked.", on="bedrock"),
    "filtered": Row(Answer("Some", stop="content_filtered"), "refused", None, "Some", on="bedrock"),
    "malformed output": Row(Answer("Some", stop="malformed_model_output"), "invalid", None, "Some", on="bedrock"),
    "an unknown end": Row(Answer("Some", stop="bored"), "invalid", None, "Some", on="bedrock"),
    "no text": Row(Answer(""), "refused", on="bedrock"),
    "thought until it was stopped": Row(Answer(" ", stop="max_tokens"), "refused", None, " ", on="bedrock"),
    "stalls before headers": Row(Stall("headers"), "timeout"),
    "stalls before the first token": Row(Stall("first_token"), "timeout", only_streams=True),
    "stalls in the reply": Row(Stall("stream", HALF), "timeout", None, HALF),
    "cut": Row(Cut(HALF, abrupt=True), "broken_stream", None, HALF),
    "not JSON, nor frames": Row(Raw(b"<html>" * 20), "invalid"),
    "closed early": Row(Cut(HALF), "broken_stream", None, HALF, only_streams=True),
    "wrong checksum": Row(BadFrame("crc"), "invalid", None, HALF, only_streams=True),
    "wrong prelude": Row(BadFrame("prelude"), "invalid", None, HALF, only_streams=True),
    "payload changed": Row(BadFrame("payload"), "invalid", None, HALF, only_streams=True),
    "cut within a frame": Row(BadFrame("cut"), "broken_stream", None, HALF, only_streams=True),
    "frame without a type": Row(BadFrame("untyped"), "invalid", None, HALF, only_streams=True),
    "bytes of another protocol": Row(BadFrame("http"), "invalid", None, HALF, only_streams=True),
    "event not JSON": Row(BadFrame("not json"), "invalid", None, HALF, only_streams=True, on="bedrock"),
    "no messageStop": Row(
        Without(("messageStop",)), "broken_stream", None, "Whole it seems", only_streams=True, on="bedrock"
    ),
    "no metadata": Row(
        Without(("metadata",)), "broken_stream", None, "Whole it seems", only_streams=True, on="bedrock"
    ),
    "no [DONE]": Row(Without(()), "broken_stream", None, "Whole it seems", only_streams=True, on="sagemaker"),
    "throttled in the stream": Row(StreamError("throttlingException"), "throttled", None, HALF, only_streams=True),
    "unavailable in the stream": Row(
        StreamError("serviceUnavailableException"), "unavailable", None, HALF, only_streams=True
    ),
    "internal in the stream": Row(StreamError("internalServerException"), "unavailable", None, HALF, only_streams=True),
    "model stream error": Row(StreamError("modelStreamErrorException"), "broken_stream", None, HALF, only_streams=True),
    "not valid in the stream": Row(StreamError("validationException"), "refused", None, HALF, only_streams=True),
    "model stream error, SageMaker's": Row(
        StreamError("ModelStreamError", details={"ErrorCode": "StreamBroken"}),
        "broken_stream",
        None,
        HALF,
        only_streams=True,
    ),
    "model's time exceeded": Row(
        StreamError("ModelStreamError", details={"ErrorCode": "ModelInvocationTimeExceeded"}),
        "timeout",
        None,
        HALF,
        only_streams=True,
    ),
    "internal stream failure": Row(
        StreamError("InternalStreamFailure"), "broken_stream", None, HALF, only_streams=True
    ),
    "an error that is not modelled": Row(
        StreamError("InternalError", modeled=False), "unavailable", None, HALF, only_streams=True
    ),
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeBedrock]:
    async with fake_bedrock() as server:
        yield server


@pytest.fixture
async def providers(fake: FakeBedrock) -> AsyncIterator[dict[str, Provider]]:
    http = HttpClient()
    service = AwsService(http, fake.url, signing_name="unsigned", region="us-east-1", credentials=None, api_key=API_KEY)
    yield {"bedrock": BedrockProvider(service), "sagemaker": SageMakerProvider(service)}
    await http.close()


def call(**changes: Any) -> ModelCall:
    messages = [{"role": "user", "content": "How do I promote?"}]
    return ModelCall(**{"model": "m", "messages": messages, "question": "?", "total": 5.0, **changes})


CASES = [
    pytest.param(service, streamed, row, id=f"{name}-{service}-{'stream' if streamed else 'whole'}")
    for name, row in TABLE.items()
    for service in row.on.split()
    for streamed in (False, True)
    if streamed or not row.only_streams
]


@pytest.mark.parametrize(("service", "streamed", "row"), CASES)
async def test_failures(
    providers: dict[str, Provider], fake: FakeBedrock, service: str, streamed: bool, row: Row
) -> None:
    fake.then(row.step)
    provider = providers[service]
    total = 0.3 if isinstance(row.step, Stall) else 5.0
    given = ""
    began = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        if streamed:
            async for delta in provider.stream(call(total=total)):
                assert delta.reply is None
                given += delta.text
        else:
            await provider.generate(call(total=total))
    assert caught.value.kind == row.kind
    assert caught.value.retry_after == row.after
    assert given == (row.given if streamed else "")
    assert len(fake.seen) == 1, "one attempt is one call"
    assert time.monotonic() - began < 2
    assert "SECRET" not in f"{caught.value} {caught.value.why}"


async def test_it_answers_after_every_failure(providers: dict[str, Provider], fake: FakeBedrock) -> None:
    fake.then(*(row.step for row in TABLE.values() if not isinstance(row.step, Stall) and "bedrock" in row.on))
    while fake.script:
        with pytest.raises(ProviderError):
            async for _ in providers["bedrock"].stream(call()):
                pass
    assert (await providers["bedrock"].generate(call())).text == "Use promote [1]."


@pytest.mark.parametrize("service", ["bedrock", "sagemaker"])
async def test_the_first_token_has_a_deadline_of_its_own(
    providers: dict[str, Provider], fake: FakeBedrock, service: str
) -> None:
    fake.then(Stall("first_token"))
    with pytest.raises(ProviderError) as caught:
        await providers[service].generate(call(total=5.0, first_token=0.2))
    assert caught.value.kind == "timeout" and "first token" in caught.value.why
    assert (await providers[service].generate(call(total=5.0, first_token=2.0))).text == "Use promote [1]."


@pytest.mark.parametrize("stop", ["max_tokens", "stop_sequence", "model_context_window_exceeded"])
async def test_a_text_that_was_cut_short_is_a_text(
    providers: dict[str, Provider], fake: FakeBedrock, stop: str
) -> None:
    fake.default = Answer("As far as it", stop=stop)
    assert (await providers["bedrock"].generate(call())).text == "As far as it"
    assert [delta async for delta in providers["bedrock"].stream(call())][-1].reply is not None


@pytest.mark.parametrize("service", ["bedrock", "sagemaker"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_huge_answer_is_cut_off(
    providers: dict[str, Provider], fake: FakeBedrock, service: str, streamed: bool
) -> None:
    fake.then(Answer("x" * (MAX_REPLY + 1), piece=2**18))
    with pytest.raises(ProviderError) as caught:
        if streamed and service == "bedrock":
            async for _ in providers[service].stream(call()):
                pass
        else:
            await providers[service].generate(call())
    assert caught.value.kind == "invalid"


async def test_a_frame_that_promises_too_much_is_not_waited_for(
    providers: dict[str, Provider], fake: FakeBedrock
) -> None:
    fake.then(Raw(event("contentBlockDelta", b"x" * (MAX_REPLY + 2**20))[: MAX_REPLY + 2**19]))
    with pytest.raises(ProviderError) as caught:
        async for _ in providers["bedrock"].stream(call()):
            pass
    assert caught.value.kind == "invalid"


@pytest.mark.parametrize("at", range(1, 60, 7))
async def test_frames_may_arrive_in_any_pieces(providers: dict[str, Provider], fake: FakeBedrock, at: int) -> None:
    fake.default = Answer("One ü two €", piece=at)
    deltas = [delta async for delta in providers["bedrock"].stream(call())]
    assert deltas[-1].reply is not None and deltas[-1].reply.text == "One ü two €"


async def test_nobody_listens(fake: FakeBedrock) -> None:
    http = HttpClient()
    service = AwsService(
        http, "http://127.0.0.1:9", signing_name="bedrock", region="us-east-1", credentials=None, api_key=API_KEY
    )
    for provider in (BedrockProvider(service), SageMakerProvider(service)):
        with pytest.raises(ProviderError) as caught:
            await provider.generate(call())
        assert caught.value.kind == "unavailable"
    await http.close()
