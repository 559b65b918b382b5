"""What this process's AWS configuration says: where services are, and credentials, renewed off the event loop.

The chain is that of every AWS tool: environment, shared files and profiles (with assumed roles and SSO), web
identity (IRSA on EKS), container and instance roles. One holder serves every model of a process, so that a role
is assumed once and not once per model and release.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSOError

from bundlectl.inference.provider import ProviderError
from bundlectl.model.errors import BackendUnavailable, NotFound, UsageError

if TYPE_CHECKING:
    from botocore.credentials import Credentials, ReadOnlyCredentials

    from bundlectl.inference.client import HttpClient

RENEW_BEFORE: Final = 15 * 60
"""Seconds before their end at which credentials are renewed, while those at hand go on being used."""
USABLE: Final = 60
"""Credentials that end within as many seconds sign nothing any more."""
PAUSE: Final = 5.0
"""Seconds until the next attempt to renew credentials that still last, when one brought no new ones."""


FAILURES: Final = (BotoCoreError, ClientError, OSError, RuntimeError)
"""What renewing may raise: a token file that is gone (OSError), keys that had ended when they came (RuntimeError)."""


_CONFIG: Final = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service is, and what its signatures name."""

    url: str
    signing_name: str
    region: str


class AwsSession:
    """A botocore session, used by one thread at a time, and the credentials found through it."""

    def __init__(self) -> None:
        self._botocore: Final = botocore.session.Session()
        self._lock: Final = threading.Lock()
        self._credentials: AwsCredentials | None = None

    def locate(self, service: str, region: str | None, endpoint: str | None) -> Place:
        """Find a service by its name at botocore, e.g. ``bedrock-runtime``; what is not given, the configuration says.

        Raises:
            UsageError: there is no region, or the configuration is wrong.
        """
        with self._lock:
            try:
                client = self._botocore.create_client(
                    service,
                    region_name=region or self._botocore.get_config_variable("region"),
                    endpoint_url=endpoint,
                    # Only asked where the service is: with keys of its own it looks for none, and it never signs.
                    aws_access_key_id="unused",
                    aws_secret_access_key="unused",  # noqa: S106
                )
            except (BotoCoreError, ValueError) as error:
                raise UsageError(
                    f"It is not known where {service} is.",
                    why=str(error),
                    fix="Bind the model's region, or set AWS_REGION; check AWS_ENDPOINT_URL and the AWS profile.",
                ) from error
            meta: Any = client.meta
            client.close()
            return Place(meta.endpoint_url, meta.service_model.signing_name, meta.region_name)

    def client(self, service: str, region: str) -> Any:
        """Make a botocore client, for use in threads; it finds its credentials by the same chain."""
        with self._lock:
            return self._botocore.create_client(service, region_name=region, config=_CONFIG)

    def credentials(self) -> AwsCredentials:
        """Find the credentials, once; may read files and ask an instance's metadata, so not on the event loop.

        Raises:
            NotFound: there are none.
            UsageError: the AWS configuration is wrong.
            BackendUnavailable: who gives them cannot be reached.
        """
        with self._lock:
            if self._credentials is None:
                self._credentials = AwsCredentials(self._find())
            return self._credentials

    def _find(self) -> Credentials:
        try:
            found = self._botocore.get_credentials()
        except HTTPClientError as error:
            raise BackendUnavailable("The AWS credentials cannot be fetched.", why=type(error).__name__) from error
        except (BotoCoreError, ClientError) as error:
            raise UsageError(
                "The AWS credentials cannot be found.",
                why=str(error),
                fix="Correct the AWS configuration of this process (AWS_PROFILE, the shared files, the role).",
            ) from error
        if found is None:
            raise NotFound(
                "There are no AWS credentials in this process.",
                fix="Give it a role, a profile (AWS_PROFILE) or keys; a Bedrock API key is bound as the credential.",
            )
        return found


class AwsCredentials:
    """Credentials that are renewed in a thread, by one renewal at a time, before they end."""

    def __init__(self, source: Credentials) -> None:
        """Take what botocore's chain found."""
        self._source: Final[Any] = source
        self._frozen: ReadOnlyCredentials | None = None
        self._renewing: asyncio.Task[ReadOnlyCredentials] | None = None
        self._not_before = 0.0

    async def current(self, what: str) -> ReadOnlyCredentials:
        """Give credentials that last; waits only when there are none at hand.

        Args:
            what: the model that they are for, in errors.

        Raises:
            ProviderError: ``unavailable``: they cannot be renewed now; ``refused``: they were denied.
        """
        if self._frozen is not None and not self._ends_within(RENEW_BEFORE):
            return self._frozen
        usable = self._frozen is not None and not self._ends_within(USABLE)
        if self._renewing is None and not (usable and asyncio.get_running_loop().time() < self._not_before):
            self._renewing = asyncio.create_task(asyncio.to_thread(self._source.get_frozen_credentials))
            self._renewing.add_done_callback(self._renewed)
        if usable and self._frozen is not None:
            return self._frozen
        assert self._renewing is not None
        try:
            # A caller that gives up must not take the renewal from those who wait with it.
            return await asyncio.shield(self._renewing)
        except FAILURES as error:
            raise _no_credentials(error, what) from error

    def _ends_within(self, seconds: int) -> bool:
        """Tell whether they end so soon; keys without an end never do."""
        needed = getattr(self._source, "refresh_needed", None)
        return needed is not None and bool(needed(refresh_in=seconds))

    def _renewed(self, task: asyncio.Task[ReadOnlyCredentials]) -> None:
        self._renewing = None
        found = None if task.cancelled() or task.exception() else task.result()
        if found is None or found == self._frozen:
            self._not_before = task.get_loop().time() + PAUSE
        if found is not None:
            self._frozen = found


def _no_credentials(error: Exception, what: str) -> ProviderError:
    """Name what went wrong by its class or code: messages of the token service repeat account and role names."""
    why = error.response["Error"].get("Code", "") if isinstance(error, ClientError) else type(error).__name__
    denied = isinstance(error, SSOError) or (isinstance(error, ClientError) and why.startswith("AccessDenied"))
    return ProviderError(
        "refused" if denied else "unavailable", f"{what}: there are no AWS credentials for it.", why=why
    )


_SESSIONS: Final[WeakKeyDictionary[HttpClient, AwsSession]] = WeakKeyDictionary()
_LOCK: Final = threading.Lock()


def aws_session(http: HttpClient) -> AwsSession:
    """Give the AWS session that lives as long as an HTTP session does."""
    with _LOCK:
        found = _SESSIONS.get(http)
        if found is None:
            found = _SESSIONS[http] = AwsSession()
        return found
