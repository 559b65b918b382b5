"""keyring add, retire, compromise, block, epoch, rotate-root, app: each makes version N+1, or a request for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

from pydantic import ValidationError

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust, releases_of, resolve_bundle
from bundlectl.actions.releasing import current as judge_head
from bundlectl.actions.signing import keyring_signers, open_signers, read_file, write_request
from bundlectl.model.errors import Conflict, UsageError, VerificationFailed
from bundlectl.model.keyring import Keyring, Oidc, PublicKey, Role
from bundlectl.model.reference import parse_environment
from bundlectl.model.signing import WhoSigns
from bundlectl.model.types import DIGEST, Strict, seconds
from bundlectl.resolver.trusted import verify_bundle
from bundlectl.trust import succession
from bundlectl.trust.envelope import brief, envelope_bytes
from bundlectl.trust.keyring import VerifiedKeyring, next_keyring, seal_keyring, unsigned
from bundlectl.trust.keys import load_public_key, scheme_of
from bundlectl.trust.signers import open_key
from bundlectl.trust.succession import NewMember, differences, newly

MAX_KEY = 64 * 1024


class KeyringChanged(Strict):
    """The next keyring: stored, or (with ``request``) waiting for signatures.

    ``consequences`` names each environment whose live release will be refused under it.
    """

    version: int
    digest: str
    changes: list[str]
    consequences: list[str]
    request: str | None = None
    signers: list[WhoSigns]


Change = Callable[[VerifiedKeyring], Keyring]


def add(
    ctx: Context,
    principal: str,
    *,
    owner: str,
    role: Role,
    key: str | None = None,
    oidc: Oidc | None = None,
    apps: Sequence[str] = ("*",),
    environments: Sequence[str] = ("*",),
    reason: str | None = None,
    signers: Sequence[str] = (),
    request: Path | None = None,
) -> KeyringChanged:
    """Give a principal a role: by ``key``, a file with its public key in PEM or the URI of its signer, or by ``oidc``.

    Raises:
        UsageError: neither or both were given, or no Sigstore instance of the keyring vouches for the identity.
    """
    if (key is None) == (oidc is None):
        raise UsageError(
            "A principal is a key or an identity, one of the two.",
            fix="Give --key FILE.pub, or --oidc-issuer URL and --oidc-subject NAME.",
        )
    new = NewMember(principal, owner, public_key(ctx, key) if key is not None else None, oidc)
    where = {"apps": apps, "environments": environments}
    return change(ctx, lambda n: succession.add_principal(n, new, role, reason=reason, **where), signers, request)


def retire(
    ctx: Context, principal: str, *, reason: str, signers: Sequence[str] = (), request: Path | None = None
) -> KeyringChanged:
    """Retire a key: it signs no more, and what it signed still counts.

    Raises:
        UsageError: a live release depends on it.
    """
    return change(ctx, lambda n: succession.set_state(n, principal, "retired", reason), signers, request)


def compromise(
    ctx: Context, principal: str, *, reason: str, signers: Sequence[str] = (), request: Path | None = None
) -> KeyringChanged:
    """Declare a key compromised: nothing that it signed counts any more, whenever it did."""
    return change(ctx, lambda n: succession.set_state(n, principal, "compromised", reason), signers, request)


def block(
    ctx: Context, digest: str, *, reason: str, signers: Sequence[str] = (), request: Path | None = None
) -> KeyringChanged:
    """Block a digest, or the bundle that a reference names: it stops serving at once.

    Raises:
        UsageError: it is neither a whole digest nor a reference, or blocked already.
    """
    named = digest if DIGEST.fullmatch(digest) else resolve_bundle(ctx, digest)[1]
    return change(ctx, lambda n: succession.block(n, named, reason), signers, request)


def epoch(
    ctx: Context, environment: str, *, reason: str, signers: Sequence[str] = (), request: Path | None = None
) -> KeyringChanged:
    """Begin an environment's next epoch, after a promoter's compromise: serials start again."""
    ref = parse_environment(environment)
    return change(ctx, lambda n: succession.raise_epoch(n, ref.app, ref.environment, reason), signers, request)


def rotate_root(
    ctx: Context,
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    threshold: int | None = None,
    expires: str | None = None,
    reason: str | None = None,
    signers: Sequence[str] = (),
    request: Path | None = None,
) -> KeyringChanged:
    """Change root: ``add`` holds ``PRINCIPAL,WHO,FILE.pub``; ``expires`` is how long root's word holds from now."""
    new = [new_member(ctx, one) for one in add]
    until = ctx.clock() + timedelta(seconds=_duration(expires)) if expires else None
    return change(
        ctx,
        lambda n: succession.rotate_root(n, add=new, remove=remove, threshold=threshold, expires=until, reason=reason),
        signers,
        request,
    )


def set_app(
    ctx: Context,
    app: str,
    *,
    owners: Sequence[str] | None = None,
    add: Sequence[str] = (),
    threshold: int | None = None,
    policy_floor: int | None = None,
    reason: str | None = None,
    signers: Sequence[str] = (),
    request: Path | None = None,
) -> KeyringChanged:
    """Add an app, or change its owners and policy floor; ``add`` holds ``PRINCIPAL,WHO,FILE.pub``."""
    new = [new_member(ctx, one) for one in add]
    return change(
        ctx,
        lambda n: succession.set_app(
            n, app, owners=owners, add=new, threshold=threshold, policy_floor=policy_floor, reason=reason
        ),
        signers,
        request,
    )


