"""Models in containers behind SageMaker endpoints that speak the OpenAI chat format, as vLLM, SGLang and LMI do.

InvokeEndpoint gives whole replies. InvokeEndpointWithResponseStream carries the container's server-sent events in
frames that are split anywhere; such a stream ends with the container's ``data: [DONE]``, or it is broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from bundlectl.inference.aws import AwsService, event_of, open_service, path_part, read_frames
from bundlectl.inference.aws_session import aws_session
from bundlectl.inference.chat import ChatStream, ServerSentEvents, chat_body, chat_reply
from bundlectl.inference.client import HttpClient
from bundlectl.inference.connection import Response
from bundlectl.inference.fitting import sagemaker_misfits
from bundlectl.inference.http import deadline, read_json
from bundlectl.inference.provider import Delta, ModelCall, ModelReply, Provider
from bundlectl.inference.streaming import stream_reply, whole_of
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.errors import UsageError


class SageMakerProvider:
    """One region; the endpoint is the call's model, unless a bound one takes its place."""

    name: Final = "sagemaker"
    reads_prompt: Final = True
    deterministic: Final = False

    def __init__(
        self,
        service: AwsService,
        *,
        endpoint: str | None = None,
        inference_component: str | None = None,
        target_variant: str | None = None,
    ) -> None:
        """Take the service, and the endpoint, inference component and variant that are bound."""
        self._service = service
        self._endpoint = endpoint
        chosen = {
            "X-Amzn-SageMaker-Inference-Component": inference_component,
            "X-Amzn-SageMaker-Target-Variant": target_variant,
        }
        self._headers = {name: value for name, value in chosen.items() if value is not None}

    @property
    def address(self) -> str:
        """Where it is asked."""
        return self._service.address

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt; a deadline for tokens makes it a stream, as only streams have tokens."""
        what = _name(call)
        if call.must_stream:
            return await whole_of(self.stream(call), what)
        with deadline(asyncio.get_running_loop().time() + call.total, what, "reply"):
            response = await self._post(call, "invocations", stream=False)
            try:
                return chat_reply(await read_json(response, what), what)
            finally:
                response.release()

    def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt, giving text as it comes; the last delta carries the whole reply."""
        what = _name(call)

        async def read(response: Response) -> AsyncGenerator[bytes, None]:
            events = ServerSentEvents(what)
            async for frame in read_frames(response, what):
                kind, payload = event_of(frame, what)
                if kind == "PayloadPart":
                    for data in events.feed(payload):
                        yield data

        async def begin() -> Response:
            return await self._post(call, "invocations-response-stream", stream=True)

        return stream_reply(call, what, begin, read, ChatStream(what))

    async def _post(self, call: ModelCall, operation: str, *, stream: bool) -> Response:
        path = f"/endpoints/{path_part(self._endpoint or call.model or '')}/{operation}"
        return await self._service.post(path, container_body(call, stream=stream), self._headers, _name(call))


def container_body(call: ModelCall, *, stream: bool) -> dict[str, Any]:
    """Write what the container gets.

    The endpoint's name means nothing to it; one that holds several models (LoRA adapters) is told which by the
    bundle's parameters.
    """
    body = chat_body(call, stream=stream)
    del body["model"]
    if "model" in call.parameters:
        body["model"] = call.parameters["model"]
    return body


def open_sagemaker(name: str, binding: ModelBinding, http: HttpClient, environ: Mapping[str, str]) -> Provider:
    """Open the provider of a model as it is bound; not on the event loop, see :func:`open_service`.

    Raises:
        UsageError: what is bound does not fit an endpoint, or the AWS configuration does not.
        NotFound: there are no credentials.
        BackendUnavailable: who gives the credentials cannot be reached.
    """
    problems = sagemaker_misfits(name, binding)
    if problems:
        raise UsageError(
            f"What is bound to model {name} does not fit a SageMaker endpoint.",
            why="; ".join(problems),
            fix=f"Correct models.{name} in the environment's file.",
        )
    service = open_service(http, "sagemaker-runtime", region=binding.region, endpoint=binding.base_url, environ=environ)
    if binding.async_input is None:
        return SageMakerProvider(
            service,
            endpoint=binding.endpoint,
            inference_component=binding.inference_component,
            target_variant=binding.target_variant,
        )
    from bundlectl.inference.sagemaker_async import SageMakerAsyncProvider, requests_place

    place = requests_place(name, binding.async_input)
    s3 = aws_session(http).client("s3", service.region)
    return SageMakerAsyncProvider(service, s3, place, endpoint=binding.endpoint)


def _name(call: ModelCall) -> str:
    return f"model {call.model}"
