"""The keyring as it was verified: root's word on who may do what. DESIGN section 5.

A keyring is trusted because its digest is the pin, or because it follows a trusted one: version N+1 names the
digest of N and is signed by the thresholds of N's root and of its own. What may not change between the two is
in :func:`next_keyring`. No I/O and no clock: :meth:`VerifiedKeyring.expired` is asked with a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bundlectl.model.attestation import KEYRING_PAYLOAD_TYPE, Envelope
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.errors import UsageError, VerificationFailed
from bundlectl.model.keyring import App, Keyring, KeyringEntry, KeyState, Oidc, Role, Signers
from bundlectl.model.sigstore import SigstoreInstance
from bundlectl.trust.envelope import open_document, parse_envelope, payload_of, seal, signed_by
from bundlectl.trust.instances import check_instances, vouches
from bundlectl.trust.keys import check_public_key, key_id
from bundlectl.trust.signers import AnySigner, IdentitySigner, Signer

ACTIVE: tuple[KeyState, ...] = ("active",)
ACTIVE_OR_RETIRED: tuple[KeyState, ...] = ("active", "retired")
"""For evidence, origins and the policies that origins name: a retired key's old signatures still count."""


@dataclass(frozen=True)
class VerifiedKeyring:
    """A keyring whose signatures, form and place in the line of versions were checked.

    ``digest`` is of the payload, and ``data`` is the envelope as stored. ``registry`` is the registry's id
    (the digest of version 1's payload); None when a later version was pinned and the id was not given.
    """

    document: Keyring
    digest: str
    data: bytes = field(repr=False)
    registry: str | None

    @property
    def version(self) -> int:
        """The keyring's version, from 1."""
        return self.document.version

    def principals(
        self,
        role: Role,
        app: str | None,
        environment: str | None,
        *,
        states: Sequence[KeyState] = ACTIVE,
    ) -> dict[str, KeyringEntry]:
        """Give who holds a role for an app in an environment, in the given key states.

        None for app or environment asks whether the role is held for any at all.
        """
        held = {
            principal
            for grant in self.document.grants
            if grant.role == role and _covers(grant.apps, app) and _covers(grant.environments, environment)
            for principal in grant.principals
        }
        return self._entries(held, states)

    def roots(self, *, states: Sequence[KeyState] = ACTIVE) -> dict[str, KeyringEntry]:
        """Give root's principals."""
        return self._entries(self.document.root.principals, states)

    def owners(self, app: str, *, states: Sequence[KeyState] = ACTIVE) -> dict[str, KeyringEntry]:
        """Give the owners of an app's policy.

        Raises:
            VerificationFailed: the keyring does not name the app.
        """
        return self._entries(self.app(app).owners.principals, states)

    def app(self, app: str) -> App:
        """Give what root says about an app.

        Raises:
            VerificationFailed: the keyring does not name the app.
        """
        found = self.document.apps.get(app)
        if found is None:
            raise VerificationFailed(
                f"Keyring {self.version} does not name the app {app!r}.",
                fix="Root adds it with its owners: a new keyring version.",
            )
        return found

    def entry(self, principal: str) -> KeyringEntry:
        """Give a principal's entry.

        Raises:
            VerificationFailed: the keyring does not name the principal.
        """
        found = self.document.principals.get(principal)
        if found is None:
            raise VerificationFailed(f"Keyring {self.version} does not name the principal {principal!r}.")
        return found

    def owner(self, principal: str) -> str:
        """Give the person or team behind a principal.

        Raises:
            VerificationFailed: the keyring does not name the principal.
        """
        return self.entry(principal).owner

    def principal_of(self, public_pem: str) -> str | None:
        """Give the principal that holds this public key; None when the keyring does not know it."""
        wanted = key_id(public_pem)
        for principal, entry in self.document.principals.items():
            if entry.key is not None and key_id(entry.key.public) == wanted:
                return principal
        return None

    def principal_as(self, signer: AnySigner) -> str | None:
        """Give the principal as which a signer signs, by its key or its identity; None when there is none."""
        if isinstance(signer, IdentitySigner):
            entries = self.document.principals.items()
            return next((name for name, entry in entries if entry.oidc == signer.identity), None)
        return self.principal_of(signer.public_pem)

    @property
    def sigstore(self) -> Sequence[SigstoreInstance]:
        """The Sigstore instances that root trusts, and for whose identities."""
        return self.document.sigstore or ()

    def roles_of(self, principal: str) -> frozenset[str]:
        """Give the roles of a principal, ``root`` and ``owner`` among them, in any app and environment."""
        return frozenset(_roles(self.document).get(principal, set()))

    def signing_principal(self, signer: AnySigner, role: Role, app: str, environment: str | None) -> str:
        """Give the principal as which a signer would sign in a role, before it signs for nothing.

        Raises:
            UsageError: the key or identity is unknown, not active, or does not hold the role there; or the keyring
                trusts no Sigstore instance for the identity.
        """
        principal = self.principal_as(signer)
        if isinstance(signer, IdentitySigner):
            self._check_identity(signer.identity, principal)
        elif principal is None:
            raise UsageError(
                f"The key {signer.uri} is not in keyring {self.version}.",
                why=f"Its id is {signer.key_id}.",
                fix="Use a key the keyring names (bundlectl keyring show), or have root add this one.",
            )
        assert principal is not None
        if principal in self.principals(role, app, environment):
            return principal
        state = self.entry(principal).state
        place = f"{app}:{environment}" if environment else app
        if state != "active":
            raise UsageError(f"The key of {principal!r} is {state} and signs no more.", fix="Use an active key.")
        able = ", ".join(self.principals(role, app, environment)) or "nobody"
        raise UsageError(
            f"{principal!r} is not {'an' if role[0] in 'ae' else 'a'} {role} for {place}.",
            why=f"Its roles: {', '.join(sorted(self.roles_of(principal))) or 'none'}. "
            f"The keyring names as {role} there: {able}.",
            fix=f"Sign with a {role}'s key: --signer file:PATH",
        )

    def blocked(self, digest_: str) -> str | None:
        """Give the reason why a digest is blocked; None when it is not."""
        for entry in self.document.blocked:
            if entry.digest == digest_:
                return entry.reason
        return None

    def epoch(self, app: str, environment: str) -> int:
        """Give the epoch whose releases count; 1 where root never raised it."""
        found = self.document.apps.get(app)
        return found.epochs.get(environment, 1) if found else 1

    def expired(self, now: datetime) -> bool:
        """Say whether root's word has run out. One without an expiry never does."""
        return self.document.expires is not None and now >= self.document.expires

    def distinct(self, principals: Iterable[str]) -> int:
        """Count principals of the keyring by distinct key material (or OIDC identity), as thresholds do."""
        return len({_material(self.entry(principal)) for principal in principals})

    def _check_identity(self, identity: Oidc, principal: str | None) -> None:
        if principal is None:
            raise UsageError(
                f"The identity {identity.subject} is not in keyring {self.version}.",
                why=f"Its issuer is {identity.issuer}.",
                fix="Root adds it: bundlectl keyring add NAME --oidc-issuer URL --oidc-subject NAME "
                "--owner WHO --role ROLE",
            )
        if not vouches(self.sigstore, identity.issuer):
            raise UsageError(
                f"Keyring {self.version} trusts no Sigstore instance for identities of {identity.issuer}.",
                why="So nobody would take what is signed as one of them.",
                fix=f"Root names one: bundlectl keyring trust-root NAME FILE --issuer {identity.issuer}",
            )

    def _entries(self, principals: Iterable[str], states: Sequence[KeyState]) -> dict[str, KeyringEntry]:
        named = self.document.principals
        return {
            principal: named[principal] for principal in sorted(set(principals)) if named[principal].state in states
        }


