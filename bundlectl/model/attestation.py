"""In-toto statements about a bundle, and their predicates.

Statement v1: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
The subject is always the bundle's digest, and the subject's name is the app.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from bundlectl.model.sigstore import SignatureExtension
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
    """One signature; ``keyid`` is an unauthenticated hint, ``sig`` is standard base64.

    ``extension`` comes with signatures of OIDC identities: certificate and log entry.
    """

    keyid: str = ""
    sig: str
    extension: SignatureExtension | None = None


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


class RunMeasure(Strict):
    """Latency in seconds or cost in US dollars, over the rows of a run: a percentile by nearest rank, or the mean.

    ``missing``: rows without it, which count as slower and dearer than any; ``value`` is absent where that leaves none.
    ``bound``: what the suite allows; without one it is only reported.
    """

    measure: Literal["latency", "cost"]
    statistic: Literal["mean", "p50", "p95", "p99"]
    value: float | None = None
    bound: float | None = None
    rows: int = Field(ge=0)
    missing: int = Field(ge=0)
    verdict: Verdict
    why: str = ""


Claim = Literal["better", "no_worse", "worse", "inconclusive"]
"""What a comparison says of one scorer."""


class ComparedScore(Strict):
    """One scorer over the suite, or over one tag: candidate minus baseline, by groups of cases.

    ``candidate`` and ``baseline`` are plain means of what was measured, ``difference`` is of the groups. ``low`` and
    ``high``: the interval that decides, missing scores counted against the claim. ``margin`` is there where the suite
    gates. ``below``: no worse by more than the margin, and yet surely a little worse. ``needed``: how many groups
    would settle it. ``bootstrap`` and ``mcnemar`` are shown and decide nothing.
    """

    scorer: Name
    tag: str | None = None
    margin: float | None = None
    groups: int = Field(ge=0)
    cases: int = Field(ge=0)
    missing: int = Field(ge=0)
    candidate: float | None = None
    baseline: float | None = None
    difference: float | None = None
    low: float
    high: float
    claim: Claim
    why: str = ""
    below: bool | None = None
    needed: int | None = None
    bootstrap: list[float] | None = None
    mcnemar: float | None = None


class Comparison(Strict):
    """A candidate beside a baseline, measured by the same suite; part of the candidate's signed result.

    ``environment``: where the baseline was live. ``alpha``: one-sided, of this look. ``stored``: the baseline's rows
    are those of its own signed result. ``tried``: candidates evaluated since the baseline went live, this one
    counted. ``verdict`` is of the gated scorers and tags; absent where the suite gates none.
    """

    baseline: Digest
    bindings: Digest
    environment: StoreName | None = None
    stored: bool
    alpha: float
    scores: list[ComparedScore]
    verdict: Verdict | None = None
    why: str = ""
    tried: int | None = None


class Rate(Strict):
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


class CalibrationFigures(Strict):
    """How a judge agrees with people on labelled answers; ``errors``: labels that it gave no ruling on.

    A rate is absent where nothing of its kind was labelled, ``kappa`` where chance alone agrees always.
    """

    labels: int = Field(ge=0)
    good: int = Field(ge=0)
    bad: int = Field(ge=0)
    errors: int = Field(ge=0)
    sensitivity: Rate | None = None
    specificity: Rate | None = None
    kappa: float | None = None


class ScorerIdentity(Strict):
    """A scorer whose scores depend on more than its line of the suite: a judge, or a library's version.

    ``models``: those that judged, by the ids that their provider returned. ``unfit``: why it may decide nothing; its
    scores are shown, whatever a suite or a policy asks of them.
    """

    scorer: Name
    identity: dict[str, Any]
    models: list[str] = []
    unfit: str | None = None
    calibration: CalibrationFigures | None = None
    calibration_digest: Digest | None = None


class EvaluationResult(Strict):
    """What an evaluation found; the predicate of the evaluation attestation.

    ``suite_digest`` and ``dataset_digest`` are of the files' canonical form; ``report`` is the digest of the
    per-case report, stored as a blob.

    Absent in results of one look, once per case, without a baseline: ``repeats`` of each case in this look; ``look``,
    which look at this digest it is, and ``pooled``, reports of earlier ones that count in it; ``flaky`` cases, whose
    repeats differ; ``cache_hits`` and ``oldest``, how many rows of this look were not asked anew and when the oldest
    row that was asked for it was measured (those of a stored baseline are as old as the baseline's own result);
    ``usd`` spent; ``comparison``.

    ``measures``: latency and cost over the run; absent where the suite neither bounds nor scores them. ``skipped``:
    models of the bundle's routes that the bindings switched off, so that nothing is known of their answers.
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
    repeats: int | None = None
    look: int | None = None
    pooled: list[Digest] | None = None
    flaky: list[str] | None = None
    cache_hits: int | None = None
    oldest: Time | None = None
    usd: float | None = None
    comparison: Comparison | None = None
    measures: list[RunMeasure] | None = None
    judging: float | None = None
    scorers: list[ScorerIdentity] | None = None
    skipped: list[Name] | None = None
