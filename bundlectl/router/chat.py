"""``POST /v1/chat/completions`` and ``GET /v1/models``: the contract behind OpenAI's wire format.

https://platform.openai.com/docs/api-reference/chat. ``model`` is ``app/task``, or ``app:environment/task``. The last
message is the question. Earlier ones go to a task whose prompt declares the input ``conversation``; others take one
question. Who asks for whom is said in ``metadata``, whose values are strings: ``tenant_id`` and ``user_role``, which
may be left out where the caller can claim only one; ``policy_profile``, by default the task's first; ``data_scope``,
names with commas between them, by default all that the task may see; ``latency_class``.

What a bundle decides, such as ``temperature``, is refused and not ignored. The answer's citations, release, route,
cost and receipt stand in ``bundlectl`` beside OpenAI's own fields. A refusal is the message's ``refusal``; where the
status of ``/v1/requests`` would be another than 200, it is an error with that status.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bundlectl.model.canonical import parse_json
from bundlectl.model.contract import Answer, Pinned, Request, Usage
from bundlectl.model.errors import VerificationFailed
from bundlectl.router.access_log import RECEIPT
from bundlectl.router.cache import caching_of
from bundlectl.router.chat_openapi import chat_paths
from bundlectl.router.contract import ContractError
from bundlectl.router.http_error import CHALLENGE, HttpError
from bundlectl.router.limits import whole_seconds
from bundlectl.router.pinning import HEADER, pinned_caller
from bundlectl.router.record import Outcome
from bundlectl.router.router import Event, error_body
from bundlectl.router.served import Caller
from bundlectl.router.turns import Turns

CHAT: Final = "/v1/chat/completions"
MODELS: Final = "/v1/models"
CONVERSATION: Final = "conversation"
"""The prompt input that earlier messages go to: a list of {role, content}."""
_METADATA: Final = ("tenant_id", "user_role", "policy_profile", "data_scope", "latency_class")
_SILENT: Final = ("output_blocked",)
"""Refusals that OpenAI's format calls a content filter's."""
_HEADERS: Final = {"cache-control": "no-store"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["user", "assistant"]
    content: str | list[_Part]
    name: str | None = None

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Format(BaseModel):
    type: Literal["text", "json_object", "json_schema"]


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Chat(BaseModel):
    """What of OpenAI's request is taken."""

    model_config = ConfigDict(extra="forbid")
    model: Annotated[str, Field(max_length=200)]
    messages: list[_Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _Format | None = None
    metadata: dict[str, str] | None = None
    n: Literal[1] | None = None
    user: str | None = None
    store: Literal[False] | None = None


class ChatApi:
    """The endpoints."""

    def __init__(
        self,
        callers: Callable[[HttpRequest], Awaitable[Sequence[Caller]]],
        body: Callable[[HttpRequest], Awaitable[bytes | None]],
        turns: Turns,
    ) -> None:
        """Take what tells who calls, what reads a body within the server's bounds, and whose turn it is."""
        self._callers = callers
        self._body = body
        self._turns = turns

    def routes(self) -> list[Route]:
        """Give the routes."""
        return [
            Route(CHAT, self._in_form(self._complete), methods=["POST"]),
            Route(MODELS, self._in_form(self._models), methods=["GET"]),
            Route(MODELS + "/{model:path}", self._in_form(self._model), methods=["GET"]),
        ]

    def _in_form(
        self, endpoint: Callable[[HttpRequest], Awaitable[Response]]
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def answered(request: HttpRequest) -> Response:
            try:
                return await endpoint(request)
            except HttpError as error:
                return _error(error.status, error.body)
            except ContractError as error:
                fields = error.details.get("fields", [])
                param = _PARAMS.get(fields[0]["field"]) if fields else None
                why = "; ".join(f"{field['field']}: {field['message']}" for field in fields)
                return _error(422, {"error": error.code, "message": error.what, "why": why, "fix": error.fix}, param)

        return answered

    async def _models(self, request: HttpRequest) -> Response:
        found = [_model(one, task) for one in await self._callers(request) for task in sorted(one.compiled.tasks)]
        return JSONResponse({"object": "list", "data": found})

    async def _model(self, request: HttpRequest) -> Response:
        caller, task = _choose(request.path_params["model"], await self._callers(request))
        return JSONResponse(_model(caller, task))

    async def _pinned(
        self, request: HttpRequest, model: str, caller: Caller, task: str
    ) -> tuple[Caller, Pinned | None]:
        named = next((value for name, value in request.scope["headers"] if name == HEADER), None)
        if named is None:
            return caller, None

        async def again() -> Caller:
            return _choose(model, await self._callers(request))[0]

        caller, pinned = await pinned_caller(caller, named, again)
        if task not in caller.compiled.tasks:
            raise _no_model(model)
        return caller, pinned

    async def _complete(self, request: HttpRequest) -> Response:
        callers = await self._callers(request)
        body = await self._body(request)
        if body is None:
            return Response(status_code=499)  # the caller has gone away
        # Judged again: while the body came, a release may have come that knows the caller no longer.
        chat, callers = _read(body), await self._callers(request)
        caller, task = _choose(chat.model, callers)
        caller, pinned = await self._pinned(request, chat.model, caller, task)
        asked, caching = _request(chat, caller, task), caching_of(request.scope["headers"])
        if not chat.stream:
            async with self._turns.turn(interactive=asked.latency_class == "interactive"):
                outcome = await caller.served.router.handle(asked, caller.identity, caller.compiled, caching, pinned)
            request.scope[RECEIPT] = outcome.receipt.id
            if outcome.answer is None:
                return _error(outcome.status, error_body(outcome))
            if outcome.status != 200:
                return _refused(outcome, outcome.answer)
            return JSONResponse(_completion(outcome.answer, chat.model))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._turns.turn(interactive=asked.latency_class == "interactive"))
            events = caller.served.router.stream(asked, caller.identity, caller.compiled, caching, pinned)
            await stack.enter_async_context(aclosing(events))
            first = await anext(events)
            request.scope[RECEIPT] = first.outcome.receipt.id if first.outcome is not None else first.data["receipt"]
            if first.outcome is not None and first.outcome.status != 200:
                answer = first.outcome.answer
                return _error(first.outcome.status, first.data) if answer is None else _refused(first.outcome, answer)
            usage = chat.stream_options is not None and chat.stream_options.include_usage
            chunks = _chunks(first, events, chat.model, stack.pop_all(), usage=usage)
            return StreamingResponse(chunks, media_type="text/event-stream", headers=_HEADERS)


def openapi_paths() -> dict[str, Any]:
    """Give what the OpenAPI document says of both."""
    return chat_paths(CHAT, MODELS, _Chat.model_json_schema())


# ---------------------------------------------------------------- what came

_PARAMS: Final = {
    "task": "model",
    "tenant_id": "metadata.tenant_id",
    "user_role": "metadata.user_role",
    "data_scope": "metadata.data_scope",
    "policy_profile": "metadata.policy_profile",
    "latency_class": "metadata.latency_class",
    "response_format": "response_format",
    "input": "messages",
}


def _read(body: bytes) -> _Chat:
    try:
        value = parse_json(body, what="The body")
    except VerificationFailed as error:
        raise _bad("bad_json", error.what, why=error.why) from error
    try:
        chat = _Chat.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        at = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden" and "content" not in found["loc"]:
            fix = "Leave it out: the bundle decides how its task is answered."
            raise _bad("unsupported_parameter", f"{at} is not taken here.", fix=fix, param=at) from error
        if at.endswith(".role"):
            message = f"{at}: messages are the user's and the assistant's; instructions are the bundle's."
            raise _bad("invalid_value", message, param=at) from error
        if "content" in found["loc"]:
            at = ".".join(str(part) for part in found["loc"][: found["loc"].index("content") + 1])
            raise _bad("invalid_value", f"{at} is text, or parts of the type text.", param=at) from error
        raise _bad("invalid_value", f"{at}: {found['msg']}", param=at) from error
    unknown = sorted(set(chat.metadata or {}) - set(_METADATA))
    if unknown:
        message = f"metadata.{unknown[0]} is not known here; it takes {', '.join(_METADATA)}."
        raise _bad("invalid_value", message, param=f"metadata.{unknown[0]}")
    if chat.messages[-1].role != "user":
        raise _bad("invalid_value", "The last message is the question, so it is the user's.", param="messages")
    return chat


def _choose(model: str, callers: Sequence[Caller]) -> tuple[Caller, str]:
    app, _, task = model.partition("/")
    found = [one for one in callers if app in (one.served.app, one.served.name) and task in one.compiled.tasks]
    if len(found) == 1:
        return found[0], task
    if found:
        names = ", ".join(f"{one.served.name}/{task}" for one in found)
        raise _bad("ambiguous_model", f"{model} is served more than once: {names}.", param="model")
    raise _no_model(model)


def _model(caller: Caller, task: str) -> dict[str, Any]:
    served = caller.served
    return {"id": f"{served.app}/{task}", "object": "model", "created": 0, "owned_by": served.name}


def _no_model(model: str) -> HttpError:
    return HttpError(
        404,
        {
            "error": "model_not_found",
            "message": f"There is no {model} here for this caller.",
            "fix": f"A model is app/task; GET {MODELS} lists them.",
            "param": "model",
        },
    )


def _request(chat: _Chat, caller: Caller, name: str) -> Request:
    """Put the contract together.

    Raises:
        HttpError: tenant or role is left out, and the caller may claim several; or the messages do not fit the task.
    """
    task = caller.compiled.tasks[name]
    said = chat.metadata or {}
    values: dict[str, Any] = {
        "task": name,
        "tenant_id": said.get("tenant_id") or _only(caller.identity.tenants, "tenant_id"),
        "user_role": said.get("user_role") or _only(caller.identity.roles, "user_role"),
        "data_scope": _names(said["data_scope"]) if "data_scope" in said else list(task.scopes),
        "policy_profile": said.get("policy_profile") or next(iter(task.profiles)),
        "input": {task.question_input: chat.messages[-1].text()},
    }
    if "latency_class" in said:
        values["latency_class"] = said["latency_class"]
    if chat.response_format is not None:
        values["response_format"] = "text" if chat.response_format.type == "text" else "structured_json"
    earlier = chat.messages[:-1]
    if CONVERSATION in task.inputs:
        values["input"][CONVERSATION] = [{"role": one.role, "content": one.text()} for one in earlier]
    elif earlier:
        raise _bad(
            "invalid_value",
            f"The task {name} takes one question, and {len(chat.messages)} messages were sent.",
            fix=f"Send the last one; or declare the input {CONVERSATION} in the task's prompt.",
            param="messages",
        )
    try:
        return Request.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = str(found["loc"][0])
        raise _bad("invalid_value", f"{field}: {found['msg']}", param=_PARAMS.get(field, field)) from error


def _names(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _only(claims: frozenset[str], field: str) -> str:
    if len(claims) == 1 and "*" not in claims:
        return next(iter(claims))
    raise _bad(
        "missing_metadata", f"metadata.{field} is missing, and the caller may claim several.", param=f"metadata.{field}"
    )


def _bad(code: str, message: str, *, why: str = "", fix: str = "", param: str | None = None) -> HttpError:
    return HttpError(400, {"error": code, "message": message, "why": why, "fix": fix, "param": param})


# ---------------------------------------------------------------- what goes


def _told(body: Mapping[str, Any]) -> str:
    """Give what happened, why and what to do in one text, as there is one place for it."""
    what, why, fix = (str(body.get(part) or "").strip() for part in ("message", "why", "fix"))
    first = f"{what.removesuffix('.')}: {why.removesuffix('.')}." if why else what
    return f"{first} {fix}" if fix else first


def _error(status: int, body: Mapping[str, Any], param: str | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    error = {
        "message": _told(body),
        "type": "rate_limit_error" if status == 429 else kind,
        "param": param or body.get("param"),
        "code": body["error"],
    }
    headers = dict(CHALLENGE) if status == 401 else {}
    if "receipt" in body:
        headers["x-receipt"] = body["receipt"]
    if "retry_after" in body:
        headers["retry-after"] = str(body["retry_after"])
    return JSONResponse({"error": error}, status, headers)


def _refused(outcome: Outcome, answer: Answer) -> Response:
    assert answer.refused is not None, "an answer with another status than 200 is a refusal"
    body: dict[str, Any] = {"error": answer.refused.code, "message": answer.refused.reason, "receipt": answer.receipt}
    if outcome.retry_after is not None:
        body["retry_after"] = whole_seconds(outcome.retry_after)
    return _error(outcome.status, body)


def _completion(answer: Answer, model: str) -> dict[str, Any]:
    refusal = answer.refused.reason if answer.refused is not None else None
    message = {"role": "assistant", "content": None if refusal else _content(answer.output), "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer), "logprobs": None}
    return {
        **_frame(answer.receipt, model, answer.release.bundle, "chat.completion"),
        "choices": [choice],
        "usage": _usage(answer.usage),
        "bundlectl": _beside(answer),
    }


async def _chunks(
    first: Event, events: AsyncGenerator[Event, None], model: str, held: AsyncExitStack, *, usage: bool
) -> AsyncIterator[bytes]:
    """Give the stream of a router as chunks, and let go of what is held for it at its end.

    What ends in an error ends with it, and without ``[DONE]``.
    """
    frame: dict[str, Any] = {}

    def chunk(delta: Mapping[str, Any], finish: str | None = None, **also: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data({**frame, "choices": [choice], **also})

    async with held:
        event = first
        while True:
            if not frame:
                told = event.data if event.outcome is None else event.data | {"receipt": event.outcome.receipt.id}
                frame = _frame(told["receipt"], model, told["release"]["bundle"], "chat.completion.chunk")
                yield chunk({"role": "assistant", "content": ""})
            if event.kind == "delta":
                yield chunk({"content": event.data["text"]})
            if event.outcome is not None:
                break
            event = await anext(events)
    answer = event.outcome.answer
    if answer is None:
        error = {"message": _told(event.data), "type": "server_error", "param": None}
        yield _data({"error": {**error, "code": event.data["error"]}})
        return
    if answer.refused is not None:
        yield chunk({"refusal": answer.refused.reason})
    yield chunk({}, _finish(answer), bundlectl=_beside(answer))
    if usage:
        yield _data({**frame, "choices": [], "usage": _usage(answer.usage)})
    yield b"data: [DONE]\n\n"


def _data(value: Any) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _frame(receipt: str, model: str, bundle: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{receipt}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": bundle,
    }


def _finish(answer: Answer) -> str:
    if answer.cut:
        return "length"
    return "content_filter" if answer.refused is not None and answer.refused.code in _SILENT else "stop"


def _content(output: Any) -> str:
    return output if isinstance(output, str) else to_json(output).decode()


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens or 0},
    }


def _beside(answer: Answer) -> dict[str, Any]:
    held = answer.form()
    return {key: value for key, value in held.items() if key not in ("output", "format", "usage")}