def open_keyring(data: bytes, pin: str, *, registry: str | None = None) -> VerifiedKeyring:
    """Open the keyring that a pin names.

    Args:
        data: the stored envelope.
        pin: the digest of its payload, from outside the registry.
        registry: the registry's id where it is known; with version 1 it must be the pin.

    Raises:
        VerificationFailed: another digest than the pin's, its own root's threshold is not met, or the
            document breaks a rule of its own.
    """
    document, found, envelope = _read(data)
    if found != pin:
        raise VerificationFailed(
            "The registry's keyring is not the one that is pinned.",
            why=f"The pin is {pin}; keyring {document.version} digests to {found}.",
            fix="If root made a new registry, get the new pin from root. If not, someone replaced the keyring.",
        )
    _check_threshold(envelope, document.root, document, f"Keyring {document.version}", "its root")
    if document.version == 1:
        if registry is not None and registry != found:
            raise VerificationFailed(f"Keyring 1 belongs to the registry {found}, and {registry} was asked for.")
        registry = found
    return VerifiedKeyring(document, found, data, registry)


def next_keyring(current: VerifiedKeyring, data: bytes) -> VerifiedKeyring:
    """Open version N+1 on the word of version N.

    In this order: the version is N+1 and names N's digest; N's root and its own root each meet their
    threshold (a key that N+1 declares compromised still counts for N: that is how it is replaced); no
    principal is gone or has another key or owner; a compromised key stays so; no app is gone, no epoch and
    no policy floor is lower.

    Raises:
        VerificationFailed: any of these does not hold, or the document breaks a rule of its own.
    """
    document, found, envelope = _read(data)
    what = f"Keyring {document.version}"
    _check_follows(current, document, what)
    before = current.document
    _check_threshold(envelope, before.root, before, what, f"the root of keyring {current.version}")
    _check_threshold(envelope, document.root, document, what, "its own root")
    _check_kept(before, document, what)
    return VerifiedKeyring(document, found, data, current.registry)


