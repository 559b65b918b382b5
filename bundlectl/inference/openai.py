"""Models behind the OpenAI chat completions format: any compatible server, whole replies and streams.

A stream ends with ``data: [DONE]``; one that stops before it is broken, however complete its text looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

import aiohttp

from bundlectl.inference.chat import ChatStream, ServerSentEvents, chat_body, chat_reply
from bundlectl.inference.http import deadline, failures, post_json, read_json
from bundlectl.inference.provider import Delta, ModelCall, ModelReply
from bundlectl.inference.streaming import stream_reply, whole_of

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"


class OpenAIProvider:
    """One server and one credential; the model is named by each call."""

    name: Final = "openai"
    reads_prompt: Final = True
    deterministic: Final = False

    def __init__(self, session: aiohttp.ClientSession, base_url: str | None, credential: str | None) -> None:
        """Take the shared session, the address up to and including ``/v1``, and the API key's value."""
        self._session = session
        self._url = (base_url or DEFAULT_BASE_URL).rstrip("/") + "/chat/completions"
        self._headers = {"content-type": "application/json"}
        if credential:
            self._headers["authorization"] = f"Bearer {credential}"

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt; a deadline for tokens makes it a stream, as only streams have tokens."""
        what = _name(call)
        if call.must_stream:
            return await whole_of(self.stream(call), what)
        async with deadline(asyncio.get_running_loop().time() + call.total, what, "reply"):
            response = await self._post(call, stream=False)
            try:
                with failures(what):
                    return chat_reply(await read_json(response, what), what)
            finally:
                response.release()

    def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt, giving text as it comes; the last delta carries the whole reply."""
        what = _name(call)

        async def read(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
            events = ServerSentEvents(what)
            async for part in response.content.iter_any():
                for data in events.feed(part):
                    yield data

        return stream_reply(call, what, lambda: self._post(call, stream=True), read, ChatStream(what))

    async def _post(self, call: ModelCall, *, stream: bool) -> aiohttp.ClientResponse:
        return await post_json(self._session, self._url, chat_body(call, stream=stream), self._headers, _name(call))


def _name(call: ModelCall) -> str:
    return f"model {call.model}"
