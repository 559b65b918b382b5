"""Bindings: what one environment must differ in. They are part of the release, whole.

Credentials are references, never values: ``env:NAME``, ``file:/path``, ``aws-sm:name``, ``ssm:/path``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from bundlectl.model.types import Digest, Duration, Name, Strict, seconds

CredentialRef = Annotated[str, StringConstraints(pattern=r"^(env:[A-Z][A-Z0-9_]*|file:/.+|aws-sm:.+|ssm:/.+)$")]


class ModelBinding(Strict):
    """Where a model is reached in this environment.

    ``inference_profile`` (Bedrock) and ``endpoint`` (SageMaker) take the place of the bundle's own ``model``;
    ``inference_component`` and ``target_variant`` choose among what a SageMaker endpoint holds; ``async_input``, an S3
    prefix that requests are put under, is for asynchronous ones. ``batch_s3``, an S3 prefix, and ``batch_role``, the
    ARN of the role that may read and write there, make batch jobs of Bedrock out of what routes of mode async ask.
    """

    base_url: str | None = None
    credential: CredentialRef | None = None
    inference_profile: str | None = None
    region: str | None = None
    endpoint: str | None = None
    inference_component: str | None = None
    target_variant: str | None = None
    async_input: str | None = None
    batch_s3: str | None = None
    batch_role: str | None = None


DEFAULT: Final = "default"
LONGEST_KEPT: Final = 7 * 86400.0


class Limit(Strict):
    """Limits of one tenant, task or route; what is absent is not limited.

    ``soft_usd_per_day`` refuses nothing: beyond it, requests are marked and answered by the ``soft_route``.
    """

    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    usd_per_day: Annotated[float, Field(gt=0)] | None = None
    soft_usd_per_day: Annotated[float, Field(gt=0)] | None = None


class Limits(Strict):
    """Limits by tenant, by task and by route; all that apply must hold. ``default`` is for those without their own.

    Each tenant has counts of its own; a task's and a route's are over all tenants. ``soft_route`` answers beyond a soft
    limit wherever it is among the fallbacks of the route that was chosen. ``on_redis_down`` says what becomes of
    limits that are shared through Redis while it is away: each process counts for itself (``local``, the default),
    or requests are refused.
    """

    tenants: dict[str, Limit] = {}
    tasks: dict[Name, Limit] | None = None
    routes: dict[Name, Limit] | None = None
    soft_route: Name | None = None
    on_redis_down: Literal["local", "refuse"] | None = None

    def fitting(self, tasks: Collection[str], routes: Collection[str]) -> Self:
        """Give them without what they say of tasks and routes that a bundle does not have."""
        kept_tasks = {n: limit for n, limit in (self.tasks or {}).items() if n == DEFAULT or n in tasks}
        kept_routes = {n: limit for n, limit in (self.routes or {}).items() if n == DEFAULT or n in routes}
        soft = self.soft_route if self.soft_route in routes else None
        return self.model_copy(update={"tasks": kept_tasks or None, "routes": kept_routes or None, "soft_route": soft})

    def named_tasks(self) -> list[str]:
        """Give the tasks that it names, which a bundle must have."""
        return [name for name in self.tasks or {} if name != DEFAULT]

    def named_routes(self) -> list[str]:
        """Give the routes that it names, which a bundle must have."""
        named = [name for name in self.routes or {} if name != DEFAULT]
        return named if self.soft_route is None else [*named, self.soft_route]


def _some_time(duration: str) -> str:
    if not 1 <= seconds(duration) <= LONGEST_KEPT:
        raise ValueError("answers are kept for a second to seven days")
    return duration


class ApiKey(Strict):
    """An API key by the SHA-256 of its value, with the tenants and roles its holder may claim (``*``: any).

    ``may_pin``: its holder may choose between the live bundle and the rollback target (``x-bundle``).
    """

    id: Name
    hash: Digest
    tenants: list[str] = Field(min_length=1)
    roles: list[str] = Field(min_length=1)
    may_pin: bool | None = None


Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""What may sign a token: asymmetric algorithms only, as whoever can check a shared secret can also forge with it."""

ClaimPath = Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=8)]
"""A claim of a token by its name, or by the names on the way to it through nested objects."""

_WEB = re.compile(r"https://[^/?#\s@]+(/[^?#\s]*)?|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?(/[^?#\s]*)?")
MAX_STARS: Final = 4


def is_secure(url: str) -> bool:
    """Say whether an address is https, or on this machine, and names neither user nor query."""
    return _WEB.fullmatch(url) is not None


def _secure(what: str, url: str) -> None:
    if not is_secure(url):
        raise ValueError(f"{what} is an https address without user, query and fragment; http is for loopback only")


class Caller(Strict):
    """Whose tokens these are, and what they may claim.

    ``subject`` is held against the token's ``sub``; ``*`` in it stands for any characters, also ``:`` and ``/``.
    Tenants and roles are named here (``*``: any), or read from a claim that holds a string or a list of them: there
    ``*`` means nothing. ``may_pin`` is as for API keys, and in no token's power to claim.
    """

    subject: Annotated[str, Field(min_length=1, max_length=512)]
    tenants: Annotated[list[str], Field(min_length=1)] | None = None
    tenants_claim: ClaimPath | None = None
    roles: Annotated[list[str], Field(min_length=1)] | None = None
    roles_claim: ClaimPath | None = None
    may_pin: bool | None = None

    @model_validator(mode="after")
    def _one_source_each(self) -> Self:
        for what, named, claim in (
            ("tenants", self.tenants, self.tenants_claim),
            ("roles", self.roles, self.roles_claim),
        ):
            if (named is None) == (claim is None):
                raise ValueError(f"give {what}, or {what}_claim, and not both")
        if self.subject.count("*") > MAX_STARS:
            raise ValueError(f"a subject has at most {MAX_STARS} stars")
        return self


class TokenIssuer(Strict):
    """Whose OIDC tokens (JWT) are believed. ``id`` goes before the subject in receipts: ``id:subject``.

    ``jwks`` says where the issuer's public keys are: an https address, or ``file:/path``; by default its discovery
    document says. They are asked for again every ``keys_ttl``, and while the issuer is away, believed until
    ``keys_max_age``. ``leeway`` is how far clocks may differ. The first of ``callers`` that a token fits counts.
    """

    id: Name
    issuer: str
    audience: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    jwks: str | None = None
    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = ["RS256", "ES256", "ES384"]
    leeway: Duration = "30s"
    keys_ttl: Duration = "10m"
    keys_max_age: Duration = "24h"
    callers: list[Caller] = Field(min_length=1)

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        _secure("the issuer", self.issuer)
        if self.jwks is not None and not self.jwks.startswith("file:/"):
            _secure("jwks (which may also be file:/path)", self.jwks)
        return self


class Identities(Strict):
    """Who may call the router. Without any, a server binds to loopback only."""

    api_keys: list[ApiKey] = []
    oidc: list[TokenIssuer] | None = None

    def __bool__(self) -> bool:
        return bool(self.api_keys or self.oidc)


class AnswerCaching(Strict):
    """Giving answers again to the same question of the same tenant, role and scopes, for ``ttl`` at most.

    ``max_entries`` and ``max_bytes`` bound a process's memory. ``key`` is what kept answers are named and sealed with:
    servers on several machines share answers only if they share it; by default each workspace has its own.
    """

    ttl: Annotated[Duration, AfterValidator(_some_time)]
    max_entries: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    max_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    key: CredentialRef | None = None


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
    cache: AnswerCaching | None = None
