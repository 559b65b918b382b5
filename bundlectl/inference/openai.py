"""Models behind the OpenAI chat completions format: any compatible server, whole replies and streams.

https://platform.openai.com/docs/api-reference/chat. A stream ends with ``data: [DONE]``; one that stops before
it is broken, however complete its text looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import aiohttp
from pydantic_core import from_json

from bundlectl.inference.http import MAX_REPLY, deadline, failures, post_json, read_json
from bundlectl.inference.provider import Delta, ModelCall, ModelReply, ProviderError
from bundlectl.model.contract import Usage

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
_DONE = b"[DONE]"


class OpenAIProvider:
    """One server and one credential; the model is named by each call."""

    name: Final = "openai"
    reads_prompt: Final = True
    deterministic: Final = False

    def __init__(self, session: aiohttp.ClientSession, base_url: str | None, credential: str | None) -> None:
        """Take the shared session, the address up to and including ``/v1``, and the API key's value."""
        self._session = session
        self._url = (base_url or DEFAULT_BASE_URL).rstrip("/") + "/chat/completions"
        self._headers = {"authorization": f"Bearer {credential}"} if credential else {}

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt; a first-token deadline makes it a stream, as only streams have a first token."""
        if call.first_token is not None:
            async with aclosing(self.stream(call)) as deltas:
                async for delta in deltas:
                    if delta.reply is not None:
                        return delta.reply
            raise _broken(_name(call))
        what = _name(call)
        async with deadline(asyncio.get_running_loop().time() + call.total, what, "reply"):
            response = await post_json(self._session, self._url, _body(call, stream=False), self._headers, what)
            try:
                with failures(what):
                    return _reply(await read_json(response, what), what)
            finally:
                response.release()

    async def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt, giving text as it comes; the last delta carries the whole reply."""
        what = _name(call)
        began = asyncio.get_running_loop().time()
        end, which = began + call.total, "whole reply"
        next_by = end
        if call.first_token is not None and call.first_token < call.total:
            next_by, which = began + call.first_token, "first token"
        async with deadline(next_by, what, which):
            response = await post_json(self._session, self._url, _body(call, stream=True), self._headers, what)
        try:
            gathered = _Gathered(what)
            events = _events(response, what)
            while True:
                async with deadline(next_by, what, which):
                    with failures(what):
                        data = await anext(events, None)
                if data is None:
                    raise _broken(what)
                if data == _DONE:
                    yield Delta("", gathered.reply())
                    return
                text = gathered.take(data)
                if text:
                    next_by, which = end, "whole reply"
                    yield Delta(text)
        finally:
            response.release()


class _Gathered:
    """What a stream has said so far."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.parts: list[str] = []
        self.size = 0
        self.usage = Usage()
        self.model: str | None = None

    def take(self, data: bytes) -> str:
        """Read one event and give its text."""
        try:
            chunk = from_json(data)
        except ValueError as error:
            raise ProviderError("invalid", f"{self.what}: an event of the stream is not JSON.") from error
        if not isinstance(chunk, dict) or "error" in chunk:
            raise ProviderError("unavailable", f"{self.what}: the stream carried an error.")
        self.model = _string(chunk.get("model")) or self.model
        if isinstance(chunk.get("usage"), dict):
            self.usage = _usage(chunk["usage"])
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return ""
        choice = choices[0]
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            raise ProviderError("invalid", f"{self.what}: a choice of the stream has no delta.")
        _check_willing(delta, choice, self.what)
        text = _string(delta.get("content")) or ""
        self.size += len(text)
        if self.size > MAX_REPLY:
            raise ProviderError("invalid", f"{self.what}: the reply is longer than {MAX_REPLY} characters.")
        self.parts.append(text)
        return text

    def reply(self) -> ModelReply:
        """Give the whole reply."""
        return ModelReply(text="".join(self.parts), usage=self.usage, provider_model=self.model)


async def _events(response: aiohttp.ClientResponse, what: str) -> AsyncIterator[bytes]:
    """Give the data of each server-sent event (WHATWG HTML, 9.2); comments and other fields are skipped."""
    pending = b""
    held: list[bytes] = []
    async for part in response.content.iter_any():
        pending += part
        if len(pending) > MAX_REPLY:
            raise ProviderError("invalid", f"{what}: an event of the stream is larger than {MAX_REPLY} bytes.")
        *lines, pending = pending.split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                held.append(line[5:].removeprefix(b" "))
            elif not line and held:
                yield b"\n".join(held)
                held = []


def _body(call: ModelCall, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if call.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": dict(call.schema)},
        }
    # The bundle's own parameters may choose another response_format for servers that know no json_schema,
    # but never the model, the messages or the form of the reply.
    body.update(call.parameters)
    body.update(model=call.model, messages=list(call.messages), stream=stream)
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body


def _reply(value: Any, what: str) -> ModelReply:
    try:
        choice = value["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError) as error:
        raise ProviderError("invalid", f"{what}: the reply has no choices[0].message.") from error
    if not isinstance(message, dict):
        raise ProviderError("invalid", f"{what}: the reply's message is no object.")
    _check_willing(message, choice, what)
    text = message.get("content")
    if not isinstance(text, str):
        raise ProviderError("invalid", f"{what}: the reply's message has no text.")
    usage = value.get("usage")
    return ModelReply(
        text=text,
        usage=_usage(usage) if isinstance(usage, dict) else Usage(),
        provider_model=_string(value.get("model")),
    )


def _check_willing(message: dict[str, Any], choice: dict[str, Any], what: str) -> None:
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise ProviderError("refused", f"{what} declined to answer.", why="the provider's own filter")


def _usage(value: dict[str, Any]) -> Usage:
    def count(key: str) -> int:
        found = value.get(key)
        return found if isinstance(found, int) and found >= 0 else 0

    return Usage(input_tokens=count("prompt_tokens"), output_tokens=count("completion_tokens"))


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _name(call: ModelCall) -> str:
    return f"model {call.model}"


def _broken(what: str) -> ProviderError:
    return ProviderError("broken_stream", f"{what}: the stream ended without its end marker.")
