"""A whole registry in memory, with a key for every role: the tests' best friend.

Everything is made with the real rooms, so what it gives verifies; and every step can be bent, so that attacks
are one line: ``world.head("prod", bundle, signer="evaluator")``, ``world.head("prod", bundle, serial=9)``.

    world = World()
    bundle = world.bundle("v1")                 # built, stored, with provenance and evaluation attached
    world.promote("prod", bundle)
    world.verify("prod")                        # the VerifiedRelease
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from bundlectl.model.attestation import APPROVAL, EVALUATION, KINDS, PAYLOAD_TYPE, PROVENANCE, RELEASE, Envelope
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle, component_document, make_bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.components import (
    Access,
    AccessCase,
    Application,
    Evaluation,
    FileRef,
    Message,
    Model,
    Output,
    Profile,
    Prompt,
    Route,
    Routes,
    Rule,
    Task,
)
from bundlectl.model.keyring import (
    App,
    EvaluationRequirement,
    Gate,
    Grant,
    Keyring,
    KeyringEntry,
    Policy,
    PublicKey,
    Role,
    Signers,
)
from bundlectl.model.release import Action, Head, Release, RollbackTarget
from bundlectl.model.types import format_time
from bundlectl.registry.head import parse_head, release_of
from bundlectl.registry.registry import Registry
from bundlectl.registry.releases import HeadState
from bundlectl.resolver.lineage import next_origins
from bundlectl.resolver.trusted import TrustedState, VerifiedRelease, verify_head
from bundlectl.storage.memory import MemoryStore
from bundlectl.storage.store import Store
from bundlectl.trust.envelope import envelope_bytes, make_statement, open_statement, payload_of, seal
from bundlectl.trust.keyring import VerifiedKeyring, next_keyring, open_keyring, seal_keyring
from bundlectl.trust.policy import seal_policy
from bundlectl.trust.signers import KeySigner

START = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
ROLES: tuple[Role, ...] = ("builder", "evaluator", "approver", "promoter", "renewer", "indexer", "gc")
SUITE = "support"
NOTHING = object()
"""Says "leave this field out" where None would say "the default"."""

_SCHEMA = b"""\
entity Caller { tenant: String, role: String };
entity Task { task: String, tenant: String, scopes: Set<String>, profile: String };
action "ask" appliesTo { principal: [Caller], resource: [Task] };
"""
_POLICY = b"""\
@id("support-agents")
permit (principal, action == Action::"ask", resource) when { principal.role == "support_agent" };
"""


@cache
def signer(name: str, scheme: str = "ed25519") -> KeySigner:
    """Give the key of a name, the same one all through a run."""
    if scheme == "ed25519":
        return KeySigner(ed25519.Ed25519PrivateKey.generate(), f"test:{name}")
    return KeySigner(ec.generate_private_key(ec.SECP256R1()), f"test:{name}")


def entry(name: str, *, owner: str | None = None, state: Any = "active") -> KeyringEntry:
    """Give the keyring's entry for the key of a name; each name is its own owner by default."""
    held = signer(name)
    return KeyringEntry(
        owner=owner or f"{name}@example.com",
        key=PublicKey.model_validate({"scheme": held.scheme, "public": held.public_pem}),
        state=state,
    )


