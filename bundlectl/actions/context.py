"""The one context that every action gets: registry, keys, clock, ids, reporter. Only the CLI and tests build it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlparse

from bundlectl.model.errors import UsageError

if TYPE_CHECKING:
    from bundlectl.registry.located import Located
    from bundlectl.registry.registry import Registry
    from bundlectl.trust.signers import AnySigner, Signer

DEFAULT_REGISTRY = ".bundlectl/registry"
PIN_FILE = "pin"


class Progress(Protocol):
    """A bar that an action advances."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move on by ``steps`` and show ``note`` beside the bar."""


class Reporter(Protocol):
    """Talk while an action works; results are returned, never said."""

    def say(self, text: str) -> None:
        """Tell the reader one line."""

    def warn(self, text: str) -> None:
        """Tell the reader one line that matters even when quiet."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Show a bar of ``total`` steps; only on a terminal."""
        yield _NoBar()


class _NoBar:
    def advance(self, steps: int = 1, note: str = "") -> None:
        """Show nothing."""


class Silent:
    """A reporter that says nothing and keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Keep the warning."""
        self.warnings.append(text)

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Show nothing."""
        yield _NoBar()


@dataclass
class Context:
    """What an action works with.

    Args:
        registry_url: a folder, ``file://…``, ``s3://…``, or ``ssm:/bundlectl/<name>``, where Parameter Store says.
        clock: gives the present time, UTC.
        new_id: gives an identifier that was never given before.
        reporter: where talk goes.
        environ: the environment variables.
        signer_uri: the key to sign with; without it, the folder's development key for the role that is needed.
        passphrase: asked for with the key's URI when a key is encrypted.
        trust_first_use: accept keyring 1 of a folder registry without a pin.
    """

    registry_url: str
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    reporter: Reporter = field(default_factory=Silent)
    environ: Mapping[str, str] = field(default_factory=dict)
    signer_uri: str | None = None
    passphrase: Callable[[str], bytes] | None = None
    trust_first_use: bool = False
    _located: Located | None = field(default=None, init=False, repr=False, compare=False)
    _identity: AnySigner | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def registry_folder(self) -> Path | None:
        """The registry's folder, when it is one."""
        if self.registry_url.startswith("file://"):
            return Path(unquote(urlparse(self.registry_url).path))
        return None if ":" in self.registry_url.split("/", maxsplit=1)[0] else Path(self.registry_url)

    @property
    def workspace(self) -> Path:
        """The folder of keys, pin, caches and receipts: beside a folder registry, else ``.bundlectl`` here."""
        folder = self.registry_folder
        return folder.absolute().parent if folder is not None else Path(".bundlectl").absolute()

    def locate(self, *expected: tuple[str, str]) -> Located:
        """Find the registry, once.

        Args:
            expected: (app, environment) pairs whose witnesses will be asked for; Parameter Store gives them in the
                same call, if this is the first.

        Raises:
            UsageError: the address is not one.
            NotFound, VerificationFailed, BackendUnavailable: see :func:`bundlectl.registry.located.locate`.
        """
        if self._located is None:
            from bundlectl.registry.located import locate

            self._located = locate(self.registry_url, expected)
        return self._located

    def use(self, located: Located) -> None:
        """Take the registry to be there, without asking."""
        self._located = located

    @cached_property
    def registry(self) -> Registry:
        """The registry.

        Raises:
            UsageError: a folder registry that never was, or a URL this version has no store for.
            StoreUnavailable: a folder registry that was there and is not.
            NotFound, VerificationFailed, BackendUnavailable: see :meth:`locate`.
        """
        from bundlectl.registry.registry import Registry
        from bundlectl.storage.store import StoreUnavailable, open_store

        folder = self.registry_folder
        if folder is not None and not folder.is_dir():
            if (self.workspace / PIN_FILE).is_file():
                raise StoreUnavailable(
                    f"The registry's folder {folder} is not there.",
                    why=f"{self.workspace} holds the pin of a registry, so there was one.",
                    fix="Put it back, or mount the disk that it is on, then repeat.",
                    details={"registry": str(folder)},
                )
            raise UsageError(
                f"There is no registry at {folder}.",
                fix="`bundlectl init DIR --app NAME` makes one; --registry or BUNDLECTL_REGISTRY names another.",
                details={"registry": str(folder)},
            )
        return Registry(open_store(self.locate().url))

    def forget(self) -> None:
        """Drop what was read ahead: the next verb reads anew."""
        if "registry" in self.__dict__:
            self.registry.store.forget()

    def signer(self, role: str) -> AnySigner:
        """Open the key, or the identity, that signs as ``role``. An identity is asked for once: each is a certificate.

        Raises:
            UsageError: no key was named and the workspace has none for the role.
        """
        from bundlectl.trust.signers import IdentitySigner, open_signer

        if self._identity is not None:
            return self._identity
        if self.signer_uri is not None:
            signer = open_signer(self.signer_uri, self.passphrase)
            self._identity = signer if isinstance(signer, IdentitySigner) else None
            return signer
        return open_signer(self._key_of(role), self.passphrase)

    def key(self, role: str) -> Signer:
        """Open the key that signs as ``role``, root or an owner: never an identity.

        Raises:
            UsageError: as :meth:`signer`, and where an identity was named.
        """
        from bundlectl.trust.signers import open_key

        return open_key(self.signer_uri or self._key_of(role), self.passphrase)

    def _key_of(self, role: str) -> str:
        key = self.workspace / "keys" / f"{role}.pem"
        if not key.is_file():
            raise UsageError(
                f"This needs a key of role {role}, and none was named.",
                why=f"There is no {key}.",
                fix="Name one: --signer file:PATH, or set BUNDLECTL_SIGNER.",
            )
        return f"file:{key}"
