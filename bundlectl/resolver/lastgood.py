"""The last good on disk: what a process needs to serve again while its registry is away.

One file per app and environment, so that its parts always belong together: a header line of canonical JSON,
then the parts' bytes as the header counts them. The header's digest covers them all; what they say is
verified again by the rules when it is loaded. The state in it never goes back.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from bundlectl.model.canonical import canonical, digest, parse_document
from bundlectl.model.errors import BackendUnavailable, VerificationFailed
from bundlectl.model.types import Digest, Strict, wrong_fields
from bundlectl.registry.layout import Place
from bundlectl.resolver.state import TrustedState

_MAX_BYTES = 1024 * 1024 * 1024
_FIX = "Nothing to do: it is written anew once the registry answers. If it happens again, check the disk."


@dataclass(frozen=True, slots=True)
class Saved:
    """What was saved."""

    state: TrustedState
    """The newest that was believed; it may be ahead of ``head`` if that could not be prepared."""
    believed: int
    """The version of the keyring under which ``head`` was believed."""
    keyrings: list[bytes]
    """From the pinned version on, or from an earlier one."""
    head: bytes
    """What served."""
    pack: bytes
    """Its bundle."""


class _Header(Strict):
    state: TrustedState
    believed: Annotated[int, Field(ge=1)]
    keyrings: list[Annotated[int, Field(ge=0)]]
    head: Annotated[int, Field(ge=0)]
    pack: Annotated[int, Field(ge=0)]
    body: Digest


class LastGood:
    """The file of one app and environment in a folder, which is made when it is first written to."""

    def __init__(self, folder: Path, app: str, environment: str) -> None:
        self._folder = folder
        self._path = folder / f"{app}.{environment}.lastgood"

    def save(self, saved: Saved) -> None:
        """Replace what is there, whole or not at all. A state that is newer on disk stays (another process's).

        Raises:
            BackendUnavailable: it could not be written; what was there still is.
        """
        with suppress(VerificationFailed):
            there = self.load()
            if there is not None and _newer(there.state, saved.state):
                return
        try:
            _replace(self._folder, self._path, _to_bytes(saved))
        except OSError as error:
            raise BackendUnavailable(
                f"The last good release could not be saved to {self._path}.",
                why=error.strerror or str(error),
                fix="Make room, or the folder writable: without it a restart needs the registry.",
            ) from error

    def load(self) -> Saved | None:
        """Read it back; None if nothing was ever saved. Only damage is found here; the rules judge the rest.

        Raises:
            VerificationFailed: it is damaged or cannot be read.
        """
        try:
            if self._path.stat().st_size > _MAX_BYTES:
                raise VerificationFailed(f"{self._path} is over {_MAX_BYTES} bytes.", fix=_FIX)
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise VerificationFailed(
                f"{self._path} cannot be read.", why=error.strerror or str(error), fix=_FIX
            ) from error
        return _from_bytes(data, str(self._path))


def _newer(there: TrustedState, ours: TrustedState) -> bool:
    return there.registry == ours.registry and (
        (Place(there.epoch, there.serial), there.keyring) > (Place(ours.epoch, ours.serial), ours.keyring)
    )


def _to_bytes(saved: Saved) -> bytes:
    body = b"".join([*saved.keyrings, saved.head, saved.pack])
    header = {
        "state": saved.state.form(),
        "believed": saved.believed,
        "keyrings": [len(data) for data in saved.keyrings],
        "head": len(saved.head),
        "pack": len(saved.pack),
    }
    # The digest covers the header too, or a flipped bit in the state would be believed.
    return canonical({**header, "body": digest(canonical(header) + b"\n" + body)}) + b"\n" + body


def _from_bytes(data: bytes, name: str) -> Saved:
    line, _, body = data.partition(b"\n")
    try:
        header = _Header.model_validate(parse_document(line, what=name))
    except ValidationError as error:
        raise VerificationFailed(f"{name} does not have its form.", why=wrong_fields(error), fix=_FIX) from error
    form = header.form()
    del form["body"]
    sizes = [*header.keyrings, header.head, header.pack]
    if sum(sizes) != len(body) or digest(canonical(form) + b"\n" + body) != header.body:
        raise VerificationFailed(f"{name} is damaged.", fix=_FIX)
    parts: list[bytes] = []
    for size in sizes:
        parts.append(body[:size])
        body = body[size:]
    return Saved(header.state, header.believed, parts[:-2], parts[-2], parts[-1])


def _replace(folder: Path, path: Path, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{path.name}.{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
