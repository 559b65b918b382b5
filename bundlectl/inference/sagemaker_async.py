"""Asynchronous SageMaker endpoints: the request goes to S3, and the reply is fetched from where it is announced.

For routes of mode ``async``: such an endpoint queues requests, may scale to nothing, and answers in minutes. What it
was sent and what it said stay in their buckets until a lifecycle rule removes them. A call that is given up here
goes on there, which no API can stop, but is not begun any more after its deadline.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from botocore.exceptions import BotoCoreError, ClientError
from pydantic_core import from_json, to_json

from bundlectl.inference.aws import AwsService, path_part
from bundlectl.inference.chat import chat_reply
from bundlectl.inference.http import MAX_REPLY, deadline
from bundlectl.inference.provider import Delta, ErrorKind, ModelCall, ModelReply, ProviderError
from bundlectl.inference.sagemaker import container_body
from bundlectl.model.errors import UsageError

T = TypeVar("T")

FIRST_LOOK: Final = 0.2
LONGEST_PAUSE: Final = 10.0
_PLACE: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.*)", re.DOTALL)
_ABSENT: Final = ("NoSuchKey", "404")
_DENIED: Final = ("AccessDenied", "403", "NoSuchBucket", "InvalidAccessKeyId", "SignatureDoesNotMatch")


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket, and a key or prefix in it."""

    bucket: str
    key: str

    @property
    def uri(self) -> str:
        """As SageMaker writes it."""
        return f"s3://{self.bucket}/{self.key}"


def parse_place(uri: str | None) -> S3Place | None:
    """Read ``s3://bucket/key``; ``None`` when it is none."""
    found = _PLACE.fullmatch(uri or "")
    return S3Place(found[1], found[2]) if found else None


class SageMakerAsyncProvider:
    """One asynchronous endpoint; a whole reply is all that it gives."""

    name: Final = "sagemaker"
    reads_prompt: Final = True
    deterministic: Final = False

    def __init__(self, service: AwsService, s3: Any, requests: S3Place, *, endpoint: str | None = None) -> None:
        """Take the service, a boto3 client of S3, the prefix under which requests are put, and the bound endpoint."""
        self._service = service
        self._s3 = s3
        self._requests = requests
        self._endpoint = endpoint

    @property
    def address(self) -> str:
        """Where it is asked."""
        return self._service.address

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt; its first token is its whole reply."""
        what = _name(call)
        loop = asyncio.get_running_loop()
        seconds, which = call.total, "reply"
        if call.first_token is not None and call.first_token < call.total:
            seconds, which = call.first_token, "first token"
        with deadline(loop.time() + seconds, what, which):
            result, failure = await self._submit(call, seconds, what)
            pause = FIRST_LOOK
            while True:
                await asyncio.sleep(pause)
                if (data := await self._fetch(result, what)) is not None:
                    return chat_reply(_json(data, what), what)
                if failure is not None and await self._fetch(failure, what) is not None:
                    # What it holds is the container's own message, which may repeat the prompt.
                    raise ProviderError("unavailable", f"{what}: its container failed.", why="the invocation failed")
                pause = min(LONGEST_PAUSE, pause * 1.5)

    async def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt; the text comes in one piece."""
        reply = await self.generate(call)
        yield Delta(reply.text)
        yield Delta("", reply)

    async def _submit(self, call: ModelCall, seconds: float, what: str) -> tuple[S3Place, S3Place | None]:
        """Put the request and announce it; give where its result or its failure will be."""
        body = to_json(container_body(call, stream=False))
        place = S3Place(self._requests.bucket, f"{self._requests.key}{secrets.token_hex(16)}.json")
        put = partial(
            self._s3.put_object, Bucket=place.bucket, Key=place.key, Body=body, ContentType="application/json"
        )
        await self._ask(put, what)
        headers = {
            "X-Amzn-SageMaker-InputLocation": place.uri,
            "X-Amzn-SageMaker-Content-Type": "application/json",
            "X-Amzn-SageMaker-RequestTTLSeconds": str(min(max(int(seconds), 60), 21_600)),
            "X-Amzn-SageMaker-InvocationTimeoutSeconds": str(min(max(int(seconds), 1), 3600)),
        }
        path = f"/endpoints/{path_part(self._endpoint or call.model or '')}/async-invocations"
        response = await self._service.post(path, None, headers, what, expected=202)
        try:
            result = parse_place(response.headers.get("x-amzn-sagemaker-outputlocation"))
            failure = parse_place(response.headers.get("x-amzn-sagemaker-failurelocation"))
        finally:
            response.release()
        if result is None:
            raise ProviderError("invalid", f"{what}: the endpoint did not say where its reply will be.")
        return result, failure

    async def _fetch(self, place: S3Place, what: str) -> bytes | None:
        """Read an object; ``None`` when it is not there."""

        def read() -> bytes | None:
            # All of it in the thread: a call that is given up meanwhile leaves no connection open.
            body = self._s3.get_object(Bucket=place.bucket, Key=place.key)["Body"]
            with closing(body):
                data: bytes = body.read(MAX_REPLY + 1)
            return data

        data = await self._ask(read, what)
        if data is not None and len(data) > MAX_REPLY:
            raise ProviderError("invalid", f"{what}: the reply is larger than {MAX_REPLY} bytes.")
        return data

    async def _ask(self, work: Callable[[], T], what: str) -> T | None:
        """Ask S3 in a thread; ``None`` when the object is not there."""
        try:
            return await asyncio.to_thread(work)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                return None
            kind: ErrorKind = "refused" if code in _DENIED else "unavailable"
            raise ProviderError(kind, f"{what}: its bucket answered {code}.", why=f"S3: {code}") from error
        except BotoCoreError as error:
            why = f"S3: {type(error).__name__}"
            raise ProviderError("unavailable", f"{what}: its bucket cannot be reached.", why=why) from error


def requests_place(name: str, uri: str, field: str = "async_input") -> S3Place:
    """Read the bound prefix, with a slash at its end.

    Raises:
        UsageError: it is none.
    """
    found = parse_place(uri)
    if found is None:
        raise UsageError(
            f"Model {name} is bound to {field} {uri}, which is no place in S3.",
            fix="Write it like s3://bucket/prefix/.",
        )
    return S3Place(found.bucket, found.key if not found.key or found.key.endswith("/") else f"{found.key}/")


def _json(data: bytes, what: str) -> Any:
    try:
        return from_json(data)
    except ValueError as error:
        raise ProviderError("invalid", f"{what}: the reply is not JSON.") from error


def _name(call: ModelCall) -> str:
    return f"model {call.model}"