def change(ctx: Context, make: Change, signers: Sequence[str], request: Path | None) -> KeyringChanged:
    """Make the next keyring; sign and store it, or write the request to have it signed.

    Raises:
        UsageError: nothing would change, or a key would be retired that a live release depends on.
        VerificationFailed: the signatures given are not enough of root.
        Conflict: someone else stored version N+1 first.
    """
    present = open_trust(ctx)
    try:
        document = make(present)
    except ValidationError as error:
        raise UsageError("The keyring cannot say that.", why=brief(error)) from error
    told = consequences(ctx, present, document)
    changes, who = differences(present.document, document), keyring_signers(present, document)
    if request is not None:
        written = write_request(ctx, request, document)
        return KeyringChanged(
            version=document.version,
            digest=written.digest,
            changes=changes,
            consequences=told,
            request=str(request),
            signers=who,
        )
    data = envelope_bytes(seal_keyring(document, open_signers(ctx, signers, "root")))
    stored = store_keyring(ctx, present, data)
    return KeyringChanged(version=stored.version, digest=stored.digest, changes=changes, consequences=told, signers=who)


def store_keyring(ctx: Context, present: VerifiedKeyring, data: bytes) -> VerifiedKeyring:
    """Store the next keyring, once it is what every resolver will take.

    Raises:
        VerificationFailed: too few of root signed it, or another rule is broken.
        Conflict: someone else stored that version first.
    """
    try:
        following = next_keyring(present, data)
    except VerificationFailed as error:
        if "not signed by enough" not in error.what:
            raise
        raise VerificationFailed(
            error.what,
            why=error.why,
            fix=f"{error.fix} Several keys here: --signer URI --signer URI; elsewhere: --request FILE",
        ) from error
    try:
        ctx.registry.put_keyring(following.version, data)
    except VerificationFailed:
        if (theirs := ctx.registry.keyring_bytes(following.version)) is None or not _holds(present, theirs):
            raise
        raise Conflict(
            f"Someone else stored keyring {following.version} first; nothing of yours was stored.",
            fix="See it (bundlectl keyring show), and repeat the command on top of it.",
        ) from None
    return following


def consequences(ctx: Context, present: VerifiedKeyring, document: Keyring) -> list[str]:
    """Say which live releases the next keyring will have refused, which the present one has not.

    Raises:
        UsageError: one of them only because a key is retired that it depends on.
    """
    after = unsigned(present, document)
    retired = newly(present.document, document, "retired")
    kept = _without(present, document, retired) if retired else after
    depends: list[str] = []
    refused: list[str] = []
    for app in sorted(present.document.apps):
        for environment in ctx.registry.environments(app):
            why = _refusal(ctx, app, environment, after)
            if why is None or _refusal(ctx, app, environment, present) is not None:
                continue
            alone = retired and _refusal(ctx, app, environment, kept) is None
            (depends if alone else refused).append(f"{app}:{environment}: {why}")
    if depends:
        raise UsageError(
            f"{', '.join(retired)} cannot be retired: a live release depends on it; nothing was changed.",
            why="\n".join(depends),
            fix="Release anew with another active key first: bundlectl renew, or promote. "
            "A stolen key is not retired but compromised.",
            details={"depends": depends},
        )
    return refused


def public_key(ctx: Context, place: str) -> PublicKey:
    """Read a public key: a file in PEM, or that of a signer (``awskms:…``, ``file:…``).

    Raises:
        UsageError: it cannot be read, or is a private key.
        VerificationFailed: it is no key of a kind that is used here.
    """
    if place.startswith(("awskms:", "file:")):
        signer = open_key(place, ctx.passphrase)
        return PublicKey.model_validate({"scheme": signer.scheme, "public": signer.public_pem})
    text = read_file(Path(place), MAX_KEY).decode("ascii", errors="replace")
    if "PRIVATE KEY" in text:
        raise UsageError(
            f"{place} holds a private key.",
            why="The keyring lists public keys; a private one stays where it was made.",
            fix=f"openssl pkey -in {place} -pubout gives its public key; or name it as a signer: file:{place}",
        )
    scheme = scheme_of(load_public_key(text))
    return PublicKey.model_validate({"scheme": scheme, "public": text})


def new_member(ctx: Context, text: str) -> NewMember:
    """Read ``PRINCIPAL,WHO,FILE.pub``.

    Raises:
        UsageError: it has another form, or the file is no public key.
    """
    parts = text.split(",", 2)
    if len(parts) != 3 or not all(parts):
        raise UsageError(f"{text!r} names no new principal.", fix="Write PRINCIPAL,WHO,FILE.pub")
    return NewMember(parts[0], parts[1], public_key(ctx, parts[2]))


def _refusal(ctx: Context, app: str, environment: str, keyring: VerifiedKeyring) -> str | None:
    """Say why a resolver would refuse what is live; None when it would not, or nothing is."""
    head = releases_of(ctx).read_head(app, environment)
    if head is None:
        return None
    try:
        release = judge_head(head.data, app, environment, keyring, ctx.clock())
        verify_bundle(ctx.registry.get_bundle(app, release.release.bundle), release, keyring)
    except VerificationFailed as error:
        return f"{error.what} {error.why}".strip()
    return None


def _without(present: VerifiedKeyring, document: Keyring, retired: Sequence[str]) -> VerifiedKeyring:
    """Give the next keyring as it would be had these keys stayed active."""
    principals = {
        name: entry.model_copy(update={"state": "active"}) if name in retired else entry
        for name, entry in document.principals.items()
    }
    return unsigned(present, document.model_copy(update={"principals": principals}))


def _holds(present: VerifiedKeyring, data: bytes) -> bool:
    try:
        next_keyring(present, data)
    except VerificationFailed:
        return False
    return True


def _duration(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise UsageError(str(error), fix="--expires 365d") from error
