"""The keyring: root's signed, versioned document of who may do what; and the policy, the app owners' gates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bundlectl.model.sigstore import SigstoreInstance
from bundlectl.model.types import Digest, Duration, Name, Principal, StoreName, Strict, Text, Time

Role = Literal["builder", "evaluator", "approver", "promoter", "renewer", "indexer", "gc"]
ROLES: tuple[Role, ...] = ("builder", "evaluator", "approver", "promoter", "renewer", "indexer", "gc")
EvidenceRole = Literal["builder", "evaluator", "approver"]
"""The roles whose word about a bundle is evidence."""
KeyState = Literal["active", "retired", "compromised"]


class PublicKey(Strict):
    """A public key: SubjectPublicKeyInfo in PEM, and its scheme."""

    scheme: Literal["ed25519", "ecdsa-p256-sha256"]
    public: str


class Oidc(Strict):
    """An OIDC identity, matched exactly.

    ``subject`` is the name that Sigstore puts into the certificate: an e-mail address, or a workflow's URI. For GitHub
    Actions that is ``https://github.com/ORG/REPO/.github/workflows/FILE@REF``, not the token's ``sub``.
    """

    issuer: str
    subject: str


class KeyringEntry(Strict):
    """One principal: a key or an OIDC identity, its owner (a person or a team), and its state.

    Entries are never removed. ``retired``: evidence and origins still count, a head needs an active signer.
    ``compromised``: counts nowhere.
    """

    owner: str = Field(min_length=1, max_length=200)
    key: PublicKey | None = None
    oidc: Oidc | None = None
    state: KeyState = "active"

    @model_validator(mode="after")
    def _one(self) -> KeyringEntry:
        if (self.key is None) == (self.oidc is None):
            raise ValueError("a principal is either a 'key' or an 'oidc' identity")
        return self


class Signers(Strict):
    """A set of principals and how many distinct ones must sign."""

    principals: list[Principal] = Field(min_length=1)
    threshold: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _reachable(self) -> Signers:
        if self.threshold > len(set(self.principals)):
            raise ValueError(f"a threshold of {self.threshold} needs as many distinct principals")
        return self


class Grant(Strict):
    """A role for principals, in named apps and environments (``*``: all)."""

    role: Role
    principals: list[Principal] = Field(min_length=1)
    apps: list[StoreName | Literal["*"]] = ["*"]
    environments: list[StoreName | Literal["*"]] = ["*"]


class App(Strict):
    """An app: who owns its policy, the least policy version that still counts, and each environment's epoch."""

    owners: Signers
    policy: Annotated[int, Field(ge=1)] = 1
    epochs: dict[StoreName, Annotated[int, Field(ge=1)]] = {}


class Blocked(Strict):
    """A digest (bundle, snapshot or evidence) that must not be served any more."""

    digest: Digest
    reason: Text


class Keyring(Strict):
    """Root's document. Version N+1 needs the thresholds of N's root and of its own; ``reason`` says why it was made.

    The registry's id is the digest of the payload of version 1. One key holds one role: the same key material
    may not stand in grants of two roles, nor as root or owner beside a role. Root and owners are keys. ``sigstore``:
    who vouches for OIDC identities; an identity whose issuer none of them names signs nothing.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Keyring"] = "Keyring"
    version: Annotated[int, Field(ge=1)]
    previous: Digest | None = None
    reason: Text | None = None
    expires: Time | None = None
    root: Signers
    principals: dict[Principal, KeyringEntry] = Field(min_length=1)
    grants: list[Grant] = []
    apps: dict[StoreName, App] = {}
    blocked: list[Blocked] = []
    sigstore: list[SigstoreInstance] | None = None


class EvaluationRequirement(Strict):
    """One suite that must have passed. Digests, where given, pin the exam; a candidate does not set its own.

    ``floors``: the least mean by scorer. ``no_worse``: how much worse, by scorer, than what is live in the environment
    is still no worse; judged from the comparison in the signed result. ``anchor``: a bundle that it has to be no worse
    than as well, by the same margins, so that many small steps down do not add up.
    """

    suite: Name
    suite_digest: Digest | None = None
    dataset_digest: Digest | None = None
    max_age: Duration | None = None
    floors: dict[Name, Annotated[float, Field(ge=0, le=1)]] = {}
    no_worse: dict[Name, Annotated[float, Field(gt=0, le=1)]] | None = None
    anchor: Digest | None = None
    threshold: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _anchor_by_margins(self) -> EvaluationRequirement:
        if self.anchor is not None and not self.no_worse:
            raise ValueError("an anchor is compared by the margins of no_worse, and there are none")
        return self


class AttestationRequirement(Strict):
    """A statement of some predicate type (a URI) that so many distinct principals of a role must have signed.

    Only those who judge a bundle can be asked: a promoter's own word about what it promotes is worth nothing.
    """

    type: Annotated[str, Field(min_length=1, max_length=200)]
    role: EvidenceRole
    threshold: Annotated[int, Field(ge=1)] = 1


class SoakRegistry(Strict):
    """Another registry whose releases count as a soak, where ``bundlectl copy`` brought them.

    ``id``: the digest of its keyring 1. ``keyring``: the digest of the version from which it is trusted; give a
    newer one when a key of it is compromised. ``max_age``: how old its newest word about the bundle may be.
    """

    id: Digest
    keyring: Digest
    max_age: Duration = "7d"


class Soak(Strict):
    """The bundle must be live in another environment now, and have been for at least this long.

    With ``registry`` the environment is one of that registry, and what its signed releases prove is what counts.
    """

    environment: StoreName
    at_least: Duration = "0s"
    registry: SoakRegistry | None = None


class Freeze(Strict):
    """A window in which nothing is promoted."""

    start: Time
    end: Time
    reason: Text


class Gate(Strict):
    """What a bundle must show before it may go live in one environment."""

    provenance: Annotated[int, Field(ge=0)] = 0
    evaluations: list[EvaluationRequirement] = []
    attestations: list[AttestationRequirement] | None = None
    approvals: Annotated[int, Field(ge=0)] = 0
    soak: Soak | None = None
    freezes: list[Freeze] = []
    forbid_lint: list[str] = []
    confirm: bool = False
    expires_after: Duration | None = None
    past_expiry: Literal["serve", "refuse"] = "serve"


class Policy(Strict):
    """The app owners' document: each environment's gate. An environment that is not named does not exist."""

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Policy"] = "Policy"
    app: StoreName
    version: Annotated[int, Field(ge=1)]
    previous: Digest | None = None
    environments: dict[StoreName, Gate] = Field(min_length=1)


class PolicySource(Strict):
    """A policy file, as the app's owners write it. Version and predecessor are added when it is set."""

    apiVersion: Literal["bundlectl/v1"]
    kind: Literal["Policy"]
    environments: dict[StoreName, Gate] = Field(min_length=1)
