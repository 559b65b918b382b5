"""keyring and policy: make the first keyring of a registry, and show who may do what and what each gate asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_current_policy, open_trust, pin_file
from bundlectl.actions.signing import write_new
from bundlectl.model.canonical import digest
from bundlectl.model.errors import UsageError
from bundlectl.model.keyring import EvaluationRequirement, Keyring, Policy, Role
from bundlectl.model.types import Strict, format_time
from bundlectl.registry.registry import Registry
from bundlectl.storage.directory import DirectoryStore
from bundlectl.trust.envelope import envelope_bytes, parse_envelope, payload_of
from bundlectl.trust.founding import member, new_keyring
from bundlectl.trust.instances import root_digest
from bundlectl.trust.keyring import keyring_digest, seal_keyring
from bundlectl.trust.policy import new_policy, seal_policy
from bundlectl.trust.signers import Signer, generate_key, open_key

DEVELOPMENT_ROLES: tuple[Role | Literal["root", "owner"], ...] = (
    "root",
    "owner",
    "builder",
    "evaluator",
    "approver",
    "promoter",
    "renewer",
    "indexer",
    "gc",
)


class ShownPrincipal(Strict):
    """One principal of the keyring."""

    principal: str
    owner: str
    roles: list[str]
    state: str
    scheme: str
    issuer: str | None = None
    subject: str | None = None


class ShownInstance(Strict):
    """A Sigstore instance that the keyring trusts, and for whose identities. ``trusted_root`` is its digest."""

    name: str
    trusted_root: str
    issuers: list[str]


class ShownKeyring(Strict):
    """The keyring as it is trusted now, and the pin that trust starts from."""

    registry: str
    version: int
    digest: str
    expires: str | None
    principals: list[ShownPrincipal]
    sigstore: list[ShownInstance]
    document: Keyring


class Initialised(Strict):
    """What was made: the registry's id (which is also the pin), and the keys' folder."""

    registry: str
    registry_id: str
    pin_file: str
    keys: list[str]
    app: str
    environments: list[str]


def keyring_show(ctx: Context) -> ShownKeyring:
    """Show the newest keyring that the pin leads to."""
    keyring = open_trust(ctx)
    return ShownKeyring(
        registry=keyring.registry or "",
        version=keyring.version,
        digest=keyring.digest,
        expires=format_time(keyring.document.expires) if keyring.document.expires else None,
        principals=[
            ShownPrincipal(
                principal=name,
                owner=entry.owner,
                roles=sorted(keyring.roles_of(name)),
                state=entry.state,
                scheme=entry.key.scheme if entry.key else "oidc",
                issuer=entry.oidc.issuer if entry.oidc else None,
                subject=entry.oidc.subject if entry.oidc else None,
            )
            for name, entry in sorted(keyring.document.principals.items())
        ],
        sigstore=[
            ShownInstance(name=one.name, trusted_root=root_digest(one), issuers=one.issuers) for one in keyring.sigstore
        ],
        document=keyring.document,
    )


def policy_show(ctx: Context, app: str) -> Policy:
    """Give an app's newest policy, verified.

    Raises:
        NotFound: the app has none.
    """
    return open_current_policy(ctx, open_trust(ctx), app).document


def keyring_init(
    ctx: Context,
    app: str,
    *,
    owner: str = "developer",
    scheme: str = "ed25519",
    suites: Sequence[str] | None = None,
) -> Initialised:
    """Make a registry: development keys (one for each role), keyring 1, the app's policy 1, and the pin.

    Keys and pin stay on this machine, in the workspace.

    Args:
        ctx: the context; its registry must be a folder, or a place in S3, without a keyring.
        app: the first app.
        owner: who is behind every key.
        scheme: of the keys: ``ed25519`` or ``ecdsa-p256-sha256``.
        suites: the suites that staging and prod ask for; by default one, named as the app.

    Raises:
        UsageError: there already is a keyring or a key; nothing was replaced.
    """
    keys = ctx.workspace / "keys"
    folder = ctx.registry_folder
    if folder is not None and not folder.exists():
        _refuse_pinned(ctx.registry_url, pin_file(ctx))
        folder.mkdir(parents=True)
    registry = Registry(DirectoryStore(folder)) if folder is not None else ctx.registry
    made = registry.keyring_bytes(1)
    unfinished = not pin_file(ctx).exists() and all((keys / f"{role}.pem").exists() for role in DEVELOPMENT_ROLES)
    if made is None or not unfinished:
        _refuse_existing(ctx.registry_url, registry, pin_file(ctx))
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    signers = {role: _key(keys / f"{role}.pem", scheme) for role in DEVELOPMENT_ROLES}
    members = [member(f"{owner}-{role}", owner, role, signers[role]) for role in DEVELOPMENT_ROLES]
    document = new_keyring(app, members)
    pin = keyring_digest(document)
    if made is not None and digest(payload_of(parse_envelope(made, "keyring 1"))) != pin:
        _refuse_existing(ctx.registry_url, registry, pin_file(ctx))
    wanted = [app] if suites is None else list(suites)
    policy = new_policy(app, [EvaluationRequirement(suite=suite) for suite in wanted])
    # Policy, keyring, pin: a run that was killed after any of them is finished by the next.
    if registry.policy_bytes(app, 1) is None:
        registry.put_policy(app, 1, envelope_bytes(seal_policy(policy, [signers["owner"]])))
    if made is None:
        registry.put_keyring(1, envelope_bytes(seal_keyring(document, [signers["root"]])))
    pin_file(ctx).write_text(pin + "\n", encoding="utf-8")
    return Initialised(
        registry=str(folder or ctx.registry_url),
        registry_id=pin,
        pin_file=str(pin_file(ctx)),
        keys=[str(keys / f"{role}.pem") for role in DEVELOPMENT_ROLES],
        app=app,
        environments=sorted(policy.environments),
    )


def _refuse_existing(url: str, registry: Registry, pin: Path) -> None:
    """Refuse to touch a registry that has a keyring, or to replace a pin; what a killed run left is gone on with."""
    if registry.keyring_bytes(1) is not None:
        raise UsageError(f"{url} already has a keyring; nothing was changed.", fix="See it: bundlectl keyring show")
    _refuse_pinned(url, pin)


def _refuse_pinned(url: str, pin: Path) -> None:
    if pin.exists():
        raise UsageError(
            f"{pin} already pins a keyring, and {url} has none; nothing was changed.",
            why="Either the registry is elsewhere, or it was lost.",
            fix=f"Name the registry with --registry; or remove {pin} to begin anew.",
        )


def _key(path: Path, scheme: str) -> Signer:
    return open_key(f"file:{path}") if path.exists() else generate_key(path, scheme)


class GeneratedKey(Strict):
    """A private key that was made, and its public key, which is what root needs of it."""

    path: str
    public_file: str
    scheme: str
    encrypted: bool
    key_id: str
    public: str


def generate(ctx: Context, path: Path, *, scheme: str = "ed25519", encrypt: bool = False) -> GeneratedKey:
    """Make a private key in a file with mode 0600, and its public key beside it, with the suffix ``.pub``.

    Raises:
        UsageError: a file exists, or the scheme is not known.
    """
    public = path.with_suffix(".pub")
    if public.exists():
        raise UsageError(f"{public} is already there; nothing was changed.", fix="Name another path.")
    passphrase = ctx.passphrase(f"file:{path}") if encrypt and ctx.passphrase is not None else None
    signer = generate_key(path, scheme, passphrase)
    write_new(public, signer.public_pem.encode())
    return GeneratedKey(
        path=str(path),
        public_file=str(public),
        scheme=signer.scheme,
        encrypted=passphrase is not None,
        key_id=signer.key_id,
        public=signer.public_pem,
    )