def tiny_bundle(text: str = "v1", *, app: str = "support", version: str = "1.0.0", **parts: Any) -> Bundle:
    """Make a small bundle that every room accepts: one task, an extractive model, no retrieval.

    ``text`` goes into the prompt, so another text is another bundle. ``parts`` stand in for components of it.
    """
    files = {"access/schema.cedarschema": _SCHEMA, "access/support.cedar": _POLICY}
    refs = {path: FileRef(path=path, digest=digest(data)) for path, data in files.items()}
    case = {"task": "answer", "tenant": "acme", "profile": "plain"}
    values: dict[str, Any] = {
        "access": Access(
            policies=[refs["access/support.cedar"]],
            schema_=refs["access/schema.cedarschema"],
            cases=[
                AccessCase(name="agent", role="support_agent", expect="allow", **case),
                AccessCase(name="visitor", role="visitor", expect="deny", **case),
            ],
        ),
        "application": Application(
            app=app, version=version, tasks={"answer": Task(prompt="answer", profiles=["plain"])}
        ),
        "embedding": None,
        "evaluation": Evaluation(suites=[SUITE]),
        "guardrails": {"plain": Profile()},
        "models": {"plain": Model(provider="extractive")},
        "output": {"answer": Output(format="text")},
        "prompts": {"answer": Prompt(messages=[Message(role="user", content=f"{text}: {{{{ input.question }}}}")])},
        "retrieval": {},
        "routes": Routes(routes={"fast": Route(model="plain")}, select=[Rule(use="fast")]),
        **parts,
    }
    return make_bundle({name: component_document(name, value) for name, value in values.items()}, files)


def default_gates() -> dict[str, Gate]:
    """dev asks nothing; staging an evaluation; prod provenance, evaluation, approval, and expires after 14 days."""
    evaluations = [EvaluationRequirement(suite=SUITE)]
    return {
        "dev": Gate(),
        "staging": Gate(evaluations=evaluations),
        "prod": Gate(provenance=1, evaluations=evaluations, approvals=1, expires_after="14d"),
    }


def flip(data: bytes, at: int, bit: int = 0) -> bytes:
    """Give the bytes with one bit turned."""
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