def check_successor(current: VerifiedKeyring, document: Keyring) -> None:
    """Check an unsigned document as version N+1, by every rule of :func:`next_keyring` but the signatures.

    Raises:
        VerificationFailed: one of them does not hold.
    """
    check_keyring(document)
    what = f"Keyring {document.version}"
    _check_follows(current, document, what)
    _check_kept(current.document, document, what)


def unsigned(current: VerifiedKeyring, document: Keyring) -> VerifiedKeyring:
    """Give a successor as if it were signed, to ask what would follow from it. Nothing may be trusted by it.

    Raises:
        VerificationFailed: it breaks a rule.
    """
    check_successor(current, document)
    return VerifiedKeyring(document, keyring_digest(document), b"", current.registry)


def check_keyring(document: Keyring) -> None:
    """Check the rules that a keyring keeps by itself, before or after it is signed.

    Every named principal exists; public keys can be read and are of their scheme; one key (or OIDC identity)
    is one principal; a principal holds one role, where root and owner are roles too, and those two are held by
    keys; root can still reach its threshold with active keys; one Sigstore instance vouches for an issuer; only
    version 1 has no predecessor.

    Raises:
        VerificationFailed: one of them does not hold.
    """
    what = f"Keyring {document.version}"
    if (document.version == 1) != (document.previous is None):
        raise VerificationFailed(f"{what} must name its predecessor's digest, and only version 1 has none.")
    seen: dict[str, str] = {}
    for principal, entry in sorted(document.principals.items()):
        if entry.key is not None:
            try:
                check_public_key(entry.key)
            except VerificationFailed as error:
                why = " ".join(part for part in (error.what, error.why) if part)
                raise VerificationFailed(
                    f"{what} has an unusable key for {principal!r}.", why=why, fix=error.fix
                ) from error
        other = seen.setdefault(_material(entry), principal)
        if other != principal:
            raise VerificationFailed(
                f"{what} lists one key under two names: {other!r} and {principal!r}.",
                fix="Give each principal a key of its own.",
            )
    for principal, roles in sorted(_roles(document).items()):
        if principal not in document.principals:
            raise VerificationFailed(
                f"{what} gives {', '.join(sorted(roles))} to {principal!r}, whom it does not list."
            )
        if len(roles) > 1:
            raise VerificationFailed(
                f"{what} gives {principal!r} more than one role: {', '.join(sorted(roles))}.",
                why="One key, one role: whoever steals it may do one thing only.",
                fix="Make a principal with a key of its own for each role.",
            )
        if roles & {"root", "owner"} and document.principals[principal].oidc is not None:
            raise VerificationFailed(
                f"{what} makes the identity {principal!r} {roles.pop()}.",
                why="Whoever takes over an identity provider, or a Sigstore instance, must not change the rules.",
                fix="Root and owners are keys. An identity can hold a role.",
            )
    check_instances(document.sigstore or (), what)
    able = sum(1 for p in set(document.root.principals) if document.principals[p].state == "active")
    if able < document.root.threshold:
        raise VerificationFailed(
            f"{what} has {able} active root keys and a root threshold of {document.root.threshold}."
        )


