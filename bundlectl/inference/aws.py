"""AWS model services over the shared HTTP session: where they are, signed requests, event streams, their errors.

botocore finds the address and the credentials, signs (SigV4) and decodes event streams; it opens no connection
for a call. What a service says in an error is never quoted, only its code: messages may repeat the prompt.
"""

from __future__ import annotations

import re
import struct
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.eventstream import EventStreamBuffer, ParserError
from pydantic_core import from_json, to_json

from bundlectl.inference.aws_session import AwsCredentials, aws_session
from bundlectl.inference.client import HttpClient, head_of
from bundlectl.inference.connection import Response
from bundlectl.inference.http import MAX_ERROR, MAX_REPLY, bearer, read_capped, retry_after
from bundlectl.inference.provider import ErrorKind, ProviderError

_CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}")

KINDS: Final[Mapping[str, ErrorKind]] = {
    "throttling": "throttled",
    "toomanyrequests": "throttled",
    "servicequotaexceeded": "throttled",
    "modeltimeout": "timeout",
    "modelnotready": "unavailable",
    "modelerror": "unavailable",
    "serviceunavailable": "unavailable",
    "internalserver": "unavailable",
    "internalfailure": "unavailable",
    "internaldependency": "unavailable",
    "modelstreamerror": "broken_stream",
    "internalstreamfailure": "broken_stream",
    "accessdenied": "refused",
    "validation": "refused",
    "resourcenotfound": "refused",
}
"""What the services' error codes mean, in lower case and without "Exception" or "Error" at their end as it stands
in the services' models; codes that are not here go by their status."""


