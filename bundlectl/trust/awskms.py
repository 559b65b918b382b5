"""Sign with a key in AWS KMS: ``awskms:<key ARN>``, ``awskms:alias/NAME``, ``awskms:<key id>``.

Asymmetric signing keys on P-256. The digest is made here (MessageType DIGEST), so that nothing but 32 bytes leaves
the machine, and every signature is verified here with the public key before anyone gets it: a stand-in or a proxy
that hashes once more would otherwise be found out by a resolver. Serving never comes here; only signing does.

Credentials come from boto3's default chain; ``AWS_ENDPOINT_URL_KMS`` is honoured. The SDK repeats nothing: calls are
repeated here, with full jitter, until a deadline. Both calls may be repeated: they change nothing.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
)
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from bundlectl.model.errors import BackendUnavailable, BundlectlError, UsageError, VerificationFailed
from bundlectl.model.keyring import PublicKey
from bundlectl.trust.keys import P256, AnyPublicKey, key_id, public_pem_of, scheme_of, verifies

CONNECT_SECONDS = 3.0
READ_SECONDS = 5.0
DEADLINE_SECONDS = 20.0
"""How long one call may take, with all that is repeated of it."""
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 2.0

_BUSY = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "LimitExceededException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
    }
)
_AGAIN = _BUSY | frozenset(
    {
        "KMSInternalException",
        "KeyUnavailableException",
        "DependencyTimeoutException",
        "ServiceUnavailable",
        "InternalFailure",
    }
)
_DENIED = frozenset({"AccessDeniedException", "AccessDenied"})
_CREDENTIALS = frozenset(
    {"ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId"}
    | {"InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "MissingAuthenticationToken"}
)
_STATE = frozenset({"DisabledException", "KMSInvalidStateException"})
_WRONG_KEY = frozenset({"InvalidKeyUsageException", "UnsupportedOperationException"})


class KmsSigner:
    """A signer whose private key never leaves KMS.

    Raises:
        UsageError: no such key, or one of another kind than P-256 for signing.
        BackendUnavailable: KMS refuses, is throttled past the deadline or cannot be reached.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        client: Any = None,
        deadline: float = DEADLINE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.uri = uri
        self.scheme = P256
        self._deadline, self._sleep, self._monotonic = deadline, sleep, monotonic
        self._client = client if client is not None else _client(name)
        told = self._ask("kms:GetPublicKey", lambda: self._client.get_public_key(KeyId=name))
        key = _public_key(uri, told)
        self.public_pem = public_pem_of(key)
        self.key_id = key_id(self.public_pem)
        # The alias may be pointed at another key between here and the signature; the ARN cannot.
        self._arn = str(told.get("KeyId", name))

    def __repr__(self) -> str:
        return f"KmsSigner({self.uri!r}, {self.key_id})"

    def sign(self, data: bytes) -> bytes:
        """Sign the bytes; the signature is DER, and was verified.

        Raises:
            BackendUnavailable: KMS refuses, is throttled past the deadline or cannot be reached.
            VerificationFailed: what KMS gave back is no signature of its key over these bytes.
        """
        message = hashlib.sha256(data).digest()
        told = self._ask(
            "kms:Sign",
            lambda: self._client.sign(
                KeyId=self._arn, Message=message, MessageType="DIGEST", SigningAlgorithm="ECDSA_SHA_256"
            ),
        )
        signature = bytes(told["Signature"])
        if not verifies(PublicKey(scheme="ecdsa-p256-sha256", public=self.public_pem), signature, data):
            raise VerificationFailed(
                f"AWS KMS gave back a signature that does not hold ({self.uri}).",
                why="Its public key does not verify it over the bytes that were to be signed.",
                fix="Ask what answers at the KMS endpoint; nothing was stored.",
            )
        return signature

    def _ask(self, what: str, call: Callable[[], Any]) -> Any:
        """Call until there is an answer, a refusal or the deadline."""
        until = self._monotonic() + self._deadline
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                return call()
            except (ClientError, BotoCoreError) as error:
                pause = random.uniform(0, wait)  # noqa: S311  # jitter, not a secret
                if not _may_repeat(error) or self._monotonic() + pause >= until:
                    raise self._error(what, error) from error
            self._sleep(pause)
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    def _error(self, what: str, error: ClientError | BotoCoreError) -> BundlectlError:
        code, message = _said(error)
        why = f"{what}: {code}: {message}"
        if code == "NotFoundException" or code in _WRONG_KEY:
            absent = code == "NotFoundException"
            return UsageError(
                f"AWS KMS has no key {self.uri}." if absent else f"The KMS key {self.uri} cannot sign.",
                why=why,
                fix="Check account, region and name: awskms:arn:aws:kms:… or awskms:alias/NAME."
                if absent
                else "Use an asymmetric key: KeySpec ECC_NIST_P256, KeyUsage SIGN_VERIFY.",
            )
        if code in _DENIED:
            told, fix = "denies access to", f"Allow {what} on the key, in its policy or your role's."
        elif code in _STATE:
            told, fix = "does not let us use", "Enable the key, or cancel its deletion; or sign with another."
        elif code in _CREDENTIALS or isinstance(error, NoCredentialsError):
            told, fix = "does not take our credentials for", "Log in again, or look at AWS_PROFILE and the clock."
        elif code in _BUSY:
            told, fix = f"throttled us for {self._deadline:g} s at", "Nothing was signed. Try again in a minute."
        elif code in _AGAIN:
            told, fix = f"did not answer within {self._deadline:g} s for", "Nothing was signed. Try again."
        else:
            told, fix = "cannot be reached for", "Nothing was signed. Check the network, the region and the endpoint."
        return BackendUnavailable(
            f"AWS KMS {told} the key {self.uri}.", why=why, fix=fix, details={"service": "kms", "code": code}
        )


