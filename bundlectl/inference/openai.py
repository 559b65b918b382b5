"""Models behind the OpenAI chat completions format: any compatible server, whole replies and streams.

A stream ends with ``data: [DONE]``; one that stops before it is broken, however complete its text looks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from bundlectl.inference.chat import ChatStream, ServerSentEvents, chat_body, chat_reply
from bundlectl.inference.client import HttpClient, head_of
from bundlectl.inference.connection import Response
from bundlectl.inference.http import bearer, deadline, post_json, read_json
from bundlectl.inference.provider import Delta, ModelCall, ModelReply
from bundlectl.inference.streaming import stream_reply, whole_of

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"


class OpenAIProvider:
    """One server and one credential; the model is named by each call."""

    name: Final = "openai"
    reads_prompt: Final = True
    deterministic: Final = False

    def __init__(self, http: HttpClient, base_url: str | None, credential: str | None) -> None:
        """Take the shared client, the address up to and including ``/v1``, and the API key's value.

        Raises:
            UsageError: the key holds what no header may.
        """
        self._http = http
        self._url = (base_url or DEFAULT_BASE_URL).rstrip("/") + "/chat/completions"
        self._head = head_of({"Content-Type": "application/json"}) + bearer(credential)

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt; a deadline for tokens makes it a stream, as only streams have tokens."""
        what = _name(call)
        if call.must_stream:
            return await whole_of(self.stream(call), what)
        with deadline(asyncio.get_running_loop().time() + call.total, what, "reply"):
            response = await self._post(call, stream=False)
            try:
                return chat_reply(await read_json(response, what), what)
            finally:
                response.release()

    def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt, giving text as it comes; the last delta carries the whole reply."""
        what = _name(call)

        async def read(response: Response) -> AsyncGenerator[bytes, None]:
            events = ServerSentEvents(what)
            async for part in response.parts():
                for data in events.feed(part):
                    yield data

        return stream_reply(call, what, lambda: self._post(call, stream=True), read, ChatStream(what))

    async def _post(self, call: ModelCall, *, stream: bool) -> Response:
        return await post_json(self._http, self._url, chat_body(call, stream=stream), self._head, _name(call))


def _name(call: ModelCall) -> str:
    return f"model {call.model}"