class World:
    """A registry of one app, its keys, its clock. ``clock`` is the wall clock of everything made and verified."""

    def __init__(
        self,
        store: Store | None = None,
        *,
        app: str = "support",
        gates: dict[str, Gate] | None = None,
        principals: dict[str, KeyringEntry] | None = None,
        grants: Sequence[Grant] | None = None,
        clock: datetime = START,
    ) -> None:
        self.store = store if store is not None else MemoryStore()
        self.warnings = []
        self.registry = Registry(self.store, on_warning=self.warnings.append)
        self.app = app
        self.clock = clock
        names = ("root", "owner", *ROLES)
        document = Keyring(
            version=1,
            root=Signers(principals=["root"]),
            principals={name: entry(name) for name in names} | (principals or {}),
            grants=list(grants) if grants is not None else [Grant(role=role, principals=[role]) for role in ROLES],
            apps={app: App(owners=Signers(principals=["owner"]))},
        )
        data = envelope_bytes(seal_keyring(document, [signer("root")]))
        self.pin = digest(canonical(document.form()))
        self.keyring = open_keyring(data, self.pin)
        self.registry.put_keyring(1, data)
        self._put_policy(Policy(app=app, version=1, environments=gates or default_gates()))

    # ------------------------------------------------------------ keyring, policy, time

    @property
    def registry_id(self) -> str:
        """The digest of keyring 1."""
        assert self.keyring.registry is not None
        return self.keyring.registry

    def tick(self, **kinds: float) -> datetime:
        """Move the clock, e.g. ``tick(days=3)``; one minute by default."""
        self.clock += timedelta(**(kinds or {"minutes": 1}))
        return self.clock

    def now(self) -> datetime:
        """Read the clock; pass this method where a clock is asked for."""
        return self.clock

    def rotate(self, *, signers: Sequence[str] = ("root",), store: bool = True, **changes: Any) -> bytes:
        """Make, and store, the next keyring with some fields of the document changed."""
        document = self.keyring.document.model_copy(
            update={"version": self.keyring.version + 1, "previous": self.keyring.digest, **changes}
        )
        data = envelope_bytes(seal_keyring(document, [signer(name) for name in signers]))
        if store:
            self.keyring = next_keyring(self.keyring, data)
            self.registry.put_keyring(document.version, data)
        return data

    def set_state(self, principal: str, state: str) -> None:
        """Retire a key, or declare it compromised, in the next keyring."""
        principals = dict(self.keyring.document.principals)
        principals[principal] = principals[principal].model_copy(update={"state": state})
        self.rotate(principals=principals)

    def add_principal(self, principal: str, role: Role, *, owner: str | None = None) -> None:
        """Add a principal with a key of its own to a role, in the next keyring."""
        document = self.keyring.document
        self.rotate(
            principals={**document.principals, principal: entry(principal, owner=owner)},
            grants=[*document.grants, Grant(role=role, principals=[principal])],
        )

    def block(self, digest_: str, reason: str = "leaks a secret") -> None:
        """Block a digest in the next keyring."""
        listed = [*self.keyring.document.blocked, {"digest": digest_, "reason": reason}]
        document = Keyring.model_validate({**self.keyring.document.form(), "blocked": [_form(b) for b in listed]})
        self.rotate(blocked=document.blocked)

    def raise_epoch(self, environment: str, epoch: int) -> None:
        """Raise an environment's epoch in the next keyring."""
        app = self.keyring.document.apps[self.app]
        changed = app.model_copy(update={"epochs": {**app.epochs, environment: epoch}})
        self.rotate(apps={**self.keyring.document.apps, self.app: changed})

    def next_policy(self, gates: dict[str, Gate] | None = None, *, signers: Sequence[str] = ("owner",)) -> Policy:
        """Make and store the next policy."""
        before = self.policy_document
        document = Policy(
            app=self.app,
            version=before.version + 1,
            previous=digest(payload_of(self.policy)),
            environments=gates or before.environments,
        )
        self._put_policy(document, signers)
        return document

    def _put_policy(self, document: Policy, signers: Sequence[str] = ("owner",)) -> None:
        self.policy = seal_policy(document, [signer(name) for name in signers])
        self.policy_document = document
        self.registry.put_policy(self.app, document.version, envelope_bytes(self.policy))

    # ------------------------------------------------------------ bundles and evidence

    def bundle(self, text: str = "v1", *, evidence: bool = True) -> Bundle:
        """Build and store a tiny bundle, with everything attached that the default gates ask for."""
        bundle = tiny_bundle(text, app=self.app)
        self.registry.put_bundle(self.app, bundle)
        if evidence:
            for envelope in self.evidence(bundle):
                self.registry.attach(self.app, bundle.digest, _kind(envelope), envelope)
        return bundle

    def evidence(self, bundle: Bundle, environment: str = "prod") -> list[Envelope]:
        """Make provenance, a passing evaluation and an approval."""
        return [self.provenance(bundle), self.evaluation(bundle), self.approval(bundle, environment)]

    def provenance(self, bundle: Bundle, *, signers: Sequence[str] = ("builder",)) -> Envelope:
        """Make a provenance attestation."""
        return self.attest(bundle.digest, PROVENANCE, {"buildDefinition": {}, "runDetails": {}}, signers)

    def evaluation(self, bundle: Bundle, *, signers: Sequence[str] = ("evaluator",), **changes: Any) -> Envelope:
        """Make an evaluation attestation that passes, unless fields are changed."""
        predicate = {
            "suite": SUITE,
            "suite_digest": digest(b"suite"),
            "dataset_digest": digest(b"dataset"),
            "task": "answer",
            "cases": 1,
            "verdict": "pass",
            "scores": [
                {"scorer": "contains", "mean": 1.0, "measured": 1, "unmeasured": 0, "errors": 0, "verdict": "pass"}
            ],
            "complete": True,
            "bindings": digest(canonical(Bindings().form())),
            "tool_version": "0.1.0",
            "started": format_time(self.clock),
            "finished": format_time(self.clock),
            "actor": signers[0],
        }
        return self.attest(bundle.digest, EVALUATION, predicate | changes, signers)

    def approval(
        self, bundle: Bundle, environment: str = "prod", *, signers: Sequence[str] = ("approver",)
    ) -> Envelope:
        """Make an approval."""
        predicate = {
            "environment": environment,
            "reason": "looks right",
            "actor": signers[0],
            "time": format_time(self.clock),
        }
        return self.attest(bundle.digest, APPROVAL, predicate, signers)

    def attest(
        self, bundle: str, predicate_type: str, predicate: dict[str, Any], signers: Sequence[str], **how: Any
    ) -> Envelope:
        """Sign any statement about a bundle; ``app`` and ``payload_type`` can be bent."""
        payload = make_statement(how.get("app", self.app), bundle, predicate_type, predicate)
        return seal(payload, how.get("payload_type", PAYLOAD_TYPE), [signer(name) for name in signers])

    # ------------------------------------------------------------ releases

    def head_of(self, environment: str) -> tuple[HeadState, Head, Release]:
        """Read the present head."""
        state = self.registry.releases.read_head(self.app, environment)
        assert state is not None
        return state, *parse_head(state.data, "head")

    def head(
        self,
        environment: str,
        bundle: Bundle | str,
        *,
        action: Action = "promotion",
        signer: str | Sequence[str] | None = None,
        origins: Sequence[Envelope] = (),
        evidence: Sequence[Envelope] | None = None,
        policies: Sequence[Envelope] | None = None,
        payload_type: str = PAYLOAD_TYPE,
        subject: str | None = None,
        **changes: Any,
    ) -> bytes:
        """Make the bytes of a head that succeeds the present one; every part can be bent.

        ``changes`` are fields of the release in their JSON form; ``NOTHING`` leaves one out.
        """
        present = self.registry.releases.read_head(self.app, environment)
        before = parse_head(present.data, "head")[1] if present else None
        epoch = self.keyring.epoch(self.app, environment)
        named = bundle.digest if isinstance(bundle, Bundle) else bundle
        gate = self.policy_document.environments.get(environment, Gate())
        expires = self.clock + timedelta(days=14) if gate.expires_after else None
        form: dict[str, Any] = {
            "apiVersion": "bundlectl/v1",
            "kind": "Release",
            "registry": self.registry_id,
            "app": self.app,
            "environment": environment,
            "epoch": epoch,
            "serial": before.serial + 1 if before and before.epoch == epoch else 1,
            "previous": present.digest if present else NOTHING,
            "action": action,
            "bundle": named,
            "bindings": Bindings().form(),
            "reason": f"{action} in a test",
            "actor": "renewer" if action == "renewal" else "promoter",
            "since": format_time(self.clock),
            "time": format_time(self.clock),
            "expires": format_time(expires) if expires else NOTHING,
            "keyring": self.keyring.version,
            "policy": self.policy_document.version,
        }
        if before is not None and action == "promotion" and before.bundle != named:
            assert present is not None
            origins_ = parse_head(present.data, "head")[0].origins
            promotion = release_of(origins_[-1], "origin") if origins_ else before
            target = RollbackTarget(bundle=before.bundle, epoch=promotion.epoch, serial=promotion.serial)
            form["rollback_target"] = target.form()
        form = {key: value for key, value in (form | changes).items() if value is not NOTHING}
        names = [signer] if isinstance(signer, str) else signer if signer is not None else [form["actor"]]
        statement = make_statement(form["app"], subject or form["bundle"], RELEASE, form)
        if evidence is None:
            evidence = [e for _, _, e in self.registry.attestations(self.app, named)]
            evidence = [e for e in evidence if _environment(e) in (None, environment)]
        head = Head(
            release=seal(statement, payload_type, [_signer(name) for name in names]),
            origins=list(origins),
            evidence=list(evidence),
            policies=list(policies) if policies is not None else [self.policy],
        )
        return canonical(head.form())

    def promote(self, environment: str, bundle: Bundle | str, **bent: Any) -> HeadState:
        """Commit a promotion."""
        return self.commit(environment, self.head(environment, bundle, **bent))

    def rollback_head(self, environment: str, serial: int, **bent: Any) -> bytes:
        """Make a rollback to the release of a serial."""
        entry_ = self.registry.releases.release_at(self.app, environment, serial)
        head, release = parse_head(entry_.data, "head")
        origins = next_origins(head, release, "rollback")
        parts = {"origins": origins, "evidence": head.evidence, "policies": self._policies(head, origins)}
        return self.head(environment, bent.pop("bundle", release.bundle), action="rollback", **(parts | bent))

    def rollback(self, environment: str, serial: int, **bent: Any) -> HeadState:
        """Commit a rollback to the release of a serial."""
        return self.commit(environment, self.rollback_head(environment, serial, **bent))

    def renewal_head(self, environment: str, **bent: Any) -> bytes:
        """Make a renewal of the present head."""
        _, head, release = self.head_of(environment)
        form = release.form()
        kept = {key: form.get(key, NOTHING) for key in ("rollback_target", "bindings", "since", "keyring", "policy")}
        parts = {
            "origins": next_origins(head, release, "renewal"),
            "evidence": head.evidence,
            "policies": head.policies,
        }
        return self.head(environment, bent.pop("bundle", release.bundle), action="renewal", **(kept | parts | bent))

    def renew(self, environment: str, **bent: Any) -> HeadState:
        """Commit a renewal of the present head."""
        return self.commit(environment, self.renewal_head(environment, **bent))

    def rebind_head(self, environment: str, bindings: Bindings, **bent: Any) -> bytes:
        """Make a rebind of the present head."""
        _, head, release = self.head_of(environment)
        form = release.form()
        origins = next_origins(head, release, "rebind")
        kept = {
            "rollback_target": form.get("rollback_target", NOTHING),
            "since": form["since"],
            "bindings": bindings.form(),
        }
        parts = {"origins": origins, "evidence": head.evidence, "policies": self._policies(head, origins)}
        return self.head(environment, bent.pop("bundle", release.bundle), action="rebind", **(kept | parts | bent))

    def rebind(self, environment: str, bindings: Bindings, **bent: Any) -> HeadState:
        """Commit a rebind of the present head."""
        return self.commit(environment, self.rebind_head(environment, bindings, **bent))

    def commit(self, environment: str, data: bytes) -> HeadState:
        """Commit a head's bytes on the present one and move the clock a minute."""
        present = self.registry.releases.read_head(self.app, environment)
        state = self.registry.releases.commit(self.app, environment, present, data)
        self.tick()
        return state

    def _policies(self, head: Head, origins: Iterable[Envelope]) -> list[Envelope]:
        """Today's policy, and the one that the promotion among the origins names."""
        promotion = release_of([*origins][-1], "origin")
        wanted = {self.policy_document.version: self.policy}
        for envelope in head.policies:
            version = Policy.model_validate_json(payload_of(envelope), strict=False).version
            if version == promotion.policy:
                wanted.setdefault(version, envelope)
        return list(wanted.values())

    # ------------------------------------------------------------ judging

    def verify(
        self,
        environment: str,
        data: bytes | None = None,
        *,
        state: TrustedState | None = None,
        keyring: VerifiedKeyring | None = None,
        now: datetime | None = None,
        **bent: Any,
    ) -> VerifiedRelease:
        """Judge bytes, or the present head, as a resolver of this environment would."""
        if data is None:
            data = self.head_of(environment)[0].data
        asked: dict[str, Any] = {"app": self.app, "environment": environment, "registry_id": self.registry_id}
        return verify_head(data, keyring=keyring or self.keyring, state=state, now=now or self.clock, **(asked | bent))

    def trust(self, environment: str) -> TrustedState:
        """Give the state of a resolver that believes the present head."""
        return self.verify(environment).trusted_state(self.keyring)


_signer = signer


def _form(value: Any) -> Any:
    return value if isinstance(value, dict) else value.form()


def _kind(envelope: Envelope) -> str:
    return KINDS[open_statement(envelope).predicateType]


def _environment(envelope: Envelope) -> str | None:
    statement = open_statement(envelope)
    return statement.predicate["environment"] if statement.predicateType == APPROVAL else None
