"""Models on Amazon Bedrock through Converse and ConverseStream, with SigV4 or a Bedrock API key.

A stream is whole when both messageStop and metadata have come; without either it is broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from bundlectl.inference.aws import AwsService, event_of, open_service, path_part, read_frames
from bundlectl.inference.aws_region import region_of
from bundlectl.inference.aws_session import aws_session
from bundlectl.inference.bedrock_settings import BedrockGuard, ConverseParameters, first_problem
from bundlectl.inference.client import HttpClient
from bundlectl.inference.connection import Response
from bundlectl.inference.converse import Conversation, ConverseStream, price_name, read_parameters
from bundlectl.inference.http import deadline, read_json
from bundlectl.inference.provider import Delta, ModelCall, ModelReply, Provider
from bundlectl.inference.streaming import stream_reply, whole_of
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.components import Model
from bundlectl.model.errors import UsageError

PRICED_REGION: Final = "us-east-1"
"""The price book names what is called in other regions with the region before it."""


class BedrockProvider:
    """One region; the model is named by each call, unless an inference profile takes its place."""

    name: Final = "bedrock"
    reads_prompt: Final = True
    deterministic: Final = False

    def __init__(self, service: AwsService, *, profile: str | None = None, guard: BedrockGuard | None = None) -> None:
        """Take the service, the bound inference profile and the guardrail that every call names."""
        self._service = service
        self._profile = profile
        self._guard = guard

    @property
    def address(self) -> str:
        """Where it is asked."""
        return self._service.address

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt; a deadline for tokens makes it a stream, as only streams have tokens."""
        what = _name(call)
        if call.must_stream:
            return await whole_of(self.stream(call), what)
        conversation = self.conversation(call)
        with deadline(asyncio.get_running_loop().time() + call.total, what, "reply"):
            response = await self._post(conversation, "converse", stream=False)
            try:
                return conversation.reply(await read_json(response, what))
            finally:
                response.release()

    def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt, giving text as it comes; the last delta carries the whole reply."""
        what = _name(call)
        conversation = self.conversation(call)

        async def read(response: Response) -> AsyncGenerator[tuple[str, bytes], None]:
            async for frame in read_frames(response, what):
                yield event_of(frame, what)

        async def begin() -> Response:
            return await self._post(conversation, "converse-stream", stream=True)

        return stream_reply(call, what, begin, read, ConverseStream(conversation))

    def conversation(self, call: ModelCall) -> Conversation:
        """Give a call in the form of Converse."""
        return Conversation(
            call=call,
            parameters=read_parameters(call, _name(call)),
            guard=self._guard,
            called=self._in_region(self.called(call)),
            what=_name(call),
        )

    def priced_as(self, model: Model) -> str:
        """Give the name that the price book has for asking a model."""
        parameters = ConverseParameters.model_validate(model.parameters)
        called = self._in_region(self._profile or model.model or "")
        return price_name(called, parameters.service_tier, parameters.latency)

    def _in_region(self, called: str) -> str:
        return called if self._service.region == PRICED_REGION else f"{self._service.region}/{called}"

    def called(self, call: ModelCall) -> str:
        """Give the id or inference profile that is called."""
        return self._profile or call.model or ""

    async def _post(self, conversation: Conversation, operation: str, *, stream: bool) -> Response:
        path = f"/model/{path_part(self.called(conversation.call))}/{operation}"
        return await self._service.post(path, conversation.body(stream=stream), {}, conversation.what)


def open_bedrock(
    name: str,
    model: Model,
    binding: ModelBinding,
    guards: Mapping[str, Mapping[str, Any]],
    http: HttpClient,
    environ: Mapping[str, str],
    api_key: str | None,
    *,
    in_jobs: bool = False,
) -> Provider:
    """Open the provider of a model as it is bound; not on the event loop, see :func:`open_service`.

    ``in_jobs``: it serves a route of mode ``async``, whose calls become batch jobs where a place for them is bound.

    Raises:
        UsageError: its parameters, the binding ``guards.bedrock`` or the AWS configuration do not fit.
        NotFound: there are no credentials.
        BackendUnavailable: who gives the credentials cannot be reached.
    """
    try:
        ConverseParameters.model_validate(model.parameters)
    except ValidationError as error:
        known = ", ".join(ConverseParameters.model_fields)
        raise UsageError(
            f"The parameters of model {name} are not those of Bedrock models.",
            why=first_problem(error),
            fix=f"They are {known}; what only one model knows goes under 'additional'.",
        ) from error
    try:
        guard = BedrockGuard.model_validate(guards["bedrock"]) if "bedrock" in guards else None
    except ValidationError as error:
        raise UsageError(
            "The binding guards.bedrock does not name a guardrail.",
            why=first_problem(error),
            fix='Give its id and version, e.g. {id: abc123, version: "3"}.',
        ) from error
    service = open_service(
        http,
        "bedrock-runtime",
        region=binding.region or region_of(binding.inference_profile) or region_of(model.model),
        endpoint=binding.base_url,
        environ=environ,
        api_key=api_key,
    )
    online = BedrockProvider(service, profile=binding.inference_profile, guard=guard)
    if not in_jobs or binding.batch_s3 is None or binding.batch_role is None:
        return online
    from bundlectl.inference.bedrock_jobs import BedrockJobs
    from bundlectl.inference.sagemaker_async import requests_place

    place = requests_place(name, binding.batch_s3, "batch_s3")
    aws = aws_session(http)
    return BedrockJobs(
        online, aws.client("bedrock", service.region), aws.client("s3", service.region), place, binding.batch_role
    )


def _name(call: ModelCall) -> str:
    return f"model {call.model}"
