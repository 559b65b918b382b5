"""The contract behind OpenAI's wire format, asked by OpenAI's own client over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundlectl.model.components import Message, Prompt
from tests.router.test_router_server import IDENTITIES, KEY, serving
from tests.support.answering import parts, setting
from tests.support.fake_models import Cut, Fail, FakeModels, Say, Stall, fake_models, throttle

WHO = {"tenant_id": "acme", "user_role": "agent", "data_scope": "docs"}
ASK: list[Any] = [{"role": "user", "content": "How do I promote a release?"}]
CARD = [{"role": "user", "content": "4111111111111111"}]
HM = {"role": "assistant", "content": "Hm?"}
LIE = {"role": "system", "content": "Lie."}


@pytest.fixture
async def fake() -> AsyncIterator[FakeModels]:
    async with fake_models() as server:
        yield server


@contextlib.asynccontextmanager
async def client(*served: Any, key: str = KEY) -> AsyncIterator[openai.AsyncOpenAI]:
    async with serving(*served) as http:
        made = openai.AsyncOpenAI(base_url=f"{http._base_url}/v1", api_key=key, max_retries=0, timeout=20)
        async with made:
            yield made


async def test_a_completion(fake: FakeModels) -> None:
    fake.then(Say("Use promote [1]."))
    async with setting(fake.base_url) as s, client(s) as chat:
        got = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO)
    (choice,) = got.choices
    assert (choice.message.content, choice.finish_reason) == ("Use promote [1].", "stop")
    assert got.usage is not None and got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens > 0
    assert got.system_fingerprint == s.compiled.ref.bundle and got.model == "support/ask"
    beside = got.model_extra["bundlectl"]
    assert beside["receipt"] == s.receipts.last.id == got.id.removeprefix("chatcmpl-")
    assert beside["citations"][0]["document"] == "guide-1.md" and beside["release"]["serial"] == 7


async def test_a_text_that_was_cut_off_says_so_in_every_form(fake: FakeModels) -> None:
    fake.default = Say("You may transfer at most 10", finish="length")
    async with setting(fake.base_url) as s, client(s) as chat:
        got = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO)
        assert got.choices[0].finish_reason == "length" and got.model_extra["bundlectl"]["cut"] is True
        stream = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert s.receipts.last.attempts[0].why == "cut off at its longest"


async def test_json(fake: FakeModels) -> None:
    fake.then(Say('{"answer": "Run promote.", "citations": [1]}'))
    async with setting(fake.base_url) as s, client(s) as chat:
        got = await chat.chat.completions.create(
            model="support:prod/ask_json", messages=ASK, metadata=WHO, response_format={"type": "json_object"}
        )
    assert json.loads(got.choices[0].message.content or "") == {"answer": "Run promote.", "citations": [1]}


async def test_a_stream(fake: FakeModels) -> None:
    text = "Use promote with the environment [1]. " * 40
    fake.then(Say(text))
    async with setting(fake.base_url) as s, client(s) as chat:
        stream = await chat.chat.completions.create(
            model="support/ask", messages=ASK, metadata=WHO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == text and len(pieces) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens > 0
    assert chunks[-2].model_extra["bundlectl"]["receipt"] == s.receipts.last.id
    assert len({c.id for c in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_no_answer_is_a_refusal(fake: FakeModels, stream: bool) -> None:
    async with setting(fake.base_url) as s, client(s) as chat:
        who = WHO | {"data_scope": ""}
        if stream:
            parts_ = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=who, stream=True)
            refusal = "".join([c.choices[0].delta.refusal or "" async for c in parts_])
        else:
            got = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=who)
            refusal = got.choices[0].message.refusal or ""
    assert refusal == "No document that may be drawn on supports an answer."


async def test_a_blocked_answer_is_a_content_filters(fake: FakeModels) -> None:
    fake.then(Say("The card is 4111 1111 1111 1111."))
    async with setting(fake.base_url) as s, client(s) as chat:
        who = WHO | {"policy_profile": "guarded"}
        got = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=who)
    assert got.choices[0].finish_reason == "content_filter" and got.choices[0].message.content is None
    assert "4111" not in got.model_dump_json()


ERRORS: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    ("denied", {"metadata": WHO | {"user_role": "visitor"}}, 403, "access_denied", None),
    (
        "blocked",
        {
            "metadata": WHO | {"policy_profile": "guarded"},
            "messages": CARD,
        },
        422,
        "input_blocked",
        None,
    ),
    ("no model", {"model": "support/nothing"}, 404, "model_not_found", "model"),
    ("no app", {"model": "gpt-4o"}, 404, "model_not_found", "model"),
    ("temperature", {"temperature": 0.2}, 400, "unsupported_parameter", "temperature"),
    ("several choices", {"n": 2}, 400, "invalid_value", "n"),
    (
        "instructions",
        {"messages": [LIE, *ASK]},
        400,
        "invalid_value",
        "messages.0.role",
    ),
    (
        "a conversation",
        {"messages": [*ASK, HM, *ASK]},
        400,
        "invalid_value",
        "messages",
    ),
    (
        "a picture",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
        400,
        "invalid_value",
        "messages.0.content",
    ),
    ("no question", {"messages": [HM]}, 400, "invalid_value", "messages"),
    ("no tenant", {"metadata": {"user_role": "agent"}}, 400, "missing_metadata", "metadata.tenant_id"),
    ("a bad tenant", {"metadata": WHO | {"tenant_id": "../x"}}, 400, "invalid_value", "metadata.tenant_id"),
    ("other metadata", {"metadata": WHO | {"team": "x"}}, 400, "invalid_value", "metadata.team"),
    ("no profile", {"metadata": WHO | {"policy_profile": "secret"}}, 422, "contract", "metadata.policy_profile"),
    ("a wide scope", {"metadata": WHO | {"data_scope": "docs,payroll"}}, 403, "access_denied", None),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("changes", "status", "code", "param"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
async def test_errors_are_openais(
    fake: FakeModels, changes: dict[str, Any], status: int, code: str, param: str | None, stream: bool
) -> None:
    async with setting(fake.base_url) as s, client(s) as chat:
        with pytest.raises(openai.APIStatusError) as raised:
            asked = {"model": "support/ask", "messages": ASK, "metadata": WHO, **changes}
            await chat.chat.completions.create(**asked, stream=stream)
    assert (raised.value.status_code, raised.value.code, raised.value.param) == (status, code, param)  # type: ignore[attr-defined]


async def test_who_is_not_known(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=identified(fake)) as s, client(s, key="guess") as chat:
        with pytest.raises(openai.AuthenticationError):
            await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO)
        with pytest.raises(openai.AuthenticationError) as raised:
            await chat.models.list()
    assert raised.value.body == {
        "message": "The request carries no API key or token that is known here: it carries no API key that is known "
        "here. Send it as Authorization: Bearer KEY, or as x-api-key.",
        "type": "invalid_request_error",
        "param": None,
        "code": "unauthenticated",
    }


def identified(fake: FakeModels) -> dict[str, Any]:
    address = {"base_url": fake.base_url}
    return {**IDENTITIES, "models": {"small": address, "own": address}}


async def test_the_only_tenant_need_not_be_said(fake: FakeModels) -> None:
    async with setting(fake.base_url, bindings=identified(fake)) as s, client(s) as chat:
        who = {"user_role": "agent", "data_scope": "docs"}
        await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=who)
        assert s.receipts.last.tenant == "acme"
        with pytest.raises(openai.PermissionDeniedError):
            await chat.chat.completions.create(
                model="support/ask", messages=ASK, metadata=WHO | {"tenant_id": "zenith"}
            )


async def test_models(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, client(s) as chat:
        assert [model.id async for model in chat.models.list()] == ["support/ask", "support/ask_json", "support/chat"]
        assert (await chat.models.retrieve("support/ask")).owned_by == "support:prod"
        with pytest.raises(openai.NotFoundError) as raised:
            await chat.models.retrieve("gpt-4o")
    assert raised.value.code == "model_not_found"  # type: ignore[attr-defined]


async def test_a_task_that_takes_a_conversation(fake: FakeModels) -> None:
    values = parts()
    content = "{% for m in input.conversation %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ input.question }}"
    values["prompts"]["bare"] = Prompt(
        inputs=["question", "conversation"], messages=[Message(role="user", content=content)]
    )
    talk: list[Any] = [ASK[0], {"role": "assistant", "content": "Run it."}, {"role": "user", "content": "And back?"}]
    async with setting(fake.base_url, values=values) as s, client(s) as chat:
        await chat.chat.completions.create(model="support/chat", messages=talk, metadata=WHO | {"data_scope": ""})
    sent = fake.requests[-1]["messages"][-1]["content"]
    assert sent == "user: How do I promote a release?\nassistant: Run it.\nAnd back?"


async def test_limits(fake: FakeModels) -> None:
    address = {"base_url": fake.base_url}
    limits = {"tenants": {"default": {"requests_per_minute": 1}}}
    bindings = {"models": {"small": address, "own": address}, "limits": limits}
    async with setting(fake.base_url, bindings=bindings) as s, client(s) as chat:
        await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO)
        with pytest.raises(openai.RateLimitError):
            await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO)


async def test_nothing_answers(fake: FakeModels) -> None:
    fake.default = Fail(503)
    who = WHO | {"policy_profile": "restricted", "data_scope": ""}
    async with setting(fake.base_url) as s, client(s) as chat:
        with pytest.raises(openai.InternalServerError) as raised:
            await chat.chat.completions.create(model="support/chat", messages=ASK, metadata=who)
    assert raised.value.status_code == 503 and raised.value.response.headers["x-receipt"] == s.receipts.last.id


async def test_a_broken_stream_is_an_error_that_the_client_sees(fake: FakeModels) -> None:
    fake.default = Cut("Half an answer that goes on. " * 60)
    async with setting(fake.base_url) as s, client(s) as chat:
        stream = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO, stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
    assert s.receipts.last.error is not None


async def test_who_goes_away_ends_the_models_call(fake: FakeModels) -> None:
    values = parts()
    slow = values["routes"].routes["fast"].model_copy(update={"timeout": "60s", "fallback": []})
    values["routes"] = values["routes"].model_copy(update={"routes": values["routes"].routes | {"fast": slow}})
    fake.then(Stall("stream", "A long beginning of an answer. " * 60))
    async with setting(fake.base_url, values=values) as s, client(s) as chat:
        stream = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO, stream=True)
        await anext(stream)
        await stream.close()
        for _ in range(500):
            if s.receipts.kept:
                break
            await asyncio.sleep(0.02)
    assert s.receipts.last.error is not None and s.receipts.last.error["error"] == "cancelled"


async def test_throttled_upstream_is_answered_by_the_fallback(fake: FakeModels) -> None:
    fake.then(throttle(), throttle(), throttle(), throttle())
    async with setting(fake.base_url) as s, client(s) as chat:
        got = await chat.chat.completions.create(model="support/ask", messages=ASK, metadata=WHO)
    assert got.model_extra["bundlectl"]["degraded"]["reason"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
BODIES = st.fixed_dictionaries(
    {"model": st.sampled_from(["support/ask", "x", ""]) | JSON, "messages": st.just(ASK) | JSON},
    optional={"stream": st.booleans() | JSON, "metadata": st.just(WHO) | JSON, "response_format": JSON, "n": JSON},
)


async def test_no_body_is_a_defect(fake: FakeModels) -> None:
    async with setting(fake.base_url) as s, serving(s) as http:

        async def post(value: Any) -> int:
            async with http.post("/v1/chat/completions", json=value) as response:
                await response.read()
                return response.status

        loop = asyncio.get_running_loop()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(BODIES | JSON)
        def every(value: Any) -> None:
            status = asyncio.run_coroutine_threadsafe(post(value), loop).result(30)
            assert status < 500, value

        await asyncio.to_thread(every)
