"""The OpenAI chat completions format, without any I/O: bodies, replies, and the events of a stream.

https://platform.openai.com/docs/api-reference/chat. Servers speak it over HTTP (:mod:`bundlectl.inference.openai`)
and containers behind SageMaker (:mod:`bundlectl.inference.sagemaker`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from bundlectl.inference.http import MAX_REPLY
from bundlectl.inference.provider import ModelCall, ModelReply, ProviderError, worded
from bundlectl.model.contract import Usage

_DONE = b"[DONE]"


def chat_body(call: ModelCall, *, stream: bool) -> dict[str, Any]:
    """Write the request of a call."""
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


def chat_reply(value: Any, what: str) -> ModelReply:
    """Read a whole reply.

    Raises:
        ProviderError: ``invalid``: it is not one; ``refused``: it declines to answer, or says nothing.
    """
    try:
        choice = value["choices"][0]
        message = choice["message"]
    except (KeyError, IndexError, TypeError) as error:
        raise ProviderError("invalid", f"{what}: the reply has no choices[0].message.") from error
    if not isinstance(message, dict):
        raise ProviderError("invalid", f"{what}: the reply's message is no object.")
    _check_willing(message, choice, what)
    text, cut = message.get("content"), choice.get("finish_reason") == "length"
    if not isinstance(text, str | None):
        raise ProviderError("invalid", f"{what}: the reply's message has no text.")
    usage = value.get("usage")
    reply = ModelReply(
        text=text or "",
        usage=_usage(usage) if isinstance(usage, dict) else Usage(),
        provider_model=_string(value.get("model")),
        cut=cut,
    )
    return worded(reply, what)


class ChatStream:
    """What a stream has said so far. ``ended``: its end marker, ``data: [DONE]``, has come."""

    def __init__(self, what: str) -> None:
        """Begin; ``what`` names the model in errors."""
        self.ended = False
        self._what = what
        self._parts: list[str] = []
        self._size = 0
        self._usage = Usage()
        self._model: str | None = None
        self._cut = False

    def take(self, data: bytes) -> str:
        """Read one event and give its text."""
        if data == _DONE:
            self.ended = True
            return ""
        try:
            chunk = from_json(data)
        except ValueError as error:
            raise ProviderError("invalid", f"{self._what}: an event of the stream is not JSON.") from error
        if not isinstance(chunk, dict) or chunk.get("error"):
            raise ProviderError("unavailable", f"{self._what}: the stream carried an error.")
        self._model = _string(chunk.get("model")) or self._model
        if isinstance(chunk.get("usage"), dict):
            self._usage = _usage(chunk["usage"])
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return ""
        choice = choices[0]
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            raise ProviderError("invalid", f"{self._what}: a choice of the stream has no delta.")
        _check_willing(delta, choice, self._what)
        if choice.get("finish_reason") == "length":
            self._cut = True
        text = _string(delta.get("content")) or ""
        self._size += len(text)
        if self._size > MAX_REPLY:
            raise ProviderError("invalid", f"{self._what}: the reply is longer than {MAX_REPLY} characters.")
        self._parts.append(text)
        return text

    def reply(self) -> ModelReply:
        """Give the whole reply.

        Raises:
            ProviderError: ``refused``: it says nothing.
        """
        text = "".join(self._parts)
        reply = ModelReply(text=text, usage=self._usage, provider_model=self._model, cut=self._cut)
        return worded(reply, self._what)


class ServerSentEvents:
    """Splits bytes into the data of server-sent events (WHATWG HTML, 9.2); comments and other fields are skipped."""

    def __init__(self, what: str) -> None:
        """Begin; ``what`` names the model in errors."""
        self._what = what
        self._pending = b""
        self._held: list[bytes] = []

    def feed(self, part: bytes) -> Iterator[bytes]:
        """Give the events that these bytes complete.

        Raises:
            ProviderError: ``invalid``: a line is too long to wait for its end.
        """
        *lines, self._pending = (self._pending + part).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._held.append(line[5:].removeprefix(b" "))
            elif not line and self._held:
                held, self._held = self._held, []
                yield b"\n".join(held)
        if len(self._pending) > MAX_REPLY:
            raise ProviderError("invalid", f"{self._what}: an event of the stream is larger than {MAX_REPLY} bytes.")


def _check_willing(message: Mapping[str, Any], choice: Mapping[str, Any], what: str) -> None:
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise ProviderError("refused", f"{what} declined to answer.", why="the provider's own filter")


def _usage(value: Mapping[str, Any]) -> Usage:
    details = value.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        input_tokens=_count(value, "prompt_tokens"),
        output_tokens=_count(value, "completion_tokens"),
        cache_read_tokens=cached or None,
    )


def _count(value: Mapping[str, Any], key: str) -> int:
    found = value.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else 0


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