class AwsService:
    """One service in one region."""

    def __init__(
        self,
        http: HttpClient,
        url: str,
        *,
        signing_name: str,
        region: str,
        credentials: AwsCredentials | None,
        api_key: str | None = None,
    ) -> None:
        """Take the address, and either credentials to sign with or an API key to send as a bearer token.

        Raises:
            UsageError: the key holds what no header may.
        """
        self.region: Final = region
        self._http = http
        self._url = url.rstrip("/")
        self._signing_name = signing_name
        self._credentials = credentials
        self._bearer = bearer(api_key)

    @property
    def address(self) -> str:
        """Where it is asked: URL and region, as bindings, environment and AWS configuration came to say."""
        return f"{self._url} {self.region}"

    async def post(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        what: str,
        *,
        expected: int = 200,
    ) -> Response:
        """Post JSON, signed, and give the response once its headers are there with the status; release it.

        Args:
            path: percent-encoded, see :func:`path_part`.
            body: what to send; ``None`` for nothing.
            headers: the operation's own.
            what: the model, in errors. The caller holds the deadline.
            expected: the status of success.

        Raises:
            ProviderError: any other status, no credentials, or a failure of the connection.
        """
        url = self._url + path
        data = b"" if body is None else to_json(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        head = await self._authorized(url, data, {**kind, **headers}, what)
        response = await self._http.post(url, head, data, what)
        if response.status == expected:
            return response
        try:
            raise await _refusal(response, what)
        finally:
            response.release()

    async def _authorized(self, url: str, data: bytes, headers: Mapping[str, str], what: str) -> bytes:
        if self._credentials is None:
            return head_of(headers) + self._bearer
        keys = await self._credentials.current(what)
        request = AWSRequest(method="POST", url=url, data=data, headers=headers)
        SigV4Auth(keys, self._signing_name, self.region).add_auth(request)
        return head_of(dict(request.headers.items()))


def open_service(
    http: HttpClient,
    service: str,
    *,
    region: str | None,
    endpoint: str | None,
    environ: Mapping[str, str],
    api_key: str | None = None,
) -> AwsService:
    """Find a service's address and the credentials for it; reads files and may ask the network, so not on the loop.

    Args:
        http: the session that calls go through.
        service: as botocore names it: ``bedrock-runtime`` or ``sagemaker-runtime``.
        region: the bound one; else ``AWS_REGION``, else that of the AWS configuration.
        endpoint: the bound address; else ``AWS_ENDPOINT_URL_<SERVICE>`` and the AWS configuration, else the service's.
        environ: the process's environment variables.
        api_key: sent in place of a signature, as a bearer token.

    Raises:
        UsageError: there is no region, or the AWS configuration is wrong.
        NotFound: there are no credentials.
        BackendUnavailable: who gives the credentials cannot be reached.
    """
    session = aws_session(http)
    place = session.locate(service, region or environ.get("AWS_REGION"), endpoint)
    return AwsService(
        http,
        place.url,
        signing_name=place.signing_name,
        region=place.region,
        credentials=None if api_key else session.credentials(),
        api_key=api_key,
    )


def path_part(name: str) -> str:
    """Encode a name as one part of a path, as AWS clients do."""
    return quote(name, safe="-._~")


# ---------------------------------------------------------------- event streams


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of an event stream. ``size`` in bytes, as it was sent."""

    headers: Mapping[str, Any]
    payload: bytes
    size: int


async def read_frames(response: Response, what: str) -> AsyncGenerator[Frame, None]:
    """Give the frames of an ``application/vnd.amazon.eventstream`` body, their checksums verified.

    Raises:
        ProviderError: ``invalid``: not such a body, or a frame is too large; ``broken_stream``: it ends within one.
    """
    buffer = EventStreamBuffer()
    pending = 0
    async for part in response.parts():
        buffer.add_data(part)
        pending += len(part)
        while (frame := _next_frame(buffer, what)) is not None:
            pending -= frame.size
            yield frame
        if pending > MAX_REPLY:
            raise ProviderError("invalid", f"{what}: a frame of the stream is larger than {MAX_REPLY} bytes.")
    if pending:
        raise ProviderError("broken_stream", f"{what}: the stream was cut within a frame.", why="cut within a frame")


def _next_frame(buffer: EventStreamBuffer, what: str) -> Frame | None:
    try:
        found: Any = next(buffer, None)
    except (ParserError, struct.error, LookupError, ValueError) as error:
        why = type(error).__name__
        raise ProviderError("invalid", f"{what}: a frame of the stream is damaged.", why=why) from error
    return None if found is None else Frame(found.headers, found.payload, found.prelude.total_length)


def event_of(frame: Frame, what: str) -> tuple[str, bytes]:
    """Give an event's type and payload.

    Raises:
        ProviderError: the frame carries an exception, in the vocabulary of errors; or ``invalid``: no type.
    """
    headers = frame.headers
    message_type, event_type = headers.get(":message-type"), headers.get(":event-type")
    if message_type == "event" and isinstance(event_type, str):
        return event_type, frame.payload
    if message_type not in ("exception", "error"):
        raise ProviderError("invalid", f"{what}: a frame of the stream has no type.")
    code = _clean(headers.get(":exception-type" if message_type == "exception" else ":error-code"))
    details = _object(frame.payload)
    kind = _kind(code, None, details)
    if details.get("ErrorCode") == "ModelInvocationTimeExceeded":
        kind = "timeout"
    why = f"{code or 'an unnamed error'} in the stream"
    raise ProviderError(kind, f"{what}: the stream carried {code or 'an error'}.", why=why)


# ---------------------------------------------------------------- errors


async def _refusal(response: Response, what: str) -> ProviderError:
    status = response.status
    details = _object(await read_capped(response, MAX_ERROR) or b"")
    code = _clean(response.headers.get("x-amzn-errortype") or details.get("__type") or details.get("code"))
    kind = _kind(code, status, details)
    why = f"HTTP {status}" + (f", {code}" if code else "")
    after = retry_after(response.headers) if kind != "refused" else None
    return ProviderError(kind, f"{what} answered {why}.", why=why, retry_after=after)


def _kind(code: str, status: int | None, details: Mapping[str, Any]) -> ErrorKind:
    name = code.lower().removesuffix("exception")
    if name not in KINDS:
        name = name.removesuffix("error")
    kind = KINDS.get(name)
    if name == "modelerror":
        original = details.get("OriginalStatusCode", details.get("originalStatusCode"))
        return _by_status(original) if isinstance(original, int) and original >= 400 else "unavailable"
    return kind or _by_status(status)


def _by_status(status: int | None) -> ErrorKind:
    if status == 429:
        return "throttled"
    if status is None or status >= 500 or status == 408:
        return "unavailable"
    return "refused"


def _clean(code: Any) -> str:
    """Give the bare code of ``namespace#Code:http://…``; nothing when it is none."""
    name = code.partition(":")[0].rpartition("#")[2] if isinstance(code, str) else ""
    return name if _CODE.fullmatch(name) else ""


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = from_json(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
