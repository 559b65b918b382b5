"""Values out of AWS Secrets Manager and the SSM Parameter Store, by the process's own AWS credentials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from pydantic_core import from_json

from bundlectl.inference.aws_region import region_of
from bundlectl.model.errors import BackendUnavailable, NotFound, UsageError

_CONFIG: Final = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})
_MISSING: Final = ("ResourceNotFoundException", "ParameterNotFound", "ParameterVersionNotFound")
_UNSET: Final = (
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ValueError,
)
_LATER: Final = ("ThrottlingException", "InternalServiceError", "InternalServerError", "ServiceUnavailable")


def fetch_secret(reference: str, environ: Mapping[str, str]) -> str:
    """Fetch the value of ``aws-sm:NAME-OR-ARN``, ``aws-sm:NAME-OR-ARN#FIELD`` (of a JSON object) or ``ssm:/NAME``.

    Blocks on the network for up to half a minute; not for the event loop.

    Args:
        reference: as the binding has it.
        environ: the process's environment variables; ``AWS_REGION`` counts before the AWS configuration's region.

    Raises:
        NotFound: there is no such secret, parameter or field.
        UsageError: it may not be read, there are no AWS credentials or no region, or it is no text.
        BackendUnavailable: the service cannot be reached.
    """
    scheme, _, name = reference.partition(":")
    if scheme == "ssm":
        found = _ask(reference, "ssm", "get_parameter", None, environ, Name=name, WithDecryption=True)
        return str(found["Parameter"]["Value"])
    name, _, field = name.partition("#")
    found = _ask(reference, "secretsmanager", "get_secret_value", region_of(name), environ, SecretId=name)
    value = found.get("SecretString")
    if not isinstance(value, str):
        raise UsageError(f"The credential {reference} is not text.", fix="Store it as a secret string.")
    return _field(reference, value, field) if field else value


def _ask(
    reference: str, service: str, operation: str, region: str | None, environ: Mapping[str, str], **asked: Any
) -> dict[str, Any]:
    try:
        session: Any = boto3.session.Session(region_name=region or environ.get("AWS_REGION") or None)
        client = session.client(service, config=_CONFIG)
        try:
            found: dict[str, Any] = getattr(client, operation)(**asked)
        finally:
            client.close()
        return found
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _MISSING:
            raise NotFound(
                f"The credential {reference} is not there.", fix="Check its name, and the region it is kept in."
            ) from error
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _LATER or status >= 500:
            raise BackendUnavailable(f"The credential {reference} cannot be fetched now.", why=code) from error
        raise UsageError(
            f"The credential {reference} cannot be read.",
            why=code,
            fix="Let this process's role read it, and decrypt with the key that it is kept under.",
        ) from error
    except _UNSET as error:
        raise UsageError(
            f"The credential {reference} cannot be asked for.",
            why=type(error).__name__,
            fix="Give this process AWS credentials and a region (AWS_REGION).",
        ) from error
    except (BotoCoreError, OSError) as error:
        raise BackendUnavailable(
            f"The credential {reference} cannot be fetched now.", why=type(error).__name__
        ) from error


def _field(reference: str, value: str, field: str) -> str:
    try:
        found = from_json(value)
    except ValueError as error:
        raise UsageError(f"The credential {reference} is not in a JSON object.") from error
    chosen = found.get(field) if isinstance(found, dict) else None
    if not isinstance(chosen, str):
        raise NotFound(f"The credential {reference} is not there.", why=f"The secret has no text field {field}.")
    return chosen
