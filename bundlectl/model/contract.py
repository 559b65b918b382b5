"""The request contract that the product calls, and the answer it gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from bundlectl.model.types import Digest, Name, Strict

TenantId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Request(Strict):
    """One request, exactly as the product sends it."""

    task: Name
    tenant_id: TenantId
    user_role: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    data_scope: list[Name] = Field(default=[], max_length=32)
    latency_class: Literal["interactive", "batch"] = "interactive"
    response_format: Literal["structured_json", "text"] | None = None
    policy_profile: Name
    input: dict[str, Any] = Field(min_length=1)


class ReleaseRef(Strict):
    """Which release answered. ``serial`` 0 and environment ``-``: a bundle run without a release (eval, dev)."""

    app: str
    environment: str
    epoch: int
    serial: int
    bundle: Digest
    bindings: Digest


class Pinned(Strict):
    """That the request named its bundle (``x-bundle``): what that is to the release which was live, and which one was.

    The rollback target answers as a rollback to it would make it answer: with the live bindings as far as they fit.
    """

    to: Literal["head", "rollback_target"]
    epoch: int
    serial: int


class Citation(Strict):
    """A passage the answer rests on. ``n`` is its number in the prompt, ``quote`` verbatim where known."""

    n: int
    document: str
    section: list[str]
    chunk: str
    quote: str | None = None


class Degraded(Strict):
    """Why this is not the answer of the route's first choice."""

    reason: str


class Refused(Strict):
    """Why there is no answer.

    ``access_denied``, ``input_blocked``, ``output_blocked``, ``no_answer`` (nothing retrieved supports one),
    ``unauthenticated``, ``limited``.
    """

    code: Literal["access_denied", "input_blocked", "output_blocked", "no_answer", "unauthenticated", "limited"]
    reason: str


class Usage(Strict):
    """Tokens of every attempt together.

    ``input_tokens`` counts everything that was sent. The ``cache`` counts are parts of it that the provider read
    from its prompt cache or wrote to it, to be kept for 5 minutes or an hour; absent when it did neither.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int | None = None
    cache_write_5m_tokens: int | None = None
    cache_write_1h_tokens: int | None = None


class Cost(Strict):
    """US dollars by the named price book; ``None`` when a model's price is not known."""

    usd: float | None = None
    price_book: str


class Answer(Strict):
    """The answer: ``output`` is an object for structured_json and a string for text; ``None`` when refused."""

    output: dict[str, Any] | str | None = None
    format: Literal["structured_json", "text"]
    refused: Refused | None = None
    degraded: Degraded | None = None
    citations: list[Citation] = []
    release: ReleaseRef
    route: str | None = None
    model: str | None = None
    usage: Usage = Usage()
    cost: Cost
    receipt: str
    cache: Literal["hit"] | None = None
    """Whether the answer was made for an earlier request; ``cached_from`` is that one's receipt."""

    cached_from: str | None = None

    cut: Literal[True] | None = None
    """Whether a text ends early, because the model was stopped at its longest answer."""

    pinned: Pinned | None = None
    """Where the request named its bundle: ``release`` is then what it named."""