def open_kms(uri: str, name: str) -> KmsSigner:
    """Open the signer of a ``awskms:`` URI; ``name`` is what comes after the colon.

    Raises:
        UsageError: it names no key, AWS is not configured, or the key is missing or of another kind.
        BackendUnavailable: KMS refuses, is throttled past the deadline or cannot be reached.
    """
    if not name or len(name) > 2048 or not name.isprintable() or name.startswith("//"):
        raise UsageError(f"{uri!r} names no key in KMS.", fix="awskms:arn:aws:kms:… or awskms:alias/NAME")
    return KmsSigner(uri, name, deadline=DEADLINE_SECONDS)


def _client(name: str) -> Any:
    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        user_agent_extra="bundlectl",
    )
    parts = name.split(":")
    region = parts[3] if len(parts) > 5 and parts[0] == "arn" else None
    try:
        session: Any = boto3.session.Session()
        return session.client("kms", region_name=region, config=config)
    except NoRegionError as error:
        raise UsageError(
            "AWS KMS needs a region.", why=str(error), fix="Set AWS_REGION, or name the key by its ARN."
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise UsageError(
            "The AWS configuration cannot be used.", why=str(error), fix="Look at AWS_PROFILE and ~/.aws/config."
        ) from error


def _public_key(uri: str, told: Any) -> AnyPublicKey:
    usage, spec = told.get("KeyUsage"), told.get("KeySpec") or told.get("CustomerMasterKeySpec")
    try:
        key = load_der_public_key(bytes(told["PublicKey"]))
    except (KeyError, ValueError, UnsupportedAlgorithm) as error:
        raise VerificationFailed(f"AWS KMS gave back no public key for {uri}.", why=str(error)) from error
    if usage != "SIGN_VERIFY" or scheme_of(key) != P256:
        raise UsageError(
            f"The KMS key {uri} is not of the kind that is used here.",
            why=f"It is {spec}, for {usage}.",
            fix="Use an asymmetric key: KeySpec ECC_NIST_P256, KeyUsage SIGN_VERIFY.",
        )
    return key  # type: ignore[return-value]  # scheme_of said so


def _may_repeat(error: ClientError | BotoCoreError) -> bool:
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        code = _said(error)[0]
        return code in _AGAIN or status == 429 or (status >= 500 and code not in _STATE)
    return isinstance(error, (EndpointConnectionError, ConnectTimeoutError, HTTPClientError))


def _said(error: ClientError | BotoCoreError) -> tuple[str, str]:
    if isinstance(error, ClientError):
        told = error.response.get("Error", {})
        return str(told.get("Code") or "unknown"), str(told.get("Message") or "")
    return type(error).__name__, str(error)
