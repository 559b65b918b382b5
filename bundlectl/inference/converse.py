"""The Bedrock Converse format, without any I/O: parameters, bodies, replies, and the events of a stream.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html and API_runtime_ConverseStream.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from bundlectl.inference.bedrock_settings import BedrockGuard, ConverseParameters, first_problem
from bundlectl.inference.http import MAX_REPLY
from bundlectl.inference.provider import ModelCall, ModelReply, ProviderError, worded
from bundlectl.model.contract import Usage

CUT: Final = ("max_tokens", "model_context_window_exceeded")
"""Reasons to stop before the end of a text."""
ENDED: Final = ("end_turn", "stop_sequence", *CUT)
"""Reasons to stop that leave a text."""
DECLINED: Final = ("guardrail_intervened", "content_filtered", "refusal")

TOOL: Final = "answer"
"""The tool that a model is made to call so that its answer fits a schema."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One call in this format. ``called`` is how the price book names what is called; ``what`` is for errors."""

    call: ModelCall
    parameters: ConverseParameters
    guard: BedrockGuard | None
    called: str
    what: str

    @property
    def through_tool(self) -> bool:
        """Whether the answer is what the model calls the tool with."""
        return self.call.schema is not None and self.parameters.structured_output == "tool"

    def body(self, *, stream: bool) -> dict[str, Any]:
        """Write the request.

        System messages stand together before the others, neighbours of one role are one message, and blank ones
        are left out: the API wants turns that alternate and texts that are not empty.

        Raises:
            ProviderError: ``refused``: the conversation does not begin with a user.
        """
        system, messages = _turns(self.call.messages)
        if not messages or messages[0]["role"] != "user":
            raise ProviderError("refused", f"{self.what}: after system messages the first must be a user's.")
        body: dict[str, Any] = {"messages": messages}
        if self.call.schema is not None:
            body.update(_form(self.call.schema, self.parameters.structured_output, system))
        if self.parameters.prompt_cache is not None and system:
            # Without a ttl it is 5 minutes, which is all that some models know.
            longer = {"ttl": "1h"} if self.parameters.prompt_cache == "1h" else {}
            system.append({"cachePoint": {"type": "default", **longer}})
        if system:
            body["system"] = system
        if self.guard is not None:
            # The other mode of streams gives text out before it is checked.
            mode = {"streamProcessingMode": "sync"} if stream else {}
            named = {"guardrailIdentifier": self.guard.id, "guardrailVersion": self.guard.version}
            body["guardrailConfig"] = {**named, **mode}
        body.update(_settings(self.parameters))
        return body

    def reply(self, value: Any) -> ModelReply:
        """Read a whole reply.

        Raises:
            ProviderError: ``invalid``: it is not one; ``refused``: it declines to answer.
        """
        stop = value.get("stopReason") if isinstance(value, dict) else None
        self.check_stop(stop)
        try:
            content = value["output"]["message"]["content"]
            blocks = [block for block in content if isinstance(block, dict)]
        except (KeyError, TypeError) as error:
            raise ProviderError("invalid", f"{self.what}: the reply has no output.message.content.") from error
        if self.through_tool:
            used = [block["toolUse"] for block in blocks if isinstance(block.get("toolUse"), dict)]
            parts = [to_json(use["input"]).decode() for use in used if isinstance(use.get("input"), dict)][:1]
        else:
            parts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
        return self.whole("".join(parts), value, stop)

    def check_stop(self, stop: Any) -> None:
        """Check why the model stopped.

        Raises:
            ProviderError: ``refused``: it declined; ``invalid``: for a reason that leaves no answer.
        """
        if stop in DECLINED:
            raise ProviderError("refused", f"{self.what} declined to answer.", why=str(stop))
        if stop not in ENDED and not (self.through_tool and stop == "tool_use"):
            why = stop if isinstance(stop, str) and stop.isidentifier() and len(stop) <= 64 else "no stopReason"
            raise ProviderError("invalid", f"{self.what}: the reply ended with {why}.", why=why)

    def whole(self, text: str, value: Mapping[str, Any], stop: Any) -> ModelReply:
        """Make the reply of its text, the object with usage, metrics and how it was served, and why it stopped.

        Raises:
            ProviderError: ``refused``: there is no text; ``invalid``: the tool was not called.
        """
        if self.through_tool and not text:
            raise ProviderError("invalid", f"{self.what}: the reply calls no tool.", why="no tool was called")
        latency = _count(value.get("metrics"), "latencyMs")
        invoked = _name(_member(value.get("trace"), "promptRouter"), "invokedModelId")
        tier = _name(value.get("serviceTier"), "type") or self.parameters.service_tier
        fast = _name(value.get("performanceConfig"), "latency") or self.parameters.latency
        reply = ModelReply(
            text=text,
            usage=read_usage(value.get("usage"), self.parameters.prompt_cache),
            provider_model=invoked,
            priced_as=price_name(invoked or self.called, tier, fast),
            provider_seconds=latency / 1000 if latency else None,
            cut=stop in CUT,
        )
        return worded(reply, self.what)


def price_name(called: str, tier: str | None, latency: str | None) -> str:
    """Give the price book's name for what is called in a service tier and a latency; the usual ones have none."""
    return "@".join([called, *(name for name in (tier, latency) if name not in (None, "default", "standard"))])


