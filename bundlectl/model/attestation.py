"""In-toto statements about a bundle, and their predicates.

Statement v1: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
The subject is always the bundle's digest, and the subject's name is the app.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from bundlectl.model.types import Digest, Name, Principal, StoreName, Strict, Text, Time
from bundlectl.model.verdict import Verdict

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
KEYRING_PAYLOAD_TYPE = "application/vnd.bundlectl.keyring.v1+json"
POLICY_PAYLOAD_TYPE = "application/vnd.bundlectl.policy.v1+json"
SNAPSHOT_PAYLOAD_TYPE = "application/vnd.bundlectl.snapshot.v1+json"

PROVENANCE = "https://slsa.dev/provenance/v1"
EVALUATION = "urn:bundlectl:predicate:evaluation:v1"
APPROVAL = "urn:bundlectl:predicate:approval:v1"
OVERRIDE = "urn:bundlectl:predicate:override:v1"
RELEASE = "urn:bundlectl:predicate:release:v1"

KINDS = {PROVENANCE: "provenance", EVALUATION: "evaluation", APPROVAL: "approval", OVERRIDE: "override"}
"""Predicate type -> the word used for it in policies, referrers and output."""
OTHER_KIND: Final = "attestation"
"""The word for every other predicate type that a principal signed: a review, a red team's report, …"""

MAX_OVERRIDE = timedelta(hours=24)


class SubjectDigest(Strict):
    """A digest set with the one algorithm we use; 64 hex digits."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Subject(Strict):
    """What the statement is about."""

    name: StoreName
    digest: SubjectDigest


class Statement(Strict):
    """An in-toto Statement v1 with exactly one subject."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(default=STATEMENT_TYPE, alias="_type")
    subject: list[Subject] = Field(min_length=1, max_length=1)
    predicateType: str
    predicate: dict[str, Any]

    @property
    def bundle(self) -> str:
        """The subject's digest."""
        return "sha256:" + self.subject[0].digest.sha256


class Envelope(Strict):
    """A DSSE envelope v1: https://github.com/secure-systems-lab/dsse/blob/master/envelope.md."""

    payload: str
    payloadType: str
    signatures: list[EnvelopeSignature] = Field(max_length=32)


class EnvelopeSignature(Strict):
    """One signature; ``keyid`` is an unauthenticated hint, ``sig`` is standard base64."""

    keyid: str = ""
    sig: str


Envelope.model_rebuild()


class Approval(Strict):
    """A person's yes to one bundle in one environment."""

    environment: StoreName
    reason: Text
    actor: Principal
    time: Time


class Override(Strict):
    """An approver's word that some checks of one environment's gate need not hold for one promotion of the bundle.

    ``previous`` is the digest of the head that the promotion replaces (absent: nothing is live), so an override
    serves once; it lives at most 24 hours. Only checks that are judged at promotion can be named.
    """

    environment: StoreName
    checks: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(min_length=1, max_length=32)
    previous: Digest | None = None
    reason: Text
    actor: Principal
    time: Time
    expires: Time

    @model_validator(mode="after")
    def _short(self) -> Override:
        if not self.time < self.expires <= self.time + MAX_OVERRIDE:
            raise ValueError("an override ends after it begins, and within 24 hours")
        return self


class ScoreSummary(Strict):
    """One scorer over one suite (or one tag of it): mean in [0, 1], how many cases counted, how many did not."""

    scorer: Name
    tag: str | None = None
    mean: float | None = None
    measured: int = Field(ge=0)
    unmeasured: int = Field(ge=0)
    errors: int = Field(ge=0)
    floor: float | None = None
    verdict: Verdict
    why: str = ""


class EvaluationResult(Strict):
    """What an evaluation found; the predicate of the evaluation attestation.

    ``suite_digest`` and ``dataset_digest`` are of the files' canonical form; ``report`` is the digest of the
    per-case report, stored as a blob.
    """

    suite: Name
    suite_digest: Digest
    dataset_digest: Digest
    task: Name
    cases: int = Field(ge=0)
    verdict: Verdict
    why: str = ""
    scores: list[ScoreSummary]
    must_pass_failed: list[str] = []
    complete: bool
    report: Digest | None = None
    snapshots: dict[Name, Digest] = {}
    bindings: Digest
    tool_version: str
    started: Time
    finished: Time
    actor: Principal
