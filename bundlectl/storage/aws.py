"""What every AWS service has in common here: how a client is made, and what an error of one says.

Clients come from boto3's default chain, so any profile, SSO session, assumed role, web identity or instance
role works, and ``AWS_ENDPOINT_URL_<SERVICE>`` is honoured. They never repeat a call by themselves: the SDK would
report its second try of a conditional write that landed as lost. ``Patience`` repeats what may be repeated.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoRegionError,
    ProxyConnectionError,
    ResponseStreamingError,
    SSLError,
)

from bundlectl.model.errors import UsageError

Reply = TypeVar("Reply")

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
"""The longest silence that is waited for, on one connection."""
DEADLINE_SECONDS = 30.0
"""The longest that a call may take, with everything that is repeated for it."""
POLL_READ_SECONDS = 4.0
POLL_SECONDS = 6.0
"""The same for what is asked for again in seconds anyway, and whose failing is news: one call that hangs is repeated,
and an outage is told in a few seconds more."""
CONNECTIONS = 16

AwsError = (ClientError, BotoCoreError)

_BUSY_CODES = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestThrottled",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "TooManyUpdates",
        "RequestTimeout",
    }
)
_CREDENTIAL_CODES = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "UnrecognizedClientException"}
    | {"SignatureDoesNotMatch", "InvalidSignatureException", "InvalidClientTokenId"}
)
_CLOCK_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_DENIED_CODES = frozenset({"AccessDenied", "AccessDeniedException", "AllAccessDisabled", "403"})


class Fate(StrEnum):
    """What became of a call that failed."""

    REFUSED = "refused"
    """The service answered, and did not do it. Asking again gives the same answer."""
    BUSY = "busy"
    """The service did not do it now, and asks to be asked again."""
    UNSENT = "unsent"
    """It never reached the service."""
    LOST = "lost"
    """It was sent and no clear answer came: a write may have landed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What an exception of boto3 says."""

    fate: Fate
    code: str
    """The service's code, such as ``NoSuchKey``; for 304, 404 and the like without a code, the status."""
    message: str
    status: int = 0

    @property
    def why(self) -> str:
        """Give the cause in one line."""
        return f"{self.code}: {self.message}" if self.message else self.code


class Unanswered(Exception):
    """A call did not give what was asked for; whoever asked says so in its own words."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.why)
        self.failure = failure


class Refused(Unanswered):
    """The service's answer is no."""


class Lost(Unanswered):
    """A write was sent, and nobody knows what became of it."""


class GivenUp(Unanswered):
    """It did not happen by the deadline."""


class TooLate(Exception):
    """The deadline came while a reply was being read."""


def open_client(
    service: str, *, connect: float = CONNECT_SECONDS, read: float = READ_SECONDS, region: str | None = None
) -> Any:
    """Make a client of a service. Threads may share it.

    Args:
        service: boto3's name of it, such as ``s3``.
        connect: seconds to wait for a connection.
        read: seconds of silence to wait for within a reply.
        region: another region than the configured one.

    Raises:
        UsageError: the profile or the region that is configured cannot be used.
    """
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=connect,
        read_timeout=read,
        max_pool_connections=CONNECTIONS,
        user_agent_extra="bundlectl",
    )
    try:
        # A session of its own: boto3's default one must not be shared between threads.
        # boto3 knows only AWS_DEFAULT_REGION; other SDKs, and what starts containers, say AWS_REGION.
        session: Any = boto3.session.Session(region_name=region or os.environ.get("AWS_REGION") or None)
        return session.client(service, config=config)
    except NoRegionError as error:
        raise UsageError(
            "AWS needs a region.", why=str(error), fix="Set AWS_REGION, or a region in the profile."
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            "The AWS configuration cannot be used.", why=str(error), fix="Look at AWS_PROFILE and ~/.aws/config."
        ) from error