class ConverseStream:
    """What a stream has said so far. ``ended``: both its last events, messageStop and metadata, have come."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._what = conversation.what
        self._parts: list[str] = []
        self._size = 0
        self._stopped: Any = None
        self._metadata: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether the reply is whole."""
        return self._stopped is not None and self._metadata is not None

    def take(self, event: tuple[str, bytes], /) -> str:
        """Read one event and give its text; events of other kinds are skipped."""
        kind, payload = event
        if kind == "contentBlockDelta":
            return self._text(self._read(payload).get("delta"))
        if kind == "messageStop":
            stop = self._read(payload).get("stopReason")
            self._conversation.check_stop(stop)
            self._stopped = stop
        elif kind == "metadata":
            self._metadata = self._read(payload)
        return ""

    def reply(self) -> ModelReply:
        """Give the whole reply."""
        return self._conversation.whole("".join(self._parts), self._metadata or {}, self._stopped)

    def _read(self, payload: bytes) -> dict[str, Any]:
        try:
            value = from_json(payload)
        except ValueError as error:
            raise ProviderError("invalid", f"{self._what}: an event of the stream is not JSON.") from error
        if not isinstance(value, dict):
            raise ProviderError("invalid", f"{self._what}: an event of the stream is no object.")
        return value

    def _text(self, delta: Any) -> str:
        # Reasoning, citations, and words beside the tool are none of the answer's text.
        through_tool = self._conversation.through_tool
        held = _member(delta, "toolUse") if through_tool else delta
        text = _name(held, "input" if through_tool else "text") or ""
        self._size += len(text)
        if self._size > MAX_REPLY:
            raise ProviderError("invalid", f"{self._what}: the reply is longer than {MAX_REPLY} characters.")
        self._parts.append(text)
        return text


def read_parameters(call: ModelCall, what: str) -> ConverseParameters:
    """Read a call's parameters.

    Raises:
        ProviderError: ``refused``: they are not those of Bedrock models.
    """
    try:
        return ConverseParameters.model_validate(dict(call.parameters))
    except ValidationError as error:
        raise ProviderError("refused", f"{what}: its parameters do not fit.", why=first_problem(error)) from error


def _turns(given: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for message in given:
        block = {"text": message["content"]}
        if not message["content"].strip():
            continue
        if message["role"] == "system":
            system.append(block)
        elif messages and messages[-1]["role"] == message["role"]:
            messages[-1]["content"].append(block)
        else:
            messages.append({"role": message["role"], "content": [block]})
    return system, messages


def _form(schema: Mapping[str, Any], how: str, system: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask for JSON of a schema: by what is returned, or by an instruction put behind the system prompt."""
    text = to_json(schema).decode()
    if how == "schema":
        structure = {"jsonSchema": {"schema": text, "name": TOOL}}
        return {"outputConfig": {"textFormat": {"type": "json_schema", "structure": structure}}}
    if how == "tool":
        spec = {"name": TOOL, "description": "Gives the answer.", "inputSchema": {"json": dict(schema)}}
        return {"toolConfig": {"tools": [{"toolSpec": spec}], "toolChoice": {"tool": {"name": TOOL}}}}
    system.append({"text": f"Answer with nothing but one JSON object that fits this JSON Schema:\n{text}"})
    return {}


def _settings(parameters: ConverseParameters) -> dict[str, Any]:
    inference = {
        "maxTokens": parameters.max_tokens,
        "temperature": parameters.temperature,
        "topP": parameters.top_p,
        "stopSequences": parameters.stop,
    }
    given = {
        "inferenceConfig": {name: value for name, value in inference.items() if value is not None} or None,
        "additionalModelRequestFields": parameters.additional,
        "serviceTier": {"type": parameters.service_tier} if parameters.service_tier else None,
        "performanceConfig": {"latency": parameters.latency} if parameters.latency else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def read_usage(value: Any, ttl: str | None) -> Usage:
    """Read token counts. Bedrock's ``inputTokens`` leaves out what the cache served or took in; ours has it all.

    Args:
        value: the reply's ``usage``.
        ttl: how long written tokens were asked to be kept, for those that ``cacheDetails`` says nothing of.
    """
    read = _count(value, "cacheReadInputTokens")
    written = _count(value, "cacheWriteInputTokens")
    kept = {"5m": 0, "1h": 0}
    details = value.get("cacheDetails") if isinstance(value, dict) else None
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and detail.get("ttl") in kept:
            kept[detail["ttl"]] += _count(detail, "inputTokens")
    kept[ttl or "5m"] += max(0, written - sum(kept.values()))
    return Usage(
        input_tokens=_count(value, "inputTokens") + read + sum(kept.values()),
        output_tokens=_count(value, "outputTokens"),
        cache_read_tokens=read or None,
        cache_write_5m_tokens=kept["5m"] or None,
        cache_write_1h_tokens=kept["1h"] or None,
    )


def _count(value: Any, key: str) -> int:
    found = _member(value, key)
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else 0


def _member(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _name(value: Any, key: str) -> str | None:
    found = _member(value, key)
    return found if isinstance(found, str) else None
