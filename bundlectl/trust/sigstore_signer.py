"""Sign as an OIDC identity through Sigstore: ``sigstore:``, with a key that lives as long as one certificate.

``sigstore:`` takes the credential that the CI system gives the job (GitHub Actions, GitLab, Buildkite, CircleCI, Google
Cloud) to the public instance. ``sigstore:?identity-token-file=PATH`` reads the identity token from a file, so that no
token stands in argv or in a setting; ``trust-config=FILE`` names another instance (Sigstore's client trust config), and
``audience=NAME`` what its certificate authority wants to read in the token. PATH and FILE are percent-decoded.

What is signed is the envelope's pre-authentication encoding, as an artifact: the log then holds its digest, the
signature and the certificate, and no payload. Every signature is verified here before anyone gets it. A certificate
lives for about ten minutes, an evaluation may run for an hour: near its end a new one is asked for with a new token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cryptography import x509
from pydantic import ValidationError
from requests import PreparedRequest, RequestException, Response
from requests.adapters import HTTPAdapter
from sigstore._internal.fulcio import ExpiredCertificate
from sigstore._internal.fulcio.client import FulcioClientError
from sigstore._internal.rekor import RekorClientError
from sigstore.errors import Error, TUFError
from sigstore.models import Bundle, ClientTrustConfig
from sigstore.oidc import ExpiredIdentity, IdentityError, IdentityToken, detect_credential
from sigstore.sign import Signer, SigningContext

from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.model.keyring import Oidc
from bundlectl.model.sigstore import SignatureExtension, VerificationMaterial
from bundlectl.trust.identities import certificate_of, certified_key_id, identity_of
from bundlectl.trust.signers import Endorsed, IdentitySigner
from bundlectl.trust.sigstore_verifier import judge

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
"""How long the certificate authority and the log may take to answer."""
RENEW_BEFORE = timedelta(minutes=2)
"""How much of a certificate's life must be left to sign with it."""
MAX_FILE = 256 * 1024
SETTINGS = ("identity-token-file", "trust-config", "audience")

_IN_CI = (
    "GitHub Actions: permissions: {id-token: write}. GitLab: id_tokens: {SIGSTORE_ID_TOKEN: {aud: sigstore}}. "
    "Elsewhere: --signer 'sigstore:?identity-token-file=PATH'"
)


class SigstoreSigner(IdentitySigner):
    """A signer whose certificate names an OIDC identity."""

    def __init__(self, uri: str, settings: dict[str, str]) -> None:
        self.uri = uri
        self._token_file = settings.get("identity-token-file")
        self._audience = settings.get("audience", "sigstore")
        token, config = self._token(), settings.get("trust-config")
        self._trust = _trust_config(Path(config)) if config else _public()
        self._root = self._trust._inner.trusted_root.to_json().encode()
        self._signer, self._certificate = self._certify(token)
        self.identity = _named(self._certificate)

    def __repr__(self) -> str:
        return f"SigstoreSigner({self.uri!r}, {self.identity.subject!r} of {self.identity.issuer!r})"

    def endorse(self, data: bytes) -> Endorsed:
        """Sign, and have it logged.

        Raises:
            UsageError: the identity token is over, or is another identity's by now.
            BackendUnavailable: the certificate authority or the log refuses, or cannot be reached.
        """
        if self._certificate.not_valid_after_utc - datetime.now(UTC) < RENEW_BEFORE:
            self._signer, self._certificate = self._certify(self._token())
            if (found := _named(self._certificate)) != self.identity:
                raise UsageError(
                    "The identity token is another identity's than when this began.",
                    why=f"It was {self.identity.subject}; it is {found.subject}.",
                )
        with _asking("Sigstore's log"):
            bundle = self._signer.sign_artifact(data)
        extension, signature = _extension(bundle), bundle.signature
        certificate = certificate_of(extension)
        material = json.dumps(extension.ext.form()).encode()
        digest = sha256(data).digest()
        why = judge(self._root, material, signature, digest, self.identity.issuer, self.identity.subject)
        if why is not None:
            raise BackendUnavailable(
                "Sigstore gave a signature that does not verify; nothing was signed with it.",
                why=why,
                fix="Check the clock of this machine, and that the trust config is the instance's own.",
            )
        return Endorsed(certified_key_id(certificate), signature, extension)

    def _certify(self, token: IdentityToken) -> tuple[Signer, x509.Certificate]:
        """Ask for a certificate for a new key."""
        with _asking("Sigstore's certificate authority"):
            signer = Signer(token, _limited(SigningContext.from_trust_config(self._trust)))
            return signer, signer._signing_cert()

    def _token(self) -> IdentityToken:
        if self._token_file is not None:
            raw: str | None = _read(Path(self._token_file), "The identity token").decode("ascii", "replace").strip()
        else:
            try:
                raw = detect_credential(self._audience)
            except IdentityError as error:
                why = str(error.__cause__ or error)
                raise UsageError("The CI system gives this job no identity token.", why=why, fix=_IN_CI) from error
        if not raw:
            raise UsageError("There is no identity to sign as: this is no CI job that is known.", fix=_IN_CI)
        try:
            return IdentityToken(raw, self._audience)
        except IdentityError as error:
            # The library says no more; the cause names the claim. The token itself is in neither.
            why = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
            raise UsageError("The identity token cannot be used.", why=why, fix="Bring a fresh one.") from error