def failure_of(error: BaseException) -> Failure:
    """Say what an exception of boto3 means."""
    if isinstance(error, ClientError):
        told = error.response.get("Error", {})
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code, message = str(told.get("Code") or status), str(told.get("Message") or "")
        if code in _BUSY_CODES or status == 429:
            fate = Fate.BUSY
        else:
            fate = Fate.LOST if status >= 500 or status == 0 else Fate.REFUSED
        return Failure(fate, code, message, status)
    name = type(error).__name__
    if isinstance(error, (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError, SSLError)):
        return Failure(Fate.UNSENT, name, str(error))
    if isinstance(error, (HTTPClientError, ResponseStreamingError, IncompleteReadError, FlexibleChecksumError)):
        return Failure(Fate.LOST, name, str(error))
    # What is left is made before anything is sent: no credentials, an expired SSO session, a wrong parameter.
    return Failure(Fate.REFUSED, name, str(error))


@dataclass
class Patience:
    """Repeats calls that may be repeated, with full jitter, within a deadline.

    Args:
        deadline: seconds that a call may take in all. None begins that could last longer.
        attempt: seconds that one attempt may take.
        monotonic: a clock in seconds.
        sleep: how to wait; takes seconds.
    """

    deadline: float = DEADLINE_SECONDS
    attempt: float = READ_SECONDS
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _random: random.Random = field(default_factory=random.Random)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def until(self) -> float:
        """Give the time by which a call that begins now must be over."""
        return self.monotonic() + self.deadline

    def ask(self, call: Callable[[], Reply], until: float, *, write: bool) -> Reply:
        """Call until there is an answer.

        Args:
            call: one attempt; raises what boto3 raises.
            until: when to give up, as :meth:`until` gave it.
            write: whether it changes something: then it is not repeated once it may have landed.

        Raises:
            Refused: the service's answer is no.
            Lost: a write may have landed.
            GivenUp: it did not happen by the deadline.
        """
        attempts = 0
        while True:
            try:
                return call()
            except TooLate as error:
                raise GivenUp(Failure(Fate.LOST, "TooLate", str(error))) from error
            except AwsError as error:
                failure = failure_of(error)
                if failure.fate is Fate.REFUSED:
                    raise Refused(failure) from error
                if failure.fate is Fate.LOST and write:
                    raise Lost(failure) from error
                pause = self.pause(attempts)
                if self.monotonic() + pause + self.attempt > until:
                    raise GivenUp(failure) from error
            attempts += 1
            self.sleep(pause)

    def pause(self, attempts: int) -> float:
        """Give how long to wait after so many attempts: anything up to a bound that doubles."""
        with self._lock:
            return self._random.uniform(0.0, min(4.0, 0.1 * 2.0**attempts))


def giving_up(failure: Failure, what: str, deadline: float, endpoint: str) -> tuple[str, str]:
    """Say that a call did not happen by its deadline, as a sentence with a fix: throttled is another thing than away.

    Args:
        failure: what came last.
        what: what was not done, such as ``It was not read from …``.
        deadline: seconds that it was tried for at most.
        endpoint: the environment variable that names the service's endpoint.
    """
    if failure.fate is Fate.BUSY and failure.code != "RequestTimeout":
        return (
            f"{what} within {deadline:g} s: AWS throttles it.",
            "Repeat in a minute, with less at once; if it stays, look at the account's quotas.",
        )
    return (
        f"{what} within {deadline:g} s.",
        f"Check the network, {endpoint} and the service's health, then repeat.",
    )


def refusal(failure: Failure, action: str, resource: str) -> tuple[str, str]:
    """Say why a call was refused, as a sentence's end and with a fix.

    Args:
        failure: the service's answer.
        action: the IAM action that it takes, such as ``s3:PutObject``.
        resource: the ARN that it takes it on.
    """
    if failure.code in _CREDENTIAL_CODES:
        return f"AWS does not accept the credentials for {action}", "Log in again (aws sso login), or renew the keys."
    if failure.code in _CLOCK_CODES:
        return f"AWS does not accept this machine's clock for {action}", "Set the clock (NTP), then repeat."
    if failure.code in _DENIED_CODES or failure.status == 403:
        return f"AWS does not permit {action} on {resource}", f"Allow {action} on {resource} to who runs this."
    if not failure.status:
        return f"AWS was not asked for {action}", "Give this process AWS credentials: a profile, SSO or a role."
    return f"AWS refuses {action} on {resource}", "Check the registry's address, then repeat."
