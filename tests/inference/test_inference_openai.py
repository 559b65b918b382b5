"""OpenAI-compatible servers over a real socket: replies, streams, and every way a server misbehaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bundlectl.inference.client import HttpClient
from bundlectl.inference.http import MAX_REPLY
from bundlectl.inference.openai import OpenAIProvider
from bundlectl.inference.provider import ModelCall, ProviderError
from bundlectl.model.errors import UsageError
from tests.support.fake_models import Cut, Fail, FakeModels, Raw, Refuse, Say, Stall, Step, fake_models, throttle


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@pytest.fixture
async def provider(fake: FakeModels) -> AsyncIterator[OpenAIProvider]:
    session = HttpClient()
    yield OpenAIProvider(session, fake.base_url + "/", "sk-secret")
    await session.close()


def call(**changes: Any) -> ModelCall:
    values: dict[str, Any] = {
        "model": "qwen3-8b",
        "messages": [{"role": "user", "content": "How do I promote? é"}],
        "question": "How do I promote?",
        "parameters": {"temperature": 0, "max_tokens": 50, "model": "evil", "stream": True},
        "total": 5.0,
    }
    return ModelCall(**{**values, **changes})


async def test_a_reply_with_usage_and_the_returned_model(provider: OpenAIProvider, fake: FakeModels) -> None:
    fake.then(Say("Use `promote` [1]. é", model="qwen3-8b-2026-01"))
    reply = await provider.generate(call())
    assert reply.text == "Use `promote` [1]. é"
    assert reply.provider_model == "qwen3-8b-2026-01"
    assert reply.usage.input_tokens == 100 and reply.usage.output_tokens > 0
    sent = fake.requests[0]
    assert sent["model"] == "qwen3-8b" and sent["stream"] is False and sent["temperature"] == 0
    assert "response_format" not in sent
    assert fake.headers[0]["Authorization"] == "Bearer sk-secret"


async def test_a_schema_is_sent_and_parameters_may_replace_its_form(provider: OpenAIProvider, fake: FakeModels) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    await provider.generate(call(schema=schema))
    assert fake.requests[0]["response_format"]["json_schema"]["schema"] == schema
    await provider.generate(call(schema=schema, parameters={"response_format": {"type": "json_object"}}))
    assert fake.requests[1]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_a_stream_gives_pieces_then_the_whole_reply(
    provider: OpenAIProvider, fake: FakeModels, piece: int
) -> None:
    text = "Schön: `promote`\nthen “verify” [1]."
    fake.then(Say(text, piece=piece))
    deltas = [delta async for delta in provider.stream(call())]
    assert "".join(delta.text for delta in deltas) == text
    last = deltas[-1].reply
    assert last is not None and last.text == text and last.usage.input_tokens == 100
    assert all(delta.reply is None for delta in deltas[:-1])
    assert fake.requests[0]["stream_options"] == {"include_usage": True}


MISBEHAVIOUR: list[tuple[str, Step, str]] = [
    ("429", throttle("7"), "throttled"),
    ("500", Fail(500), "unavailable"),
    ("503", Fail(503, headers={"Retry-After": "7"}), "unavailable"),
    ("401", Fail(401, "invalid_api_key"), "refused"),
    ("400", Fail(400, "bad_request", "SECRET PROMPT ECHO"), "refused"),
    ("redirect", Fail(307, headers={"Location": "http://127.0.0.1:1/"}), "refused"),
    ("declined", Refuse(), "refused"),
    ("no headers", Stall("headers"), "timeout"),
    ("stalls in the body", Stall("stream"), "timeout"),
    ("cut", Cut(abrupt=True), "broken_stream"),
]


@pytest.mark.parametrize(("step", "kind"), [row[1:] for row in MISBEHAVIOUR], ids=[row[0] for row in MISBEHAVIOUR])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_misbehaviour_has_one_vocabulary(
    provider: OpenAIProvider, fake: FakeModels, step: Step, kind: str, streamed: bool
) -> None:
    fake.then(step)
    began = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        if streamed:
            async for _ in provider.stream(call(total=0.3)):
                pass
        else:
            await provider.generate(call(total=0.3))
    assert caught.value.kind == kind
    assert time.monotonic() - began < 2
    assert "SECRET" not in str(caught.value) and "sk-secret" not in str(caught.value)
    if isinstance(step, Fail) and "Retry-After" in step.headers:
        assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 5}}]}', b"null"],
)
async def test_a_reply_in_another_format_is_invalid(provider: OpenAIProvider, fake: FakeModels, body: bytes) -> None:
    fake.then(Raw(body))
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call())
    assert caught.value.kind == "invalid"


@pytest.mark.parametrize(
    ("said", "finish", "why"),
    [
        ({"content": None, "tool_calls": [{"index": 0}]}, "tool_calls", "no text"),
        ({"content": ""}, "length", "no text within max_tokens"),
        ({"content": " \n"}, "stop", "no text"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reply_without_a_word_is_no_answer_and_its_tokens_count(
    provider: OpenAIProvider, fake: FakeModels, said: dict[str, Any], finish: str, why: str, streamed: bool
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7}
    part = {"index": 0, "finish_reason": finish, "delta" if streamed else "message": said}
    data = json.dumps({"choices": [part], "usage": usage}).encode()
    fake.then(Raw(b"data: " + data + b"\n\ndata: [DONE]\n\n" if streamed else data))
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call(first_token=2.0 if streamed else None))
    assert (caught.value.kind, caught.value.why) == ("refused", why)
    assert caught.value.reply is not None and caught.value.reply.usage.output_tokens == 7


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_reply_that_was_cut_off_says_so(provider: OpenAIProvider, fake: FakeModels, streamed: bool) -> None:
    part = {"finish_reason": "length", "error": None, "delta" if streamed else "message": {"content": "At most 10"}}
    data = json.dumps({"error": None, "choices": [part]}).encode()
    fake.then(Raw(b"data: " + data + b"\n\ndata: [DONE]\n\n" if streamed else data))
    reply = await provider.generate(call(first_token=2.0 if streamed else None))
    assert (reply.text, reply.cut) == ("At most 10", True)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"data: {nonsense\n\n", "invalid"),
        (b'data: {"error": {"message": "overloaded"}}\n\n', "unavailable"),
        (b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n', "broken_stream"),
        (b"", "broken_stream"),
        (b"data: " + b"x" * (MAX_REPLY + 10), "invalid"),
    ],
)
async def test_a_stream_in_another_format(provider: OpenAIProvider, fake: FakeModels, body: bytes, kind: str) -> None:
    fake.then(Raw(body, "text/event-stream"))
    with pytest.raises(ProviderError) as caught:
        async for _ in provider.stream(call()):
            pass
    assert caught.value.kind == kind


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_huge_answer_is_cut_off(provider: OpenAIProvider, fake: FakeModels, streamed: bool) -> None:
    fake.then(Say("x" * (MAX_REPLY + 1), piece=2**18))
    with pytest.raises(ProviderError) as caught:
        if streamed:
            async for _ in provider.stream(call()):
                pass
        else:
            await provider.generate(call())
    assert caught.value.kind == "invalid"


async def test_a_stream_that_ends_without_its_marker_is_broken(provider: OpenAIProvider, fake: FakeModels) -> None:
    fake.then(Cut("Half"))
    seen = ""
    with pytest.raises(ProviderError) as caught:
        async for delta in provider.stream(call()):
            seen += delta.text
    assert seen == "Half" and caught.value.kind == "broken_stream"


async def test_the_first_token_has_a_deadline_of_its_own(provider: OpenAIProvider, fake: FakeModels) -> None:
    fake.then(Stall("first_token"), Say("soon enough"))
    began = time.monotonic()
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call(total=5.0, first_token=0.2))
    assert caught.value.kind == "timeout" and "first token" in caught.value.why
    assert time.monotonic() - began < 2
    reply = await provider.generate(call(total=5.0, first_token=0.5))
    assert reply.text == "soon enough"


async def test_tokens_have_a_deadline_from_one_to_the_next(provider: OpenAIProvider, fake: FakeModels) -> None:
    fake.then(Stall("stream", "Half an answer"), Say("soon enough"))
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call(total=5.0, between_tokens=0.2))
    assert caught.value.kind == "timeout" and "next token" in caught.value.why
    texts = []
    async for delta in provider.stream(call(total=5.0, between_tokens=0.5)):
        texts.append(delta.text)
        await asyncio.sleep(0.6)
    assert "".join(texts) == "soon enough", "a consumer may take its time"


async def test_a_slow_consumer_of_a_stream_is_not_struck_by_the_first_token_deadline(
    provider: OpenAIProvider, fake: FakeModels
) -> None:
    fake.then(Say("one two three four"))
    seen = ""
    async for delta in provider.stream(call(first_token=0.2)):
        seen += delta.text
        await asyncio.sleep(0.1)
    assert seen == "one two three four"


async def test_nor_by_the_total_one_for_the_time_that_it_takes_itself(
    provider: OpenAIProvider, fake: FakeModels
) -> None:
    fake.then(Stall("stream", "one two three", seconds=1.4))
    seen = ""
    async for delta in provider.stream(call(total=1.0)):
        seen += delta.text
        await asyncio.sleep(0.3)
    assert seen == "one two three", "the model itself took half of its time"


async def test_a_prompt_of_megabytes_is_sent(provider: OpenAIProvider, fake: FakeModels) -> None:
    await provider.generate(call(messages=[{"role": "user", "content": "x" * 2**21}]))
    assert len(fake.requests[0]["messages"][0]["content"]) == 2**21


async def test_nobody_listens(fake: FakeModels) -> None:
    session = HttpClient()
    provider = OpenAIProvider(session, "http://127.0.0.1:9/v1", None)
    with pytest.raises(ProviderError) as caught:
        await provider.generate(call())
    assert caught.value.kind == "unavailable"
    with pytest.raises(ProviderError) as caught:
        await OpenAIProvider(session, "not a url", None).generate(call())
    assert caught.value.kind == "refused"
    await session.close()


async def test_events_may_be_split_anywhere_and_use_any_line_end(provider: OpenAIProvider, fake: FakeModels) -> None:
    events = [{"choices": [{"delta": {"content": word}}]} for word in ("a ", "b ", "c")]
    body = b"".join(b"event: x\r\ndata:" + json.dumps(event).encode() + b"\r\n\r\n" for event in events)
    fake.then(Raw(b"\r\n" + body + b"data: [DONE]\r\n\r\n", "text/event-stream"))
    deltas = [delta async for delta in provider.stream(call())]
    assert deltas[-1].reply is not None and deltas[-1].reply.text == "a b c"


async def test_a_key_that_no_header_may_hold_is_told_before_it_is_sent() -> None:
    async with HttpClient() as http:
        with pytest.raises(UsageError, match="cannot be sent"):
            OpenAIProvider(http, "http://127.0.0.1:1/v1", "key-of-€")
