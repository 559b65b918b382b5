"""A registry in a folder with a key file for each role, and contexts to act on it: for verbs of root and owners.

It is the world of ``tests.support.world`` on disk: fast, and without the scaffold's evaluation and index.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bundlectl.actions.context import Context
from bundlectl.model.keyring import Gate
from bundlectl.storage.directory import DirectoryStore
from bundlectl.storage.store import Store
from tests.support.world import ROLES, World, signer


class Ceremony:
    """A workspace: ``keys/<name>.pem`` and ``<name>.pub``, the pin, the registry; its clock is the world's."""

    def __init__(
        self, folder: Path, *, store: Store | None = None, gates: dict[str, Gate] | None = None, **world: Any
    ) -> None:
        self.folder = folder
        self.home = folder / ".bundlectl"
        self.registry = self.home / "registry"
        self.registry.mkdir(parents=True)
        self.world = World(store if store is not None else DirectoryStore(self.registry), gates=gates, **world)
        (self.home / "pin").write_text(self.world.pin + "\n")
        self._ids = itertools.count()
        for name in ("root", "owner", *ROLES):
            self.key(name)

    def key(self, name: str) -> str:
        """Write the key of a name to the workspace, private and public; give its signer URI."""
        path = self.home / "keys" / f"{name}.pem"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            private = signer(name)._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.touch(mode=0o600)
            path.write_bytes(private)
            path.with_suffix(".pub").write_text(signer(name).public_pem)
        return f"file:{path}"

    def pub(self, name: str) -> str:
        """Give the file of a name's public key."""
        self.key(name)
        return str(self.home / "keys" / f"{name}.pub")

    def member(self, name: str) -> str:
        """Give a new principal as ``--add`` takes it."""
        return f"{name},{name}@example.com,{self.pub(name)}"

    def context(self, *, signer: str | None = None, **how: Any) -> Context:
        """Give a context; ``signer`` is a name."""
        return Context(
            **{
                "registry_url": str(self.registry),
                "clock": self.world.now,
                "new_id": lambda: f"id-{next(self._ids)}",
                "signer_uri": self.key(signer) if signer else None,
                **how,
            }
        )

    def offline(self, folder: Path, **how: Any) -> Context:
        """Give the context of a machine that has the pin and no registry."""
        folder.mkdir(exist_ok=True)
        environ = {"BUNDLECTL_PIN": self.world.pin}
        return self.context(registry_url=str(folder / "none" / "registry"), environ=environ, **how)

    def uris(self, names: Sequence[str]) -> list[str]:
        """Give the signer URIs of names."""
        return [self.key(name) for name in names]

    def later(self, **span: float) -> None:
        """Move the clock."""
        self.world.clock += timedelta(**span)
