"""The receipt: the record of one answered request. No text of the user or the documents is in it."""

from __future__ import annotations

from typing import Any, Literal

from bundlectl.model.contract import Cost, Degraded, Pinned, Refused, ReleaseRef, Usage
from bundlectl.model.types import Digest, Strict, Time


class UsedChunk(Strict):
    """A chunk that was a candidate: its document version, its scores, its ranks (from 1), and whether it was packed.

    ``digest`` is of the chunk's text and access labels, as the snapshot lists it. ``start`` and ``end``: where its text
    stands in the document of that version, in characters; absent in receipts of versions that did not say.
    """

    chunk: str
    digest: Digest
    document: str
    version: Digest
    section: list[str]
    score: float
    rank: int
    reranked: int | None = None
    packed: bool
    start: int | None = None
    end: int | None = None


class RetrievalRecord(Strict):
    """What retrieval did. ``staleness`` in seconds, absent when unknown.

    ``suspicious``: chunks that were packed and read like orders to a model; nothing was decided by it.
    """

    use: str
    index: str
    snapshot: Digest
    following: bool = False
    mode: str
    rerank: str
    candidates: int
    removed_by_permission: int
    context_tokens: int
    staleness: float | None = None
    stale: bool | None = None
    suspicious: list[str] | None = None
    chunks: list[UsedChunk]


class Attempt(Strict):
    """One call of a model: ``outcome`` is ok or the normalised error; ``seconds`` wall time.

    ``given_up``: the call was ended here, as the caller went away or a guard stopped the answer.
    ``provider_seconds`` is how much of them the provider says it worked, where it says so.
    """

    route: str
    model: str
    provider: str
    provider_model: str | None = None
    outcome: Literal[
        "ok",
        "throttled",
        "timeout",
        "unavailable",
        "refused",
        "invalid",
        "broken_stream",
        "disabled",
        "open_circuit",
        "given_up",
    ]
    why: str = ""
    seconds: float
    provider_seconds: float | None = None
    usage: Usage = Usage()


class GuardRecord(Strict):
    """What a guard found: counts by finding name, and what it did.

    ``units``: what a managed guardrail bills for, by its own names; the answer's cost does not hold it.
    """

    side: Literal["input", "output"]
    action: Literal["pass", "flag", "redact", "block"]
    findings: dict[str, int] = {}
    units: dict[str, int] | None = None


class ValidationRecord(Strict):
    """How the output came to be valid: as it was, after json-repair, after asking again, or not."""

    outcome: Literal["valid", "repaired", "asked_again", "invalid", "not_checked"]
    errors: list[str] = []


class Receipt(Strict):
    """The record of one request, answered or refused."""

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Receipt"] = "Receipt"
    id: str
    time: Time
    identity: str
    task: str
    tenant: str
    role: str
    scopes: list[str]
    latency_class: str
    response_format: str
    profile: str
    release: ReleaseRef
    components: dict[str, Digest]
    code_version: str
    input_digest: str
    access: Literal["allow", "deny"] | None = None
    access_policies: list[str] = []
    route: str | None = None
    route_why: str = ""
    attempts: list[Attempt] = []
    retrieval: RetrievalRecord | None = None
    prompt_digest: Digest | None = None
    prompt_tokens: int | None = None
    prompt_reached_model: bool | None = None
    guards: list[GuardRecord] = []
    validation: ValidationRecord | None = None
    cache: Literal["off", "miss", "hit"] = "off"
    refused: Refused | None = None
    degraded: Degraded | None = None
    usage: Usage = Usage()
    cost: Cost
    stages: dict[str, float]
    answer_digest: Digest | None = None
    error: dict[str, Any] | None = None
    soft_limits: list[str] | None = None
    """Which soft limits the request was beyond."""

    cached_from: str | None = None
    """With ``cache`` hit: the receipt of the request that the answer was made for."""

    pinned: Pinned | None = None
    """Where the request named its bundle: ``release`` is then what it named."""