def seal_keyring(document: Keyring, signers: Sequence[Signer]) -> Envelope:
    """Check and sign a keyring. Its digest is :func:`keyring_digest`; that of version 1 is the registry's id.

    Raises:
        VerificationFailed: the document breaks a rule of its own.
        UsageError: no signer was given.
    """
    check_keyring(document)
    return seal(canonical(document.form()), KEYRING_PAYLOAD_TYPE, signers)


def keyring_digest(document: Keyring) -> str:
    """Give the digest of the payload that :func:`seal_keyring` signs."""
    return digest(canonical(document.form()))


def _read(data: bytes) -> tuple[Keyring, str, Envelope]:
    envelope = parse_envelope(data, "The keyring")
    document = open_document(envelope, KEYRING_PAYLOAD_TYPE, Keyring, "The keyring")
    check_keyring(document)
    return document, digest(payload_of(envelope)), envelope


def _check_follows(current: VerifiedKeyring, document: Keyring, what: str) -> None:
    if document.version != current.version + 1:
        raise VerificationFailed(f"{what} does not follow keyring {current.version}.")
    if document.previous != current.digest:
        raise VerificationFailed(
            f"{what} follows another keyring {current.version} than the trusted one.",
            why=f"It names {document.previous}; the trusted one is {current.digest}.",
        )


def _check_kept(before: Keyring, after: Keyring, what: str) -> None:
    for principal, entry in before.principals.items():
        _check_entry(what, principal, entry, after.principals.get(principal))
    for name, app in before.apps.items():
        _check_app(what, name, app, after.apps.get(name))


def _check_threshold(envelope: Envelope, root: Signers, keyring: Keyring, what: str, whose: str) -> None:
    candidates = {p: keyring.principals[p] for p in root.principals if keyring.principals[p].state == "active"}
    signed = signed_by(envelope, candidates)
    if len(signed) < root.threshold:
        raise VerificationFailed(
            f"{what} is not signed by enough of {whose}.",
            why=f"{len(signed)} of {root.threshold} needed signed it: {', '.join(sorted(signed)) or 'nobody'}.",
            fix=f"Collect the missing signatures from {', '.join(sorted(set(candidates) - signed)) or 'root'}.",
        )


def _check_entry(what: str, principal: str, before: KeyringEntry, after: KeyringEntry | None) -> None:
    if after is None:
        raise VerificationFailed(
            f"{what} has lost the principal {principal!r}.",
            why="What it signed could no longer be judged.",
            fix="Keep the entry and set its state to retired or compromised.",
        )
    if _material(after) != _material(before) or after.owner != before.owner:
        raise VerificationFailed(
            f"{what} changes the key or the owner of {principal!r}.",
            fix="Retire that principal and add a new one under a new id.",
        )
    if before.state == "compromised" and after.state != "compromised":
        raise VerificationFailed(f"{what} makes the compromised key of {principal!r} {after.state} again.")


def _check_app(what: str, name: str, before: App, after: App | None) -> None:
    if after is None:
        raise VerificationFailed(f"{what} has lost the app {name!r}.", why="Its epochs and policy floor would be lost.")
    if after.policy < before.policy:
        raise VerificationFailed(f"{what} lowers the policy floor of {name!r} from {before.policy} to {after.policy}.")
    for environment, epoch in before.epochs.items():
        now = after.epochs.get(environment, 1)
        if now < epoch:
            raise VerificationFailed(f"{what} lowers the epoch of {name}:{environment} from {epoch} to {now}.")


def _roles(document: Keyring) -> dict[str, set[str]]:
    held: dict[str, set[str]] = {}
    for principal in document.root.principals:
        held.setdefault(principal, set()).add("root")
    for app in document.apps.values():
        for principal in app.owners.principals:
            held.setdefault(principal, set()).add("owner")
    for grant in document.grants:
        for principal in grant.principals:
            held.setdefault(principal, set()).add(grant.role)
    return held


def _covers(names: Sequence[str], asked: str | None) -> bool:
    return asked is None or "*" in names or asked in names


def _material(entry: KeyringEntry) -> str:
    if entry.key is not None:
        return key_id(entry.key.public)
    assert entry.oidc is not None  # the model demands one of the two
    return digest(canonical(entry.oidc.form()))
