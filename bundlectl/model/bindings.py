"""Bindings: what one environment must differ in. They are part of the release, whole.

Credentials are references, never values: ``env:NAME``, ``file:/path``, ``aws-sm:name``, ``ssm:/path``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from bundlectl.model.types import Digest, Name, Strict

CredentialRef = Annotated[str, StringConstraints(pattern=r"^(env:[A-Z][A-Z0-9_]*|file:/.+|aws-sm:.+|ssm:/.+)$")]


class ModelBinding(Strict):
    """Where a model is reached in this environment.

    ``inference_profile`` (Bedrock) and ``endpoint`` (SageMaker) take the place of the bundle's own ``model``;
    ``inference_component`` and ``target_variant`` choose among what a SageMaker endpoint holds; ``async_input``, an S3
    prefix that requests are put under, is for asynchronous ones.
    """

    base_url: str | None = None
    credential: CredentialRef | None = None
    inference_profile: str | None = None
    region: str | None = None
    endpoint: str | None = None
    inference_component: str | None = None
    target_variant: str | None = None
    async_input: str | None = None


class Limit(Strict):
    """Limits of one tenant; ``default`` holds for every tenant without its own."""

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    usd_per_day: Annotated[float, Field(gt=0)] | None = None


class Limits(Strict):
    """Limits by tenant."""

    tenants: dict[str, Limit] = {}


class ApiKey(Strict):
    """An API key by the SHA-256 of its value, with the tenants and roles its holder may claim (``*``: any)."""

    id: Name
    hash: Digest
    tenants: list[str] = Field(min_length=1)
    roles: list[str] = Field(min_length=1)


class Identities(Strict):
    """Who may call the router. Without any, a server binds to loopback only."""

    api_keys: list[ApiKey] = []


class Bindings(Strict):
    """One environment's bindings."""

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Bindings"] = "Bindings"
    models: dict[Name, ModelBinding] = {}
    indexes: dict[Name, str] = {}
    guards: dict[Name, dict[str, Any]] = {}
    limits: Limits = Limits()
    identities: Identities = Identities()
    disabled_models: list[Name] = []