def open_sigstore(uri: str, rest: str) -> SigstoreSigner:
    """Open ``sigstore:`` with its settings.

    Raises:
        UsageError: a setting that is not known, a file that cannot be read, or no identity token.
        BackendUnavailable: the certificate authority refuses, or cannot be reached.
    """
    return SigstoreSigner(uri, _settings(rest))


def public_root() -> dict[str, Any]:
    """Fetch the public instance's trusted root, by Sigstore's own signed updates (TUF).

    Raises:
        BackendUnavailable: it cannot be reached, or what it gives does not verify.
    """
    found: dict[str, Any] = _public()._inner.trusted_root.to_dict()
    return found


def _public() -> ClientTrustConfig:
    with _asking("Sigstore's public instance"):
        return ClientTrustConfig.production()


def _settings(rest: str) -> dict[str, str]:
    """Read what stands behind ``sigstore:``; a plus sign is a plus sign."""
    if rest and not rest.startswith("?"):
        # What stands there is not told again: it may be a token.
        raise UsageError("This is no Sigstore signer.", fix="Write sigstore: or sigstore:?identity-token-file=PATH")
    found: dict[str, str] = {}
    for part in filter(None, rest[1:].split("&")):
        name, _, value = part.partition("=")
        if name not in SETTINGS or not value or name in found:
            shown = name if name in SETTINGS else "one of its settings"
            raise UsageError(
                f"A sigstore: signer does not take {shown} like that.",
                fix=f"It takes, each once: {', '.join(SETTINGS)}",
            )
        found[name] = unquote(value)
    return found


def _trust_config(path: Path) -> ClientTrustConfig:
    try:
        trust = ClientTrustConfig.from_json(_read(path, "The trust config").decode("utf-8"))
        _ = trust.signing_config, trust.trusted_root
    except (ValidationError, ValueError, Error) as error:
        raise UsageError(
            f"{path} is no client trust config.",
            why=str(error).splitlines()[0],
            fix="It is Sigstore's clienttrustconfig.v0.1+json: a trusted root and a signing config v0.2.",
        ) from error
    return trust


def _read(path: Path, what: str) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        fix = "Check the path that the signer's URI names, and that you may read the file."
        raise UsageError(f"{what} {path} cannot be read.", why=error.strerror or str(error), fix=fix) from error
    if len(data) > MAX_FILE:
        raise UsageError(f"{what} {path} is over {MAX_FILE} bytes.", fix="Name the right file.")
    return data


def _named(certificate: x509.Certificate) -> Oidc:
    found = identity_of(certificate)
    if found is None:
        raise BackendUnavailable("Sigstore's certificate authority gave a certificate that names no single identity.")
    return found


def _extension(bundle: Bundle) -> SignatureExtension:
    """Give the part of a bundle that goes with a signature; what is empty is left out."""
    material = json.loads(bundle.to_json())["verificationMaterial"]
    if not material.get("timestampVerificationData", {}).get("rfc3161Timestamps"):
        material.pop("timestampVerificationData", None)
    try:
        return SignatureExtension(ext=VerificationMaterial.model_validate(material))
    except ValidationError as error:
        why = "; ".join(str(found["msg"]) for found in error.errors()[:3])
        raise BackendUnavailable("Sigstore's log answered with an entry of another form.", why=why) from error


@contextmanager
def _asking(whom: str) -> Iterator[None]:
    """Tell what the library's clients raise as what it means: refused, not reached, or an identity that is over."""
    try:
        yield
    except (ExpiredIdentity, ExpiredCertificate) as error:
        raise UsageError("The identity token is over.", fix="Bring a fresh one.") from error
    except (RequestException, TUFError) as error:
        raise BackendUnavailable(f"{whom} cannot be reached.", why=_why(error), fix="Repeat it later.") from error
    except (FulcioClientError, RekorClientError) as error:
        refused = "Was the identity token meant for this instance, and is it fresh?"
        raise BackendUnavailable(f"{whom} refuses.", why=_why(error.__cause__ or error), fix=refused) from error
    except (Error, ValueError, LookupError) as error:
        raise BackendUnavailable(f"{whom} gave an answer that cannot be used.", why=_why(error)) from error


def _why(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _Limited(HTTPAdapter):
    """Requests with a time limit: the library's own have none."""

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Send, and wait so long and no longer."""
        return super().send(request, *args, **{**kwargs, "timeout": (CONNECT_SECONDS, READ_SECONDS)})


def _limited(context: SigningContext) -> SigningContext:
    for session in (context._fulcio.session, context._rekor._session):  # type: ignore[attr-defined]
        for scheme in ("https://", "http://"):
            session.mount(scheme, _Limited())
    return context
